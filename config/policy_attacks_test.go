package config_test

import (
	"fmt"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Ada edits data keys and exports in team-b with the roles as they are installed, and may export the DataKey ledger there.
func TestPolicies_attacksByAnEditor_areRefused(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	objects := build(t, "default")
	teamA, teamB := env.Namespace(t), env.Namespace(t)
	ada := &person{t: t, env: env, namespace: teamB, name: fmt.Sprintf("ada-%d", people.Add(1))}
	ada.Client = env.As(t, ada.name)
	for _, role := range []string{"datakey-editor", "exporteddatakey-editor"} {
		for _, rule := range find[rbacv1.ClusterRole](t, objects, "ClusterRole", "keyconvoy-"+role+"-role").Rules {
			ada.bind(teamB, rule)
		}
	}
	ada.may("export", "datakeys", teamB, "ledger")
	named := func(k *v1alpha1.DataKey, name string) *v1alpha1.DataKey {
		k.Name = name
		return k
	}
	made := owned(export("payroll"), "maker").(*v1alpha1.ExportedDataKey)
	made.Name = "maker"
	child := existing(t, env, teamB, made)
	detach := func(change func(client.Object)) error {
		changed := child.DeepCopy()
		change(changed)
		return ada.Patch(t.Context(), changed, client.MergeFrom(child), client.DryRunAll)
	}
	marked := export("ledger")
	marked.Spec.Target = &v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{
		Labels: map[string]v1alpha1.MetadataValue{"argocd.argoproj.io/secret-type": "cluster"},
	}}

	g := NewWithT(t)
	g.Expect(ada.tries(export("ledger"))).To(Succeed(), "this is what she may do")
	g.Expect(ada.tries(named(dataKey("k"), "ledger"))).To(Succeed(), "and this")
	for attack, err := range map[string]error{
		"a blob of a key of team-a":                       ada.tries(exportOfBlob("k", teamA)),
		"a blob of a key of her own namespace":            ada.tries(exportOfBlob("k")),
		"the name ledger for another data key's blob":     ada.tries(named(takeover("k"), "ledger")),
		"an export taken out of what made it":             detach(func(o client.Object) { o.SetOwnerReferences(nil) }),
		"an export given to an owner that does not exist": detach(func(o client.Object) { owned(o, "mine") }),
		"a Secret that Argo CD acts on":                   ada.tries(marked),
	} {
		g.Expect(apierrors.IsForbidden(err)).To(BeTrue(), "%s: %v", attack, err)
		refused(g, err, ada.name)
	}
}

// The verb export is granted on names. A key that is adopted under another name would bring its data keys under that name.
func TestPolicies_adopting_takesTheVerbOnAllKeysOfTheNamespace(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	namespace := env.Namespace(t)
	adopting := func() *v1alpha1.ImportedKey {
		return &v1alpha1.ImportedKey{
			ObjectMeta: metav1.ObjectMeta{Name: "object"},
			Spec: v1alpha1.ImportedKeySpec{
				KeyStoreRef:      v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"},
				KeySpec:          "AES_256",
				ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256"},
				Adopt:            &v1alpha1.AdoptSpec{KeyVersionID: "45c48cce-2e2d-5fbd-8a1b-2c3d4e5f6a7b"},
			},
		}
	}
	fresh, named, typed := adopting(), adopting(), adopting()
	fresh.Spec.Adopt = nil
	named.Spec.Adopt = &v1alpha1.AdoptSpec{Type: v1alpha1.AdoptByName}
	typed.Spec.Adopt.Type = v1alpha1.AdoptByVersion

	g := NewWithT(t)
	p := newPerson(t, env, namespace)
	p.may("export", "importedkeys", namespace, "object")
	g.Expect(p.tries(fresh)).To(Succeed(), "a key of one's own")
	g.Expect(p.tries(named)).To(Succeed(), "the key of its former object, with the name to which the verbs belong")
	refused(g, p.tries(adopting()), p.name, namespace)
	refused(g, p.tries(typed), p.name, namespace)
	p.may("export", "importedkeys", namespace)
	g.Eventually(func() error { return p.tries(adopting()) }).Should(Succeed())
	g.Expect(p.tries(typed)).To(Succeed())
}

