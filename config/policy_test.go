package config_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

const group = "keyconvoy.io"

var policies struct {
	sync.Mutex
	installed bool
}

// withPolicies returns an API server on which the policies are in force.
func withPolicies(t testing.TB) *testenv.Env {
	t.Helper()
	policies.Lock()
	defer policies.Unlock()
	env := testenv.Start(t)
	if policies.installed {
		return env
	}
	g := NewWithT(t)
	for _, u := range build(t, "policy") {
		g.Expect(client.IgnoreAlreadyExists(env.Client.Create(t.Context(), u))).To(Succeed())
	}
	// The server hears of them a moment later.
	p := newPerson(t, env, env.Namespace(t))
	for _, object := range []client.Object{dataKey("key"), export("data-key"), clusterExport(p.namespace, "data-key")} {
		g.Eventually(func() error { return p.tries(object) }).Should(MatchError(apierrors.IsForbidden, "forbidden"))
	}
	policies.installed = true
	return env
}

// person may write every kind of ours in a namespace, but has none of the verbs that the policies ask for.
type person struct {
	client.Client
	t         testing.TB
	env       *testenv.Env
	name      string
	namespace string
}

var people atomic.Int64

func newPerson(t testing.TB, env *testenv.Env, namespace string) *person {
	t.Helper()
	p := &person{t: t, env: env, namespace: namespace, name: fmt.Sprintf("person-%d", people.Add(1))}
	p.Client = env.As(t, p.name)
	p.bind("", rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{"*"}, Verbs: slices.Concat(reading, writing)})
	return p
}

// bind gives the person a rule in a namespace, or in all with an empty one, and waits until it is in force.
func (p *person) bind(namespace string, rule rbacv1.PolicyRule) {
	p.t.Helper()
	name := fmt.Sprintf("%s-%d", p.name, people.Add(1))
	subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: p.name, APIGroup: rbacv1.GroupName}}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
	objects := []client.Object{&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{rule}}}
	if namespace == "" {
		objects = append(objects, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects, RoleRef: ref})
	} else {
		objects = append(objects, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Subjects: subjects, RoleRef: ref})
	}
	for _, o := range objects {
		if err := p.env.Client.Create(p.t.Context(), o); err != nil {
			p.t.Fatal(err)
		}
	}
	what := attributes(namespace, rule)
	NewWithT(p.t).Eventually(func() bool { return mayDo(p.t, p.env, p.name, what) }).Should(BeTrue())
}

// may gives the person a verb, on single objects where names are given.
func (p *person) may(verb, resource, namespace string, names ...string) {
	p.t.Helper()
	p.bind(namespace, rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: []string{verb}, ResourceNames: names})
}

// tries asks the server whether the person could make an object.
func (p *person) tries(object client.Object) error {
	object = object.DeepCopyObject().(client.Object)
	if object.GetNamespace() == "" {
		object.SetNamespace(p.namespace)
	}
	if _, ok := object.(*v1alpha1.ClusterExportedDataKey); ok {
		object.SetNamespace("")
	}
	return p.Create(p.t.Context(), object, client.DryRunAll)
}

func dataKey(key string) *v1alpha1.DataKey {
	return &v1alpha1.DataKey{
		ObjectMeta: metav1.ObjectMeta{Name: "object"},
		Spec:       v1alpha1.DataKeySpec{KeyRef: v1alpha1.KeyReference{Kind: "ImportedKey", Name: v1alpha1.ObjectName(key)}},
	}
}

// export exports a DataKey, of another namespace when one is given.
func export(dataKey string, namespace ...string) *v1alpha1.ExportedDataKey {
	return &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Name: "object"},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef: &v1alpha1.DataKeyReference{
				Name: v1alpha1.ObjectName(dataKey), Namespace: v1alpha1.NamespaceName(strings.Join(namespace, "")),
			},
			PublicKey:       v1alpha1.PublicKeySource{Blob: "AA=="},
			WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
		},
	}
}

func exportOfBlob() *v1alpha1.ExportedDataKey {
	e := export("")
	e.Spec.DataKeyRef, e.Spec.CiphertextBlob = nil, "AA=="
	return e
}

