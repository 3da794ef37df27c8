package controllers_test

import (
	"bytes"
	"encoding/base64"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// startWithKey starts an operator on the software store with one Enabled key, named key.
func startWithKey(t *testing.T, options ...harness.Option) *operator {
	t.Helper()
	o := startOperator(t, options...)
	o.store(t, onSoftware)
	o.enabledKey(t, "key", nil)
	return o
}

// uncounted waits until all is said of the key named key and its store, and forgets the counts.
func (o *operator) uncounted(t testing.TB) {
	t.Helper()
	o.quiet(t, o.key(t))
}

// newDataKey is a data key under the key named key.
func newDataKey(name string, change ...func(*v1alpha1.DataKeySpec)) *v1alpha1.DataKey {
	k := &v1alpha1.DataKey{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.DataKeySpec{KeyRef: v1alpha1.KeyReference{Kind: "ImportedKey", Name: "key"}},
	}
	for _, c := range change {
		c(&k.Spec)
	}
	return k
}

// dataKey makes a data key and waits until it is there.
func (o *operator) dataKey(t testing.TB, name string, change ...func(*v1alpha1.DataKeySpec)) *v1alpha1.DataKey {
	t.Helper()
	k := newDataKey(name, change...)
	o.Make(t, k)
	o.Ready(t, k)
	return k
}

func withContext(context map[string]v1alpha1.ContextValue) func(*v1alpha1.DataKeySpec) {
	return func(s *v1alpha1.DataKeySpec) { s.EncryptionContext = context }
}

func withBytes(n int32) func(*v1alpha1.DataKeySpec) {
	return func(s *v1alpha1.DataKeySpec) { s.NumberOfBytes = n }
}

func withBlob(blob string) func(*v1alpha1.DataKeySpec) {
	return func(s *v1alpha1.DataKeySpec) { s.CiphertextBlob = blob }
}

func underKey(name string) func(*v1alpha1.DataKeySpec) {
	return func(s *v1alpha1.DataKeySpec) { s.KeyRef.Name = v1alpha1.ObjectName(name) }
}

func withTarget(target v1alpha1.SecretTarget) func(*v1alpha1.DataKeySpec) {
	return func(s *v1alpha1.DataKeySpec) { s.Target = &target }
}

// secretOf reads a Secret of the test's namespace.
func (o *operator) secretOf(t testing.TB, name string) *corev1.Secret {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: name}}
	o.Read(t, s)
	return s
}

// makeSecret creates a Secret as another user does.
func (o *operator) makeSecret(t testing.TB, s *corev1.Secret) *corev1.Secret {
	t.Helper()
	s.Namespace = o.Namespace
	if err := o.Create(t.Context(), s, client.FieldOwner("another-user")); err != nil {
		t.Fatal(err)
	}
	return s
}

// wakeBySecret changes something about a Secret that has no effect.
func (o *operator) wakeBySecret(t testing.TB, name string) {
	t.Helper()
	s := o.secretOf(t, name)
	o.Change(t, s, func() { metav1.SetMetaDataAnnotation(&s.ObjectMeta, "test.keyconvoy.io/touched", s.ResourceVersion) })
}

// secretWith waits until a Secret of that name is as wanted.
func (o *operator) secretWith(t testing.TB, name string, problem func(*corev1.Secret) string) *corev1.Secret {
	t.Helper()
	s := &corev1.Secret{}
	harness.Eventually(t, func() string {
		err := o.Get(t.Context(), types.NamespacedName{Namespace: o.Namespace, Name: name}, s)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		if err != nil {
			return "the Secret " + name + " is not there"
		}
		return problem(s)
	})
	return s
}

// loseStatus takes an object's status away, as a restore from a backup does. No reconcile follows.
func (o *operator) loseStatus(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Status().Patch(t.Context(), object, client.RawPatch(types.MergePatchType, []byte(`{"status":null}`))); err != nil {
		t.Fatal(err)
	}
}

// checkSecretOf checks that a data key's Secret says what the status says.
func (o *operator) checkSecretOf(t testing.TB, k *v1alpha1.DataKey, name string) *corev1.Secret {
	t.Helper()
	o.Read(t, k)
	s := o.secretOf(t, name)
	if got := string(s.Data["ciphertextBlob"]); got != k.Status.CiphertextBlob || got == "" || len(s.Data) != 1 {
		t.Errorf("the Secret holds %q, the status %q", s.Data, k.Status.CiphertextBlob)
	}
	if s.Type != v1alpha1.SecretTypeDataKey || s.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy || s.Annotations["keyconvoy.io/data-key"] != k.Name {
		t.Errorf("the Secret is not marked as the data key's: %s %v %v", s.Type, s.Labels, s.Annotations)
	}
	if tag := s.Annotations["keyconvoy.io/blob-tag"]; tag != k.Status.BlobTag || tag == "" {
		t.Errorf("the tag is %q in the Secret and %q in the status", tag, k.Status.BlobTag)
	}
	if len(s.OwnerReferences) != 0 {
		t.Error("the Secret has an owner, with which it would go")
	}
	if ref := k.Status.SecretRef; ref == nil || ref.Name != name || ref.UID != string(s.UID) || ref.ResourceVersion != s.ResourceVersion {
		t.Errorf("status.secretRef is %+v, the Secret %s %s", ref, s.UID, s.ResourceVersion)
	}
	return s
}

// cutShort takes the last byte off a blob.
func cutShort(t testing.TB, blob string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(blob)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw[:len(raw)-1])
}

// dataKeyBytes opens a data key by exporting it, and hides it from all that the operator says.
func (o *operator) dataKeyBytes(t testing.TB, k *v1alpha1.DataKey) []byte {
	t.Helper()
	e := o.export(t, k.Name+"-opened", ofDataKey(k.Name), toBlob(sm2Recipient().public.Base64()), withSM2)
	plain := o.openExport(t, e, sm2Recipient())
	if len(plain) >= 16 { // shorter ones turn up everywhere
		o.Hide("data key "+k.Name, plain)
	}
	o.Remove(t, e)
	return bytes.Clone(plain)
}