func TestPolicies_adoptingVersions_takesTheVerbOnAllGeneratedKeysOfTheNamespace(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	namespace := env.Namespace(t)
	adopting := func(adopt *v1alpha1.AdoptVersionsSpec) *v1alpha1.GeneratedKey {
		return &v1alpha1.GeneratedKey{
			ObjectMeta: metav1.ObjectMeta{Name: "object"},
			Spec: v1alpha1.GeneratedKeySpec{
				KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"}, KeySpec: "AES_256", Adopt: adopt,
			},
		}
	}
	versions := &v1alpha1.AdoptVersionsSpec{Type: v1alpha1.AdoptByVersion, KeyVersionIDs: []v1alpha1.KeyVersionID{"45c48cce-2e2d-5fbd-8a1b-2c3d4e5f6a7b"}}
	g := NewWithT(t)
	p := newPerson(t, env, namespace)
	p.may("export", "generatedkeys", namespace, "object")
	p.may("export", "importedkeys", namespace)
	g.Expect(p.tries(adopting(nil))).To(Succeed(), "a key of one's own")
	g.Expect(p.tries(adopting(&v1alpha1.AdoptVersionsSpec{Type: v1alpha1.AdoptByName}))).To(Succeed())
	refused(g, p.tries(adopting(versions)), p.name, namespace)
	p.may("export", "generatedkeys", namespace)
	g.Eventually(func() error { return p.tries(adopting(versions)) }).Should(Succeed())
}

// The operator keeps the metadata of every tenant's objects in memory.
func TestPolicies_metadata_isBounded(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	namespace := env.Namespace(t)
	p := newPerson(t, env, namespace)
	p.may("use", "importedkeys", namespace)
	with := func(change func(*v1alpha1.DataKey, int), n int) error {
		k := dataKey("key")
		for i := range n {
			change(k, i)
		}
		return p.tries(k)
	}
	finalizer := func(k *v1alpha1.DataKey, i int) {
		k.Finalizers = append(k.Finalizers, fmt.Sprintf("example.com/f%d", i))
	}
	owner := func(k *v1alpha1.DataKey, i int) {
		k.OwnerReferences = append(k.OwnerReferences, metav1.OwnerReference{
			APIVersion: "example.com/v1", Kind: "Owner", Name: "o", UID: types.UID(fmt.Sprintf("owner-%d", i)),
		})
	}
	g := NewWithT(t)
	long := func(k *v1alpha1.DataKey, i int) {
		k.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "example.com/v1", Kind: "Owner", Name: "o", UID: types.UID(strings.Repeat("u", 113+i)),
		}}
	}
	g.Expect(with(func(k *v1alpha1.DataKey, i int) {
		if finalizer(k, i); i == 0 { // which the operator must be able to add to any
			k.Finalizers = append(k.Finalizers, "keyconvoy.io/key", "keyconvoy.io/key-store")
		}
	}, 16)).To(Succeed())
	for what, change := range map[string]func(*v1alpha1.DataKey, int){"too long": long, "at most 16 finalizers": finalizer, "at most 16 owners": owner} {
		g.Expect(with(change, 16)).To(Succeed())
		g.Expect(with(change, 17)).To(MatchError(ContainSubstring(what)))
	}
}

// An access key has the permissions of its ServiceAccount.
func TestPolicies_accessKey_takesTheRightToTheTokensOfItsAccount(t *testing.T) {
	t.Parallel()
	env := withPolicies(t)
	namespace := env.Namespace(t)
	key := &v1alpha1.AccessKey{ObjectMeta: metav1.ObjectMeta{Name: "object"}, Spec: v1alpha1.AccessKeySpec{ServiceAccountName: "admin"}}
	g := NewWithT(t)
	p := newPerson(t, env, namespace)
	p.bind(namespace, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, Verbs: []string{"create"}, ResourceNames: []string{"app"}})
	g.Eventually(func() error { return p.tries(key) }).Should(MatchError(apierrors.IsForbidden, "forbidden"))
	refused(g, p.tries(key), p.name, namespace, "serviceaccounts/token")
	key.Spec.ServiceAccountName = "app"
	g.Expect(p.tries(key)).To(Succeed())
}