func clusterExport(namespace, dataKey string) *v1alpha1.ClusterExportedDataKey {
	return &v1alpha1.ClusterExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Name: namespace}, // which is one test's own
		Spec: v1alpha1.ClusterExportedDataKeySpec{
			NamespaceSelector: metav1.LabelSelector{MatchLabels: map[string]string{"team": namespace}},
			Template: v1alpha1.ExportTemplate{
				DataKeyRef: v1alpha1.NamespacedReference{Namespace: v1alpha1.NamespaceName(namespace), Name: v1alpha1.ObjectName(dataKey)},
				PublicKey:  v1alpha1.DistributedPublicKeySource{Blob: "AA=="}, WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
			},
		},
	}
}

// refused checks that an object was refused by a policy, which says these words.
func refused(g Gomega, err error, words ...string) {
	g.ExpectWithOffset(1, apierrors.IsForbidden(err)).To(BeTrue(), "%v", err)
	for _, w := range append(words, "ValidatingAdmissionPolicy", "kubectl -n") {
		g.ExpectWithOffset(1, err).To(MatchError(ContainSubstring(w)))
	}
}

func TestPolicies_creating_takesTheVerbOnWhatIsNamed(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	for sentence, tc := range map[string]struct {
		verb, resource string
		names          []string
		elsewhere      bool // the verb is in another namespace than the person's
		object         func(here, elsewhere string) client.Object
		says           []string // nothing: it is taken
	}{
		"a data key, without the verb":              {"get", "importedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"the verb use", "ImportedKey k", "resources: [importedkeys], resourceNames: [k], verbs: [use]"}},
		"a data key, with the verb on another key":  {"use", "importedkeys", []string{"other"}, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"ImportedKey k"}},
		"a data key, with the verb elsewhere":       {"use", "importedkeys", nil, true, func(_, _ string) client.Object { return dataKey("k") }, []string{"ImportedKey k"}},
		"a data key, with the other verb":           {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, []string{"the verb use"}},
		"a data key, with the verb on its key":      {"use", "importedkeys", []string{"k"}, false, func(_, _ string) client.Object { return dataKey("k") }, nil},
		"a data key, with the verb on all keys":     {"use", "importedkeys", nil, false, func(_, _ string) client.Object { return dataKey("k") }, nil},
		"an export, without the verb":               {"get", "datakeys", nil, false, func(_, _ string) client.Object { return export("d") }, []string{"the verb export", "DataKey d", "resources: [datakeys], resourceNames: [d], verbs: [export]"}},
		"an export, with the verb on another":       {"export", "datakeys", []string{"other"}, false, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb elsewhere":        {"export", "datakeys", nil, true, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb on keys":          {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb to use":           {"use", "datakeys", nil, false, func(_, _ string) client.Object { return export("d") }, []string{"DataKey d"}},
		"an export, with the verb on its data key":  {"export", "datakeys", []string{"d"}, false, func(_, _ string) client.Object { return export("d") }, nil},
		"an export that names its namespace":        {"export", "datakeys", []string{"d"}, false, func(here, _ string) client.Object { return export("d", here) }, nil},
		"an export from elsewhere, the verb here":   {"export", "datakeys", nil, false, func(_, elsewhere string) client.Object { return export("d", elsewhere) }, []string{"DataKey d"}},
		"an export from elsewhere, the verb there":  {"export", "datakeys", []string{"d"}, true, func(_, elsewhere string) client.Object { return export("d", elsewhere) }, nil},
		"a dry run, without the verb":               {"get", "datakeys", nil, false, func(_, _ string) client.Object { e := export("d"); e.Spec.DryRun = true; return e }, []string{"DataKey d"}},
		"a blob, without the verb":                  {"get", "importedkeys", nil, false, func(_, _ string) client.Object { return exportOfBlob() }, []string{"ciphertextBlob", "all ImportedKeys", "--clusterrole=keyconvoy-datakey-exporter-role"}},
		"a blob, with the verb on one key":          {"export", "importedkeys", []string{"k"}, false, func(_, _ string) client.Object { return exportOfBlob() }, []string{"all ImportedKeys"}},
		"a blob, with the verb on all data keys":    {"export", "datakeys", nil, false, func(_, _ string) client.Object { return exportOfBlob() }, []string{"all ImportedKeys"}},
		"a blob, with the verb elsewhere":           {"export", "importedkeys", nil, true, func(_, _ string) client.Object { return exportOfBlob() }, []string{"all ImportedKeys"}},
		"a blob, with the verb on all keys":         {"export", "importedkeys", nil, false, func(_, _ string) client.Object { return exportOfBlob() }, nil},
		"an export to all, without the verb":        {"get", "datakeys", nil, false, func(here, _ string) client.Object { return clusterExport(here, "d") }, []string{"the verb export", "DataKey d"}},
		"an export to all, with the verb elsewhere": {"export", "datakeys", nil, true, func(here, _ string) client.Object { return clusterExport(here, "d") }, []string{"DataKey d"}},
		"an export to all, with the verb":           {"export", "datakeys", []string{"d"}, false, func(here, _ string) client.Object { return clusterExport(here, "d") }, nil},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here, elsewhere := env.Namespace(t), env.Namespace(t)
			p := newPerson(t, env, here)
			in := here
			if tc.elsewhere {
				in = elsewhere
			}
			p.may(tc.verb, tc.resource, in, tc.names...)
			err := p.tries(tc.object(here, elsewhere))
			if tc.says == nil {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			refused(g, err, append(tc.says, p.name)...)
		})
	}
}

// existing makes an object as an administrator, who has every verb.
func existing[T client.Object](t testing.TB, env *testenv.Env, namespace string, object T) T {
	t.Helper()
	if _, ok := client.Object(object).(*v1alpha1.ClusterExportedDataKey); !ok {
		object.SetNamespace(namespace)
	}
	if err := env.Client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	return object
}

func TestPolicies_changing_takesTheVerbWhereSomethingNewIsAskedFor(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	for sentence, tc := range map[string]struct {
		object func(here string) client.Object
		change func(client.Object)
		refuse bool
	}{
		"another data key":          {func(string) client.Object { return export("d") }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.DataKeyRef.Name = "e" }, true},
		"another recipient":         {func(string) client.Object { return export("d") }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.PublicKey.Blob = "AQ==" }, true},
		"no dry run any more":       {func(string) client.Object { e := export("d"); e.Spec.DryRun = true; return e }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.DryRun = false }, true},
		"another blob":              {func(string) client.Object { return exportOfBlob() }, func(o client.Object) { o.(*v1alpha1.ExportedDataKey).Spec.CiphertextBlob = "AQ==" }, true},
		"more namespaces":           {func(here string) client.Object { return clusterExport(here, "d") }, func(o client.Object) { o.(*v1alpha1.ClusterExportedDataKey).Spec.NamespaceSelector.MatchLabels = nil }, true},
		"a recipient for all":       {func(here string) client.Object { return clusterExport(here, "d") }, func(o client.Object) { o.(*v1alpha1.ClusterExportedDataKey).Spec.Template.PublicKey.Blob = "AQ==" }, true},
		"a blob for a data key":     {func(string) client.Object { return dataKey("k") }, func(o client.Object) { o.(*v1alpha1.DataKey).Spec.CiphertextBlob = "AA==" }, true},
		"labels of an export":       {func(string) client.Object { return export("d") }, label, false},
		"finalizers of an export":   {func(string) client.Object { return export("d") }, finalize, false},
		"labels of a blob's export": {func(string) client.Object { return exportOfBlob() }, label, false},
		"labels of a data key":      {func(string) client.Object { return dataKey("k") }, label, false},
		"finalizers of one for all": {func(here string) client.Object { return clusterExport(here, "d") }, finalize, false},
		"nothing at all":            {func(string) client.Object { return export("d") }, func(client.Object) {}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here := env.Namespace(t)
			p := newPerson(t, env, here)
			object := existing(t, env, here, tc.object(here))

			// As kubectl patch, kubectl replace and kubectl apply --server-side do.
			patched := object.DeepCopyObject().(client.Object)
			tc.change(patched)
			patch := client.MergeFrom(object)
			ways := map[string]error{
				"patch":  p.Patch(t.Context(), patched.DeepCopyObject().(client.Object), patch, client.DryRunAll),
				"update": p.Update(t.Context(), patched.DeepCopyObject().(client.Object), client.DryRunAll),
			}
			for way, err := range ways {
				if tc.refuse {
					refused(g, err, p.name)
				} else {
					g.Expect(err).NotTo(HaveOccurred(), way)
				}
			}
			g.Expect(p.Delete(t.Context(), object)).To(Succeed(), "deleting takes no verb of ours")
		})
	}
}

