package config_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestKeyStorePolicy_creating_takesTheVerbOnTheModule(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	everywhere, here := "", "here"
	for sentence, tc := range map[string]struct {
		verb  string
		in    string // the namespace of the verb
		names []string
		allow bool
	}{
		"without the verb":                         {"get", everywhere, nil, false},
		"with the verb on another module":          {"use", everywhere, []string{"other"}, false},
		"with another verb":                        {"export", everywhere, []string{"hsm"}, false},
		"with the verb in the namespace only":      {"use", here, []string{"hsm"}, false},
		"with the verb on the module":              {"use", everywhere, []string{"hsm"}, true},
		"with the verb on all modules":             {"use", everywhere, nil, true},
		"with the verb on two modules, this one":   {"use", everywhere, []string{"hsm", "other"}, true},
		"with the verb on a module of like a name": {"use", everywhere, []string{"hsm2"}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPerson(t, env, env.Namespace(t))
			in := tc.in
			if in == here {
				in = p.namespace
			}
			p.may(tc.verb, "pkcs11modules", in, tc.names...)
			for _, object := range []client.Object{keyStore("hsm"), clusterKeyStore(p.namespace, "hsm")} {
				err := p.tries(object)
				if tc.allow {
					g.Expect(err).NotTo(HaveOccurred())
					continue
				}
				refused(g, err, p.name, "the verb use", "on hsm", "resources: [pkcs11modules], resourceNames: [hsm], verbs: [use]")
			}
			g.Expect(p.tries(softwareStore())).To(Succeed(), "the embedded store has no library")
		})
	}
}

// The verb is checked for what spec.pkcs11 says, not for what it does not touch.
func TestKeyStorePolicy_changing_takesTheVerbWhereTheLibraryIsConcerned(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	type change func(*v1alpha1.KeyStoreSpec)
	for sentence, tc := range map[string]struct {
		change change
		refuse bool
	}{
		"another module":       {func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Module = "other" }, true},
		"another token":        {func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Token.Label = "other" }, true},
		"another serial":       {func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Token.Serial = "1" }, true},
		"another PIN's Secret": {func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.PINSecretRef = &v1alpha1.EntryReference{Name: "s", Key: "k"} }, true},
		"more sessions":        {func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.MaxSessions = 100 }, true},
		"another custody":      {func(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly }, false},
		"nothing at all":       {func(*v1alpha1.KeyStoreSpec) {}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPerson(t, env, env.Namespace(t))
			store := existing(t, env, p.namespace, keyStore("hsm"))
			ofAll := existing(t, env, p.namespace, clusterKeyStore(p.namespace, "hsm"))
			changed, changedOfAll := store.DeepCopy(), ofAll.DeepCopy()
			tc.change(&changed.Spec)
			tc.change(&changedOfAll.Spec.KeyStoreSpec)
			for way, err := range map[string]error{
				"patch":          p.Patch(t.Context(), changed.DeepCopy(), client.MergeFrom(store), client.DryRunAll),
				"update":         p.Update(t.Context(), changed.DeepCopy(), client.DryRunAll),
				"cluster patch":  p.Patch(t.Context(), changedOfAll.DeepCopy(), client.MergeFrom(ofAll), client.DryRunAll),
				"cluster update": p.Update(t.Context(), changedOfAll.DeepCopy(), client.DryRunAll),
			} {
				if tc.refuse {
					refused(g, err, p.name, "the verb use")
				} else {
					g.Expect(err).NotTo(HaveOccurred(), way)
				}
			}
			// Labels, finalizers and deletion are no matter of the library.
			labelled := store.DeepCopy()
			label(labelled)
			finalize(labelled)
			g.Expect(p.Update(t.Context(), labelled, client.DryRunAll)).To(Succeed())
			g.Expect(p.Delete(t.Context(), store)).To(Succeed())
		})
	}
}

// The command of the message is one that helps, word for word.
func TestKeyStorePolicy_message_saysWhatHelps(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := withPolicies(t)
	p := newPerson(t, env, env.Namespace(t))
	role := find[rbacv1.ClusterRole](t, build(t, "default"), "ClusterRole", "keyconvoy-pkcs11module-user-role")
	g.Expect(client.IgnoreAlreadyExists(env.Client.Create(t.Context(), role))).To(Succeed())
	err := p.tries(keyStore("hsm"))
	refused(g, err, p.name)
	_, command, _ := strings.Cut(err.Error(), "with: kubectl ")
	args := append([]string{"--kubeconfig", env.Kubeconfig(t, nil, "default")}, strings.Fields(strings.ReplaceAll(command, "USER", p.name))...)
	out, err := exec.CommandContext(t.Context(), env.Kubectl(), args...).CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), "%q: %s", args, out)
	g.Eventually(func() error { return p.tries(keyStore("hsm")) }).Should(Succeed())
}

// No role but the one for it has the verb, and no built-in role gets it by aggregation.
func TestKeyStorePolicy_theVerb_isInNoOtherRole(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var holders []string
	for _, u := range build(t, "default") {
		if u.GetKind() != "ClusterRole" && u.GetKind() != "Role" {
			continue
		}
		for _, rule := range find[rbacv1.ClusterRole](t, []*unstructured.Unstructured{u}, u.GetKind(), u.GetName()).Rules {
			if slices.Contains(rule.Resources, "pkcs11modules") || slices.Contains(rule.Resources, "*") {
				holders = append(holders, u.GetName())
				for name := range u.GetLabels() {
					g.Expect(name).NotTo(ContainSubstring("aggregate-to"), u.GetName())
				}
			}
		}
	}
	g.Expect(holders).To(Equal([]string{"keyconvoy-pkcs11module-user-role"}))
}

// Who has the roles as they are installed may write key stores of the embedded kind only.
func TestKeyStorePolicy_withTheInstalledRoles(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	objects := build(t, "default")
	for _, role := range []string{"keystore-editor", "keystore-admin", "clusterkeystore-editor", "clusterkeystore-admin"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			p := newPerson(t, env, env.Namespace(t))
			in, object := p.namespace, client.Object(keyStore("hsm"))
			if strings.HasPrefix(role, "cluster") {
				in, object = "", clusterKeyStore(p.namespace, "hsm")
			}
			for _, rule := range find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-"+role+"-role").Rules {
				p.bind(in, rule)
			}
			refused(g, p.tries(object), p.name)
			for _, rule := range find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-pkcs11module-user-role").Rules {
				p.bind("", rule)
			}
			g.Expect(p.tries(object)).To(Succeed())
		})
	}
}
