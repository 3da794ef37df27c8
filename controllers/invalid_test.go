package controllers_test

import (
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// An object that was stored under a schema that accepted more. It used to stop the work for every ImportedKey of the
// cluster, and after a restart for everything; and it could not be deleted.
func TestInvalidField_stopsItsOwnObjectOnly_alsoAfterARestart(t *testing.T) {
	t.Parallel()
	env := testenv.Another(t)
	strict := loosen(t, env)
	o := &operator{harness.New(t, env)}
	var all []client.Object
	for name, value := range map[string]string{
		"lower-case": "2090-01-01t00:00:00z", "offset": "2090-01-01T00:00:00+25:00", "fraction": "2090-01-01T00:00:00x5Z",
	} {
		all = append(all, o.invalidKey(t, name, value))
	}
	restore(t, env, strict)

	t.Cleanup(func() {
		o.Stop(t)
		if t.Failed() {
			t.Logf("The operator's log:\n%s", o.Log.String())
		}
	})
	o.Start(t)
	o.store(t, onSoftware)
	o.pendingKey(t, "good")
	for _, bad := range all {
		o.Stalls(t, bad, "InvalidParameter", "spec.material.expireTime", "RFC 3339")
	}
	o.Restart(t)
	o.Settled(t, all...)
	if writes := o.Writes(); len(writes) > 0 {
		t.Errorf("a restart writes %v", writes)
	}
	o.pendingKey(t, "another")
	for _, bad := range all {
		o.Remove(t, bad)
		o.Gone(t, bad)
	}
}

// loosen makes the schema of ImportedKeys as it was, and returns what it is.
func loosen(t *testing.T, env *testenv.Env) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := env.Client.Get(t.Context(), client.ObjectKey{Name: "importedkeys.keyconvoy.io"}, crd); err != nil {
		t.Fatal(err)
	}
	loose := crd.DeepCopy()
	spec := loose.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	material := spec.Properties["material"]
	material.Properties["expireTime"] = apiextensionsv1.JSONSchemaProps{Type: "string", Format: "date-time"}
	if err := env.Client.Update(t.Context(), loose); err != nil {
		t.Fatal(err)
	}
	return crd
}

// restore makes the schema what it was, and waits until the server refuses what it refused.
func restore(t *testing.T, env *testenv.Env, want *apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(want), crd); err != nil {
		t.Fatal(err)
	}
	crd.Spec = want.Spec
	if err := env.Client.Update(t.Context(), crd); err != nil {
		t.Fatal(err)
	}
}

// invalidKey stores an ImportedKey with that expireTime, once the server accepts it.
func (o *operator) invalidKey(t *testing.T, name, expireTime string) *v1alpha1.ImportedKey {
	t.Helper()
	key := importedKey(name)
	key.Namespace, key.Labels = o.Namespace, o.Mark()
	key.Spec.Material = &v1alpha1.MaterialSpec{EncryptedKeyMaterial: "AA==", ImportToken: "AA=="}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(key)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: content}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ImportedKey"))
	if err := unstructured.SetNestedField(u.Object, expireTime, "spec", "material", "expireTime"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, func() string {
		if err := o.Create(t.Context(), u.DeepCopy()); err != nil {
			return err.Error()
		}
		return ""
	})
	return key
}
