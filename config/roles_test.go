package config_test

import (
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// plurals of the kinds by the name that their roles have.
var plurals = map[string]string{
	"clusterkeystore":        "clusterkeystores",
	"keystore":               "keystores",
	"importedkey":            "importedkeys",
	"datakey":                "datakeys",
	"exporteddatakey":        "exporteddatakeys",
	"clusterexporteddatakey": "clusterexporteddatakeys",
}

var (
	reading = []string{"get", "list", "watch"}
	writing = []string{"create", "update", "patch", "delete"}
	verbs   = append(slices.Concat(reading, writing), "deletecollection")
)

// Real users with the real roles, asked of the server's own authorizer.
func TestRoles_allowWhatTheyAreCalled(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	objects := build(t, "default")
	for singular, plural := range plurals {
		for role, allowed := range map[string][]string{
			"viewer": reading,
			"editor": slices.Concat(reading, writing),
			"admin":  verbs,
		} {
			t.Run(singular+" "+role, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				name := "keyconvoy-" + singular + "-" + role + "-role"
				user, ns := name+"-user", ""
				clusterRole := find[rbacv1.ClusterRole](t, objects, "ClusterRole", name)
				g.Expect(env.Client.Create(t.Context(), clusterRole)).To(Succeed())
				subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: user, APIGroup: rbacv1.GroupName}}
				ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
				if strings.HasPrefix(singular, "cluster") {
					g.Expect(env.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{
						ObjectMeta: metav1.ObjectMeta{Name: user}, Subjects: subjects, RoleRef: ref,
					})).To(Succeed())
				} else {
					ns = env.Namespace(t)
					g.Expect(env.Client.Create(t.Context(), &rbacv1.RoleBinding{
						ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "b"}, Subjects: subjects, RoleRef: ref,
					})).To(Succeed())
				}
				may := func(verb, resource, subresource, namespace string) bool {
					return mayDo(t, env, user, authorizationv1.ResourceAttributes{
						Group: v1alpha1.GroupVersion.Group, Resource: resource, Subresource: subresource, Verb: verb, Namespace: namespace,
					})
				}
				// The authorizer hears of a binding a moment later.
				g.Eventually(func() bool { return may("get", plural, "", ns) }).Should(BeTrue())

				for _, verb := range verbs {
					g.Expect(may(verb, plural, "", ns)).To(Equal(slices.Contains(allowed, verb)), "%s %s", verb, plural)
					g.Expect(may(verb, plural, "status", ns)).To(Equal(verb == "get"), "%s of the status", verb)
					if ns != "" {
						g.Expect(may(verb, plural, "", "default")).To(BeFalse(), "%s in another namespace", verb)
					}
					for _, other := range plurals {
						if other != plural {
							g.Expect(may(verb, other, "", ns)).To(BeFalse(), "%s %s", verb, other)
						}
					}
				}
			})
		}
	}
}

func mayDo(t testing.TB, env *testenv.Env, user string, what authorizationv1.ResourceAttributes) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: &what},
	}
	if err := env.Client.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

// What the built-in roles get when the cluster adds up the labels. A user who creates an ExportedDataKey
// can read data keys; one who changes a ClusterKeyStore decides over the keys of all namespaces.
func TestRoles_areAddedToTheBuiltInOnesWhereThatIsSafe(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	writers := map[string][]string{} // by built-in role: what may be created
	readers := map[string][]string{}
	inherits := map[string][]string{"view": {"view", "edit", "admin"}, "edit": {"edit", "admin"}, "admin": {"admin"}}
	for _, u := range build(t, "default") {
		if u.GetKind() != "ClusterRole" {
			continue
		}
		role := find[rbacv1.ClusterRole](t, []*unstructured.Unstructured{u}, "ClusterRole", u.GetName())
		for builtin, into := range inherits {
			if role.Labels["rbac.authorization.k8s.io/aggregate-to-"+builtin] != "true" {
				continue
			}
			for _, rule := range role.Rules {
				for _, to := range into {
					if slices.Contains(rule.Verbs, "create") {
						writers[to] = append(writers[to], rule.Resources...)
					}
					if slices.Contains(rule.Verbs, "list") {
						readers[to] = append(readers[to], rule.Resources...)
					}
				}
			}
		}
	}
	unique := func(names []string) []string {
		slices.Sort(names)
		return slices.Compact(names)
	}
	everything := []string{"accesskeys", "clusterexporteddatakeys", "clusterkeystores", "datakeys", "exporteddatakeys", "generatedkeys", "importedkeys", "keystores"}
	for _, builtin := range []string{"view", "edit", "admin"} {
		g.Expect(unique(readers[builtin])).To(Equal(everything), builtin)
	}
	g.Expect(writers["view"]).To(BeEmpty())
	g.Expect(unique(writers["edit"])).To(Equal([]string{"datakeys"}))
	g.Expect(unique(writers["admin"])).To(Equal([]string{"accesskeys", "datakeys", "generatedkeys", "importedkeys", "keystores"}))
}