func label(o client.Object)    { o.SetLabels(map[string]string{"team": "a"}) }
func finalize(o client.Object) { o.SetFinalizers([]string{"example.com/held"}) }

// A person who gets the verb may change what was refused before.
func TestPolicies_changing_isTakenWithTheVerb(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	p := newPerson(t, env, here)
	object := existing(t, env, here, export("d"))
	p.may("export", "datakeys", here, "e")
	change := func(name string) error {
		changed := object.DeepCopy()
		changed.Spec.DataKeyRef.Name = v1alpha1.ObjectName(name)
		changed.Spec.PublicKey.Blob = "AQ=="
		return p.Update(t.Context(), changed, client.DryRunAll)
	}
	refused(g, change("d"), "DataKey d")
	g.Expect(change("e")).To(Succeed())
}

// What the message tells an administrator to do helps, word for word.
func TestPolicies_message_saysWhatHelps(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	p := newPerson(t, env, here)
	kubeconfig := env.Kubeconfig(t, nil, "default")
	for _, u := range build(t, "default") {
		if slices.Contains([]string{"keyconvoy-importedkey-user-role", "keyconvoy-datakey-exporter-role"}, u.GetName()) {
			g.Expect(env.Client.Create(t.Context(), u)).To(Succeed())
		}
	}
	for _, object := range []client.Object{dataKey("payments.v1"), export("ledger")} {
		err := p.tries(object)
		refused(g, err, p.name)
		_, command, _ := strings.Cut(err.Error(), "with: kubectl ")
		args := strings.Fields(strings.ReplaceAll(command, "USER", p.name))
		out, err := exec.CommandContext(t.Context(), env.Kubectl(), append([]string{"--kubeconfig", kubeconfig}, args...)...).CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), "%q: %s", args, out)
		g.Eventually(func() error { return p.tries(object) }).Should(Succeed())
	}
	g.Expect(p.tries(exportOfBlob())).To(Succeed(), "the role has both")
}

