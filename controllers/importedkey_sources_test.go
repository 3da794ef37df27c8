package controllers_test

import (
	"encoding/base64"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func fromSecret(name, key string) *v1alpha1.EntrySource {
	return &v1alpha1.EntrySource{Type: v1alpha1.SourceSecret, SecretKeyRef: &v1alpha1.EntryReference{Name: v1alpha1.ObjectName(name), Key: v1alpha1.EntryKey(key)}}
}

func fromConfigMap(name, key string) *v1alpha1.EntrySource {
	return &v1alpha1.EntrySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: v1alpha1.ObjectName(name), Key: v1alpha1.EntryKey(key)}}
}

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

// lines is text in lines of 64 characters, as tools write Base64.
func lines(text string) string {
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + "\r\n")
		text = text[64:]
	}
	b.WriteString(text + "\n")
	return b.String()
}

func TestImportedKey_material_isTakenFromWhereItIs(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	encode := base64.StdEncoding.EncodeToString
	for name, c := range map[string]struct {
		key     string
		sources func(wrapped []byte, token string) (*v1alpha1.MaterialSpec, []client.Object)
	}{
		"inline, in lines": {"inline", func(wrapped []byte, token string) (*v1alpha1.MaterialSpec, []client.Object) {
			return &v1alpha1.MaterialSpec{EncryptedKeyMaterial: lines(encode(wrapped)), ImportToken: lines(token)}, nil
		}},
		"a Secret, as Base64 in lines": {"secret-base64", func(wrapped []byte, token string) (*v1alpha1.MaterialSpec, []client.Object) {
			return &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("secret-base64", "material"), ImportTokenFrom: fromSecret("secret-base64", "token")},
				[]client.Object{&corev1.Secret{ObjectMeta: named("secret-base64"), Data: map[string][]byte{
					"material": []byte(lines(encode(wrapped))), "token": []byte(lines(token)),
				}}}
		}},
		"a Secret, as raw bytes, and an inline token": {"secret-raw", func(wrapped []byte, token string) (*v1alpha1.MaterialSpec, []client.Object) {
			return &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("secret-raw", "exportedDataKey"), ImportToken: token},
				[]client.Object{&corev1.Secret{ObjectMeta: named("secret-raw"), Data: map[string][]byte{"exportedDataKey": wrapped}}}
		}},
		"a ConfigMap, as Base64": {"configmap", func(wrapped []byte, token string) (*v1alpha1.MaterialSpec, []client.Object) {
			return &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromConfigMap("configmap", "material"), ImportTokenFrom: fromConfigMap("configmap", "token")},
				[]client.Object{&corev1.ConfigMap{ObjectMeta: named("configmap"), Data: map[string]string{"material": encode(wrapped), "token": token}}}
		}},
		"a ConfigMap, as raw bytes, and a Secret with the token": {"both", func(wrapped []byte, token string) (*v1alpha1.MaterialSpec, []client.Object) {
			return &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromConfigMap("both", "material"), ImportTokenFrom: fromSecret("both", "token")},
				[]client.Object{
					&corev1.ConfigMap{ObjectMeta: named("both"), BinaryData: map[string][]byte{"material": wrapped}},
					&corev1.Secret{ObjectMeta: named("both"), Data: map[string][]byte{"token": []byte(token)}},
				}
		}},
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(name+", made "+when+" the key asks for it", func(t *testing.T) {
				key := o.pendingKey(t, c.key+"-"+when)
				p := key.Status.ImportParameters
				m, objects := c.sources(wrapUnder(t, p, o.material(32)), p.ImportToken)
				// Each of the two runs has sources of its own.
				for _, object := range objects {
					object.SetName(object.GetName() + "-" + when)
				}
				for _, from := range []*v1alpha1.EntrySource{m.EncryptedKeyMaterialFrom, m.ImportTokenFrom} {
					switch {
					case from == nil:
					case from.SecretKeyRef != nil:
						from.SecretKeyRef.Name += v1alpha1.ObjectName("-" + when)
					default:
						from.ConfigMapKeyRef.Name += v1alpha1.ObjectName("-" + when)
					}
				}
				if when == "before" {
					o.Make(t, objects...)
					o.give(t, key, m)
				} else {
					o.give(t, key, m)
					if len(objects) > 0 {
						o.Waits(t, key, v1alpha1.ReasonSourceNotFound, objects[0].GetName(), o.Namespace)
					}
					o.Make(t, objects...)
				}
				o.enabled(t, key)
			})
		}
	}
}

