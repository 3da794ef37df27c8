// Package pods has what tests of pods that get data keys share: a cluster with the policies in force, an operator with a data
// key, and ServiceAccounts with the roles that the documentation names. Only tests import it.
package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/controllers"
	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// DataKey is the name of the data key of each Cluster.
const DataKey = "ledger"

// Cluster is an operator that serves the test's namespace, with the DataKey there.
type Cluster struct {
	*harness.Operator
	tb testing.TB
}

// Start starts an operator, and makes a key store, a key and the data key.
func Start(t *testing.T, options ...harness.Option) *Cluster {
	t.Helper()
	env := testenv.Start(t)
	applyPolicies(t, env)
	// The objects that pods create do not have the mark of a test's operator, so this one is limited to namespaces.
	limited := harness.WithManager(func(o *harness.Operator, m *ctrl.Options) {
		m.Cache = controllers.CacheOptions()
		controllers.Namespaces{o.OwnNamespace, o.Namespace}.Limit(m)
	})
	c := &Cluster{harness.Run(t, env, append([]harness.Option{limited}, options...)...), t}
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}}
	key := &v1alpha1.GeneratedKey{ObjectMeta: metav1.ObjectMeta{Name: "key"}, Spec: v1alpha1.GeneratedKeySpec{
		KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"}, KeySpec: "AES_256",
	}}
	c.Make(t, store, key)
	c.Ready(t, key)
	c.MakeDataKey()
	return c
}

// MakeDataKey makes the data key, which must not exist.
func (c *Cluster) MakeDataKey() *v1alpha1.DataKey {
	c.tb.Helper()
	k := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Name: DataKey}, Spec: v1alpha1.DataKeySpec{
		KeyRef: v1alpha1.KeyReference{Kind: "GeneratedKey", Name: "key"},
	}}
	c.Make(c.tb, k)
	c.Ready(c.tb, k)
	return k
}

// ReplaceDataKey deletes the data key, with its Secret, and makes another one with the name.
func (c *Cluster) ReplaceDataKey() {
	c.tb.Helper()
	meta := metav1.ObjectMeta{Namespace: c.Namespace, Name: DataKey}
	for _, object := range []client.Object{&v1alpha1.DataKey{ObjectMeta: meta}, &corev1.Secret{ObjectMeta: meta}} {
		if err := c.Delete(c.tb.Context(), object); err != nil {
			c.tb.Fatal(err)
		}
	}
	c.MakeDataKey()
}

// Plaintext returns the data key, as a recipient with the administrator's permissions gets it.
func (c *Cluster) Plaintext() []byte {
	c.tb.Helper()
	pair, err := fetch.Generate(c.tb.Context(), wrapping.ECSM2)
	if err != nil {
		c.tb.Fatal(err)
	}
	e := &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "plaintext-", Namespace: c.Namespace},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:      &v1alpha1.DataKeyReference{Name: DataKey},
			PublicKey:       v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: pair.Public().Base64()},
			WrappingKeySpec: "EC_SM2", WrappingAlgorithm: "SM2PKE",
		},
	}
	c.Make(c.tb, e)
	c.Ready(c.tb, e)
	secret := &corev1.Secret{}
	if err := c.Get(c.tb.Context(), client.ObjectKeyFromObject(e), secret); err != nil {
		c.tb.Fatal(err)
	}
	plain, err := pair.Unwrap(wrapping.SM2PKE, "", secret.Data["exportedDataKey"])
	if err != nil {
		c.tb.Fatal(err)
	}
	c.Hide("the data key", plain)
	if err := c.Delete(c.tb.Context(), e); err != nil {
		c.tb.Fatal(err)
	}
	return plain
}

// Exports returns the ExportedDataKeys of the test's namespace.
func (c *Cluster) Exports() []v1alpha1.ExportedDataKey {
	c.tb.Helper()
	var all v1alpha1.ExportedDataKeyList
	if err := c.List(c.tb.Context(), &all, client.InNamespace(c.Namespace)); err != nil {
		c.tb.Fatal(err)
	}
	return all.Items
}

// Permission is a rule on resources of keyconvoy.io.
type Permission struct {
	Resource string
	Verbs    []string
	Names    []string
}

// The permissions of a pod that gets the data key, as documented.
var (
	MayExport  = Permission{Resource: "datakeys", Verbs: []string{"export"}, Names: []string{DataKey}}
	MayRequest = Permission{Resource: "exporteddatakeys", Verbs: []string{"create", "watch", "delete"}}
	MayFollow  = Permission{Resource: "datakeys", Verbs: []string{"watch"}, Names: []string{DataKey}}
)

var accounts atomic.Int64