func TestPolicies_administratorsAreNotStopped(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	here := env.Namespace(t)
	for _, object := range []client.Object{dataKey("k"), export("d"), clusterExport(here, "d")} {
		existing(t, env, here, object)
	}
}

// The operator writes statuses without any verb of ours, and exports for ClusterExportedDataKeys.
func TestPolicies_operatorIsNotStopped(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	here := env.Namespace(t)
	role := find[rbacv1.ClusterRole](t, build(t, "default"), "ClusterRole", "keyconvoy-manager-role")
	p := &person{t: t, env: env, namespace: here, name: "system:serviceaccount:" + operatorNamespace + ":policies-test"}
	p.Client = env.As(t, p.name)
	name := here + "-manager"
	g.Expect(env.Client.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: role.Rules})).To(Succeed())
	g.Expect(env.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: p.name, APIGroup: rbacv1.GroupName}},
	})).To(Succeed())
	g.Eventually(func() error { return p.tries(export("d")) }).Should(Succeed())

	object := existing(t, env, here, exportOfBlob())
	before := object.DeepCopy()
	object.Status.RequestID = "r"
	g.Expect(p.Status().Patch(t.Context(), object, client.MergeFrom(before))).To(Succeed())
	// What it has no need for, it may not do either.
	refused(g, p.tries(exportOfBlob()))
}

