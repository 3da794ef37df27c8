package crd_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// A rule is one XValidation of a CRD.
type rule struct {
	plural  string
	path    string
	message string
}

func (r rule) String() string { return fmt.Sprintf("%s %s: %s", r.plural, r.path, r.message) }

// examples are specs that a rule accepts and refuses. Where before is set, the rule is about changes, and
// they are changes of it.
type examples struct {
	before   string
	accepted []string
	rejected []string
}

func joined(all ...map[rule]map[string]examples) map[rule]map[string]examples {
	out := map[rule]map[string]examples{}
	for _, rules := range all {
		maps.Copy(out, rules)
	}
	return out
}

func TestRules_acceptAndRefuse(t *testing.T) {
	t.Parallel()
	for r, starts := range ruleExamples {
		for start, e := range starts {
			t.Run(strings.TrimSpace(r.String()+" "+start), func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				env := testenv.Start(t)
				ns := env.Namespace(t)
				try := func(spec string) error { return tryCreate(t.Context(), env.Client, object(t, r.plural, ns, spec)) }
				if e.before != "" {
					existing := object(t, r.plural, ns, e.before)
					g.Expect(strict(env.Client).Create(t.Context(), existing)).To(Succeed())
					try = func(spec string) error {
						changed := existing.DeepCopy()
						changed.Object["spec"] = object(t, r.plural, ns, spec).Object["spec"]
						return strict(env.Client).Update(t.Context(), changed, client.DryRunAll)
					}
				}
				for _, spec := range e.accepted {
					g.Expect(try(spec)).To(Succeed(), spec)
				}
				for _, spec := range e.rejected {
					// By this rule and no other, or the example would not say anything about it.
					g.Expect(causes(g, try(spec))).To(ConsistOf(And(HavePrefix(strings.ReplaceAll(r.path, "[]", "[0]")+": "), HaveSuffix(": "+r.message))), spec)
				}
			})
		}
	}
}

// A rule without a test may not say what it means.
func TestRules_eachHasExamples(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)

	found := map[rule]int{}
	for plural, schema := range schemas(t) {
		walk(schema, "", func(path string, s *apiextensionsv1.JSONSchemaProps) {
			for _, v := range s.XValidations {
				if strings.HasPrefix(path, "status.") { // no spec can break it: see TestSchema_acceptsOnlyWhatDecodes
					continue
				}
				found[rule{plural, path, v.Message}]++
			}
		})
	}
	g.Expect(slices.Collect(maps.Keys(ruleExamples))).To(ConsistOf(slices.Collect(maps.Keys(found))))
	for r, n := range found {
		g.Expect(n).To(Equal(1), "%s: two rules with one message cannot be told apart", r)
		accepted, rejected := 0, 0
		for _, e := range ruleExamples[r] {
			accepted += len(e.accepted)
			rejected += len(e.rejected)
		}
		g.Expect(accepted).NotTo(BeZero(), "%s", r)
		g.Expect(rejected).NotTo(BeZero(), "%s", r)
	}
}

// walk visits a schema and all that is in it. Paths are as in the server's errors; an element of a list or
// map is "[]".
func walk(s *apiextensionsv1.JSONSchemaProps, path string, visit func(path string, s *apiextensionsv1.JSONSchemaProps)) {
	visit(path, s)
	for name, property := range s.Properties {
		walk(&property, strings.TrimPrefix(path+"."+name, "."), visit)
	}
	if s.Items != nil && s.Items.Schema != nil {
		walk(s.Items.Schema, path+"[]", visit)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		walk(s.AdditionalProperties.Schema, path+"[]", visit)
	}
}
