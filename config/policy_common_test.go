package config_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	. "github.com/onsi/gomega"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
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
	for _, object := range []client.Object{dataKey("key"), export("data-key"), clusterExport(p.namespace, "data-key"), keyStore("module")} {
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
	switch object.(type) {
	case *v1alpha1.ClusterExportedDataKey, *v1alpha1.ClusterKeyStore:
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

// underGenerated puts a DataKey, or the blob of an export, under the GeneratedKey of the same name.
func underGenerated[T client.Object](object T) T {
	switch o := any(object).(type) {
	case *v1alpha1.DataKey:
		o.Spec.KeyRef.Kind = "GeneratedKey"
	case *v1alpha1.ExportedDataKey:
		o.Spec.KeyRef.Kind = "GeneratedKey"
	}
	return object
}

// export exports a DataKey, of another namespace when one is given.
func export(dataKey string, namespace ...string) *v1alpha1.ExportedDataKey {
	return &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Name: "object"},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef: &v1alpha1.DataKeyReference{
				Name: v1alpha1.ObjectName(dataKey), Namespace: v1alpha1.NamespaceName(strings.Join(namespace, "")),
			},
			PublicKey:       v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="},
			WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
		},
	}
}

// exportOfBlob exports an inline blob under that key, of another namespace when one is given.
func exportOfBlob(key string, namespace ...string) *v1alpha1.ExportedDataKey {
	e := export("")
	e.Spec.DataKeyRef, e.Spec.CiphertextBlob = nil, "AA=="
	e.Spec.KeyRef = &v1alpha1.MasterKeyReference{Kind: "ImportedKey", Name: v1alpha1.ObjectName(key), Namespace: v1alpha1.NamespaceName(strings.Join(namespace, ""))}
	return e
}

func keyStore(module string) *v1alpha1.KeyStore {
	return &v1alpha1.KeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: "object"},
		Spec:       v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{Module: module, Token: v1alpha1.TokenSelector{Label: "token"}}},
	}
}

func softwareStore() *v1alpha1.KeyStore {
	s := keyStore("")
	s.Spec = v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}
	return s
}

func clusterKeyStore(here, module string) *v1alpha1.ClusterKeyStore {
	return &v1alpha1.ClusterKeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: here}, // which is one test's own
		Spec:       v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: keyStore(module).Spec},
	}
}

// takeover is a DataKey that takes an existing data key over.
func takeover(key string) *v1alpha1.DataKey {
	k := dataKey(key)
	k.Spec.CiphertextBlob = "AA=="
	return k
}

func clusterExport(namespace, dataKey string) *v1alpha1.ClusterExportedDataKey {
	return &v1alpha1.ClusterExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Name: namespace}, // which is one test's own
		Spec: v1alpha1.ClusterExportedDataKeySpec{
			NamespaceSelector: v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"team": v1alpha1.LabelValue(namespace)}},
			Template: v1alpha1.ExportTemplate{
				DataKeyRef: v1alpha1.NamespacedReference{Namespace: v1alpha1.NamespaceName(namespace), Name: v1alpha1.ObjectName(dataKey)},
				PublicKey:  v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="}, WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
			},
		},
	}
}

// refused checks that an object was refused by a policy, which says these words.
func refused(g Gomega, err error, words ...string) {
	g.ExpectWithOffset(1, apierrors.IsForbidden(err)).To(BeTrue(), "%v", err)
	for _, w := range append(words, "ValidatingAdmissionPolicy", "with: kubectl ") {
		g.ExpectWithOffset(1, err).To(MatchError(ContainSubstring(w)))
	}
}

// existing makes an object as an administrator, who has every verb.
func existing[T client.Object](t testing.TB, env *testenv.Env, namespace string, object T) T {
	t.Helper()
	switch client.Object(object).(type) {
	case *v1alpha1.ClusterExportedDataKey, *v1alpha1.ClusterKeyStore:
	default:
		object.SetNamespace(namespace)
	}
	if err := env.Client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	return object
}

// owned gives an object an owner of that name.
func owned(o client.Object, name string) client.Object {
	o.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: group + "/v1alpha1", Kind: "ClusterExportedDataKey", Name: name, UID: "00000000-0000-4000-8000-000000000000", Controller: ptr.To(true),
	}})
	return o
}

func label(o client.Object) { o.SetLabels(map[string]string{"team": "a"}) }

func finalize(o client.Object) { o.SetFinalizers([]string{"example.com/held"}) }

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