// The operator has what it uses and no more: nothing by wildcard, nothing that would let it give itself
// more, and no Secret by list of all but where it must watch.
func TestManagerRole_isNarrow(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	role := find[rbacv1.ClusterRole](t, build(t, "default"), "ClusterRole", "keyconvoy-manager-role")
	g.Expect(role.Rules).NotTo(BeEmpty())
	for _, rule := range role.Rules {
		for _, list := range [][]string{rule.APIGroups, rule.Resources, rule.Verbs} {
			g.Expect(list).NotTo(ContainElement("*"))
		}
		g.Expect(rule.Verbs).NotTo(ContainElements("escalate"))
		g.Expect(rule.Verbs).NotTo(ContainElements("bind"))
		g.Expect(rule.Verbs).NotTo(ContainElements("impersonate"))
		g.Expect(rule.Verbs).NotTo(ContainElements("deletecollection"))
		for _, resource := range rule.Resources {
			g.Expect(resource).NotTo(BeElementOf("pods", "pods/exec", "serviceaccounts/token", "nodes", "roles", "clusterroles", "rolebindings", "clusterrolebindings"))
			// Keys are people's: the operator neither makes nor deletes them.
			if slices.Contains([]string{"clusterkeystores", "keystores", "importedkeys", "datakeys"}, resource) {
				g.Expect(rule.Verbs).NotTo(Or(ContainElement("create"), ContainElement("delete")), resource)
			}
			if resource == "configmaps" {
				g.Expect(rule.Verbs).To(HaveEach(BeElementOf("get", "list", "watch")), "ConfigMaps are read only")
			}
		}
	}
}

// The operator's own account, with everything bound as installed.
func TestManager_mayLeadInItsOwnNamespaceOnly(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	objects := build(t, "default")
	ensureNamespaces(t, env.Client, objects)
	for _, u := range objects {
		// The roles of people have tests of their own.
		name := u.GetName()
		if slices.Contains([]string{"Role", "RoleBinding", "ClusterRoleBinding"}, u.GetKind()) ||
			u.GetKind() == "ClusterRole" && slices.Contains([]string{"keyconvoy-manager-role", "keyconvoy-metrics-auth-role"}, name) {
			g.Expect(env.Client.Create(t.Context(), u.DeepCopy())).To(Succeed(), name)
		}
	}
	account := "system:serviceaccount:" + operatorNamespace + ":keyconvoy-controller-manager"
	may := func(verb, group, resource, namespace string) func() bool {
		return func() bool {
			return mayDo(t, env, account, authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Namespace: namespace})
		}
	}
	for _, allowed := range []func() bool{
		may("create", "coordination.k8s.io", "leases", operatorNamespace),
		may("update", "coordination.k8s.io", "leases", operatorNamespace),
		may("create", "", "events", operatorNamespace),
		may("create", "authentication.k8s.io", "tokenreviews", ""),
		may("create", "authorization.k8s.io", "subjectaccessreviews", ""),
		may("watch", "keyconvoy.io", "exporteddatakeys", "team-a"),
		may("patch", "", "secrets", "team-a"),
		may("export", "keyconvoy.io", "datakeys", "team-a"),
	} {
		g.Eventually(allowed).Should(BeTrue())
	}
	for _, forbidden := range []func() bool{
		may("update", "coordination.k8s.io", "leases", "default"),
		may("create", "", "pods", operatorNamespace),
		may("create", "", "serviceaccounts/token", operatorNamespace),
		may("delete", "", "namespaces", ""),
		may("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
		may("export", "keyconvoy.io", "importedkeys", "team-a"),
	} {
		g.Expect(forbidden()).To(BeFalse())
	}
}