// Who has the roles as they are installed may do this and no more.
func TestPolicies_withTheInstalledRoles(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	objects := build(t, "default")
	for sentence, tc := range map[string]struct {
		roles []string
		takes []client.Object
		not   []client.Object
	}{
		"an editor of data keys":                 {[]string{"datakey-editor"}, []client.Object{dataKey("k")}, []client.Object{export("d")}},
		"an editor of exports has no data key":   {[]string{"exporteddatakey-editor"}, nil, []client.Object{dataKey("k"), export("d"), exportOfBlob()}},
		"an admin of exports neither":            {[]string{"exporteddatakey-admin"}, nil, []client.Object{export("d"), exportOfBlob()}},
		"an exporter may write no export":        {[]string{"datakey-exporter"}, nil, []client.Object{export("d")}},
		"an editor of exports and exporter":      {[]string{"exporteddatakey-editor", "datakey-exporter"}, []client.Object{export("d"), exportOfBlob()}, []client.Object{export("d", "default"), dataKey("k")}},
		"an editor of data keys and of exports":  {[]string{"datakey-editor", "exporteddatakey-editor"}, []client.Object{dataKey("k")}, []client.Object{export("d"), exportOfBlob()}},
		"a user of keys and editor of exports":   {[]string{"importedkey-user", "exporteddatakey-editor"}, nil, []client.Object{export("d"), exportOfBlob()}},
		"an admin of keys may not use them even": {[]string{"importedkey-admin"}, nil, []client.Object{dataKey("k"), export("d")}},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			here := env.Namespace(t)
			p := &person{t: t, env: env, namespace: here, name: fmt.Sprintf("person-%d", people.Add(1))}
			p.Client = env.As(t, p.name)
			for _, role := range tc.roles {
				for _, rule := range find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-"+role+"-role").Rules {
					p.bind(here, rule)
				}
			}
			for _, object := range tc.takes {
				g.Expect(p.tries(object)).To(Succeed())
			}
			for _, object := range tc.not {
				g.Expect(apierrors.IsForbidden(p.tries(object))).To(BeTrue(), "%T", object)
			}
		})
	}
}

// A policy that cannot be evaluated lets nothing through, and each is in force.
func TestPolicies_areBoundAndFailClosed(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := build(t, "default")
	bound := map[string]bool{}
	for _, u := range objects {
		if u.GetKind() == "ValidatingAdmissionPolicyBinding" {
			b := find[admissionregistrationv1.ValidatingAdmissionPolicyBinding](t, objects, u.GetKind(), u.GetName())
			g.Expect(b.Spec.ValidationActions).To(ConsistOf(admissionregistrationv1.Deny))
			g.Expect(b.Spec.MatchResources).To(BeNil(), "in every namespace")
			bound[b.Spec.PolicyName] = true
		}
	}
	n := 0
	for _, u := range objects {
		if u.GetKind() == "ValidatingAdmissionPolicy" {
			n++
			p := find[admissionregistrationv1.ValidatingAdmissionPolicy](t, objects, u.GetKind(), u.GetName())
			g.Expect(*p.Spec.FailurePolicy).To(Equal(admissionregistrationv1.Fail))
			g.Expect(bound).To(HaveKey(p.Name))
			for _, rule := range p.Spec.MatchConstraints.ResourceRules {
				g.Expect(rule.APIGroups).To(Equal([]string{group}), "other people's objects are not ours to stop")
			}
		}
	}
	g.Expect(n).To(Equal(len(bound)))
	g.Expect(n).To(Equal(3))
}

// attributes are one thing that a rule allows.
func attributes(namespace string, rule rbacv1.PolicyRule) (what authorizationv1.ResourceAttributes) {
	what.Namespace, what.Group, what.Verb, what.Resource = namespace, rule.APIGroups[0], rule.Verbs[0], rule.Resources[0]
	if resource, subresource, found := strings.Cut(what.Resource, "/"); found {
		what.Resource, what.Subresource = resource, subresource
	}
	if len(rule.ResourceNames) > 0 {
		what.Name = rule.ResourceNames[0]
	}
	return what
}