func TestImportedKey_missingEntry_waitsAndWakes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	p := key.Status.ImportParameters
	secret := &corev1.Secret{ObjectMeta: named("source"), Data: map[string][]byte{"other": []byte("x")}}
	o.Make(t, secret)
	o.give(t, key, &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("source", "material"), ImportToken: p.ImportToken})
	o.Waits(t, key, v1alpha1.ReasonSourceNotFound, "EncryptedKeyMaterial", "material", o.Namespace+"/source")
	wrapped := wrapUnder(t, p, o.material(32))
	o.Change(t, secret, func() { secret.Data["material"] = wrapped })
	o.enabled(t, key)
}

// What is in a Secret may be raw, so what is no Base64 is judged by whether it unwraps.
func TestImportedKey_sourceThatIsNoGood_isRefusedUntilItChanges(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	p := key.Status.ImportParameters
	secret := &corev1.Secret{ObjectMeta: named("source"), Data: map[string][]byte{"material": []byte("neither *raw* nor Base64")}}
	o.Make(t, secret)
	o.give(t, key, &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("source", "material"), ImportToken: p.ImportToken})
	o.Stalls(t, key, "InvalidKeyMaterial")
	wrapped := wrapUnder(t, p, o.material(32))
	o.Change(t, secret, func() { secret.Data["material"] = wrapped })
	o.enabled(t, key)
}

func TestImportedKey_sourceRemovedAfterImport_isNotMissed(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	p := key.Status.ImportParameters
	secret := &corev1.Secret{ObjectMeta: named("source"), Data: map[string][]byte{
		"material": wrapUnder(t, p, o.material(32)), "token": []byte(p.ImportToken),
	}}
	o.Make(t, secret)
	o.give(t, key, &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("source", "material"), ImportTokenFrom: fromSecret("source", "token")})
	o.enabled(t, key)
	o.quiet(t, key)

	o.Again(t, key, func() { o.Remove(t, secret) })
	o.enabled(t, key)
	o.costsNothing(t)
}

// quiet waits until all is said of keys that were imported and of the key store named store, and forgets what was
// counted: events are sent when there is time.
func (o *operator) quiet(t testing.TB, keys ...*v1alpha1.ImportedKey) {
	t.Helper()
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "store"}}
	if o.Read(t, store); store.Spec.PKCS11 == nil {
		o.Event(t, store, "RootKeyCreated")
	}
	for _, key := range keys {
		o.Event(t, key, "KeyState")
		// A source may be read before it is seen; it is then looked at once more.
		o.Until(t, key, func() string {
			if key.Status.SourcesVersion == "" {
				return "the key's sources have not been seen"
			}
			return ""
		})
		o.Settled(t, key)
	}
	o.ForgetCounts()
}

// costsNothing checks that since the counts were forgotten the operator wrote nothing, asked nothing of a
// module and read no Secret or ConfigMap but for opening key stores.
func (o *operator) costsNothing(t testing.TB) {
	t.Helper()
	if w := o.Writes(); len(w) != 0 {
		t.Errorf("it wrote: %v", w)
	}
	if calls := o.Calls(); len(calls) != 0 {
		t.Errorf("it called the module: %v", calls)
	}
	if r := o.Requests.In(o.Namespace).Reads; len(r) != 0 {
		t.Errorf("it read: %v", r)
	}
}

// A Secret that changes without its content's changing is read, and that is all.
func TestImportedKey_sourceWithNewLabels_isNotImportedAgain(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	p := key.Status.ImportParameters
	secret := &corev1.Secret{ObjectMeta: named("source"), Data: map[string][]byte{"material": wrapUnder(t, p, o.material(32))}}
	o.Make(t, secret)
	o.give(t, key, &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("source", "material"), ImportToken: p.ImportToken})
	o.enabled(t, key)
	o.quiet(t, key)

	o.Again(t, key, func() { o.Change(t, secret, func() { secret.Labels["touched"] = "yes" }) })
	if calls := o.Calls(); len(calls) != 0 {
		t.Errorf("it called the module: %v", calls)
	}
	o.enabled(t, key)
	o.ForgetCounts()
	o.Touch(t, key)
	o.costsNothing(t)
}
