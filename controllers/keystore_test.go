package controllers_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// softwareStore is a KeyStore on the embedded store.
func softwareStore() *v1alpha1.KeyStore {
	return &v1alpha1.KeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: "store"},
		Spec:       v1alpha1.KeyStoreSpec{Software: &v1alpha1.SoftwareStore{}},
	}
}

func TestKeyStore_software_saysWhatItIsAndCan(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := softwareStore()
	o.create(t, store)
	o.ready(t, store)
	if store.Status.Module == nil || store.Status.Module.Library != "software" {
		t.Errorf("the module is %+v", store.Status.Module)
	}
	if len(store.Status.Capabilities) == 0 {
		t.Error("it can do nothing")
	}
}