// Account makes a ServiceAccount with these permissions in the test's namespace, and returns its name.
func (c *Cluster) Account(permissions ...Permission) string {
	c.tb.Helper()
	name := fmt.Sprintf("account-%d", accounts.Add(1))
	meta := metav1.ObjectMeta{Namespace: c.Namespace, Name: name}
	role := &rbacv1.Role{ObjectMeta: meta}
	for _, p := range permissions {
		role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{p.Resource}, Verbs: p.Verbs, ResourceNames: p.Names})
	}
	for _, object := range []client.Object{
		&corev1.ServiceAccount{ObjectMeta: meta}, role,
		&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: c.Namespace, Name: name}}},
	} {
		if err := c.Create(c.tb.Context(), object); err != nil {
			c.tb.Fatal(err)
		}
	}
	c.awaitPermissions(name, permissions)
	return name
}

// awaitPermissions waits until the API server knows of a ServiceAccount's permissions.
func (c *Cluster) awaitPermissions(account string, permissions []Permission) {
	c.tb.Helper()
	for _, p := range permissions {
		for _, verb := range p.Verbs {
			what := authorizationv1.ResourceAttributes{Group: v1alpha1.GroupVersion.Group, Resource: p.Resource, Namespace: c.Namespace, Verb: verb}
			if len(p.Names) > 0 {
				what.Name = p.Names[0]
			}
			harness.Eventually(c.tb, func() string {
				review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
					User: "system:serviceaccount:" + c.Namespace + ":" + account, ResourceAttributes: &what,
				}}
				if err := c.Create(c.tb.Context(), review); err != nil {
					return err.Error()
				}
				if !review.Status.Allowed {
					return "the role is not in force"
				}
				return ""
			})
		}
	}
}

// Token returns a token of a ServiceAccount.
func (c *Cluster) Token(account string) string {
	c.tb.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: account}}
	request := &authenticationv1.TokenRequest{}
	if err := c.SubResource("token").Create(c.tb.Context(), sa, request); err != nil {
		c.tb.Fatal(err)
	}
	return request.Status.Token
}

// Config returns the configuration of a client with nothing but the token of a ServiceAccount.
func (c *Cluster) Config(account string) *rest.Config {
	c.tb.Helper()
	cfg := rest.AnonymousClientConfig(c.Env.Config)
	cfg.BearerToken, cfg.QPS = c.Token(account), -1
	return cfg
}

// Pod makes a pod, which no node runs.
func (c *Cluster) Pod(name, account string) fetch.Pod {
	c.tb.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: name},
		Spec:       corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	if err := c.Create(c.tb.Context(), pod); err != nil {
		c.tb.Fatal(err)
	}
	return fetch.Pod{Namespace: c.Namespace, Name: name, UID: pod.UID}
}

// RemovePod removes a pod, without a grace period.
func (c *Cluster) RemovePod(name string) {
	c.tb.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: name}}
	if err := c.Delete(c.tb.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		c.tb.Fatal(err)
	}
}

// Request is that of a pod for the data key.
func (c *Cluster) Request(pod fetch.Pod) fetch.Request {
	return fetch.Request{DataKey: types.NamespacedName{Namespace: c.Namespace, Name: DataKey}, Pod: pod,
		KeySpec: wrapping.ECSM2, Algorithm: wrapping.SM2PKE}
}

var policies struct {
	sync.Mutex
	applied bool
}

// applyPolicies puts the policies about exports in force.
func applyPolicies(t testing.TB, env *testenv.Env) {
	t.Helper()
	policies.Lock()
	defer policies.Unlock()
	if policies.applied {
		return
	}
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"exporteddatakey.yaml", "metadata.yaml"} {
		text, err := os.ReadFile(filepath.Join(root, "config", "policy", name))
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			object := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(document), &object.Object); err != nil {
				t.Fatal(err)
			}
			if err := client.IgnoreAlreadyExists(env.Client.Create(t.Context(), object)); err != nil {
				t.Fatal(err)
			}
		}
	}
	awaitPolicies(t, env)
	policies.applied = true
}

// awaitPolicies waits until the API server denies an export to someone who may only create the object.
func awaitPolicies(t testing.TB, env *testenv.Env) {
	t.Helper()
	const user = "someone-without-export"
	ns := env.Namespace(t)
	meta := metav1.ObjectMeta{Namespace: ns, Name: user}
	for _, object := range []client.Object{
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1alpha1.GroupVersion.Group}, Resources: []string{"exporteddatakeys"}, Verbs: []string{"create"}}}},
		&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}}},
	} {
		if err := env.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	c := env.As(t, user)
	harness.Eventually(t, func() string {
		err := c.Create(t.Context(), &v1alpha1.ExportedDataKey{ObjectMeta: meta, Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:      &v1alpha1.DataKeyReference{Name: DataKey},
			PublicKey:       v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="},
			WrappingKeySpec: "EC_SM2", WrappingAlgorithm: "SM2PKE",
		}}, client.DryRunAll)
		if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "requires the verb export") {
			return ""
		}
		return fmt.Sprintf("the policies are not in force: %v", err)
	})
}
