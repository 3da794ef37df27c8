package controllers_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

func TestImportedKey_whatTheKeyStoreCannotDo_isRefused(t *testing.T) {
	t.Parallel()
	moduleOnly := func(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly }
	for name, c := range map[string]struct {
		kind  string
		store func(*v1alpha1.KeyStoreSpec)
		key   func(*v1alpha1.ImportedKeySpec)
		says  string
	}{
		"SoftHSM removes SHA-256 padding on the host, and custody is ModuleOnly": {
			onSoftHSM, moduleOnly, under("RSA_2048", "RSAES_OAEP_SHA_256"), "RSAES_OAEP_SHA_256",
		},
		"SoftHSM has no SM4 keys":         {onSoftHSM, nil, ofSpec(hsm.SM4), "SM4"},
		"PKCS#1 v1.5 that nobody allowed": {onSoftware, nil, under("RSA_2048", "RSAES_PKCS1_V1_5"), "RSAES_PKCS1_V1_5"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := startOperator(t)
			if c.store == nil {
				c.store = func(*v1alpha1.KeyStoreSpec) {}
			}
			o.store(t, c.kind, c.store)
			key := importedKey("key", c.key)
			o.create(t, key)
			o.stalls(t, key, "UnsupportedOperation", "UnsupportedOperation: ", c.says)
			if key.Status.ImportParameters != nil {
				t.Error("it publishes import parameters")
			}
			if n := o.calls()["CreateWrappingKey"]; n != 0 {
				t.Error("it made a pair in vain")
			}
		})
	}
}

func TestImportedKey_moduleOnly_allowsWhatStaysInTheModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly })
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	if key.Status.Custody != v1alpha1.Custody(hsm.CustodyModule) {
		t.Errorf("custody is %s", key.Status.Custody)
	}
}

func TestImportedKey_PKCS1v15_wakesWhenItIsAllowed(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	key := importedKey("key", under("RSA_2048", "RSAES_PKCS1_V1_5"))
	o.create(t, key)
	o.stalls(t, key, "UnsupportedOperation")
	o.change(t, store, func() { store.Spec.AllowPKCS1V15Import = true })
	o.waits(t, key, v1alpha1.ReasonPendingImport)
	p := key.Status.ImportParameters
	o.give(t, key, inline(opensslWrap(t, p, o.material(32)), p.ImportToken))
	o.enabled(t, key)
}

func TestImportedKey_otherParametersAsked_areMade(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := importedKey("key", ofSpec(hsm.AES256), under("EC_SM2", "SM2PKE"))
	o.create(t, key)
	o.stalls(t, key, "UnsupportedOperation", "SM2PKE")
	o.change(t, key, func() {
		key.Spec.ImportParameters = &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_1"}
	})
	o.waits(t, key, v1alpha1.ReasonPendingImport)
	wantPublished(t, key)
	o.change(t, key, func() { key.Spec.ImportParameters.WrappingAlgorithm = "RSAES_OAEP_SHA_256" })
	o.until(t, key, func() string {
		if key.Status.ImportParameters.WrappingAlgorithm != "RSAES_OAEP_SHA_256" {
			return "the former parameters are published still"
		}
		return ""
	})
	wantPublished(t, key)
}

func TestImportedKey_keyStoreMissing_waitsAndWakes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	near, far := importedKey("near"), importedKey("far", inClusterStore(o.ownNamespace))
	o.create(t, near, far)
	o.waits(t, near, v1alpha1.ReasonKeyStoreNotFound, `KeyStore "store"`)
	o.waits(t, far, v1alpha1.ReasonKeyStoreNotFound, fmt.Sprintf("ClusterKeyStore %q", o.ownNamespace))
	o.store(t, onSoftware)
	o.waits(t, near, v1alpha1.ReasonPendingImport)
	o.clusterStore(t, onSoftware)
	o.waits(t, far, v1alpha1.ReasonPendingImport)
}

func TestImportedKey_keyStoreNotReady_waitsAndWakes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: storeSpec(onSoftHSM)}
	key := importedKey("key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.create(t, store, key)
	o.waits(t, store, v1alpha1.ReasonSourceNotFound)
	o.waits(t, key, v1alpha1.ReasonKeyStoreNotReady, `KeyStore "store"`)
	o.givePIN(t, o.namespace, commonToken(onSoftHSM).PIN)
	o.waits(t, key, v1alpha1.ReasonPendingImport)
}

// A KeyStore of another namespace is none, whatever its name.
func TestImportedKey_keyStoreOfAnotherNamespace_isNotUsed(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := importedKey("key")
	key.Namespace = o.env.Namespace(t)
	o.create(t, key)
	o.waits(t, key, v1alpha1.ReasonKeyStoreNotFound)
}

func TestImportedKey_namespaceNotAllowed_isRefusedUntilItsLabelsSayOtherwise(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) {
		s.AllowedNamespaces = selector("team", "payments")
	})
	key := importedKey("key", inClusterStore(o.ownNamespace))
	allowed := importedKey("key", inClusterStore(o.ownNamespace))
	allowed.Namespace = o.env.NamespaceWith(t, map[string]string{"team": "payments"})
	o.create(t, key, allowed)
	o.waits(t, allowed, v1alpha1.ReasonPendingImport)
	o.stalls(t, key, "ForbiddenNoPermission", "Forbidden.NoPermission: ", "spec.allowedNamespaces", o.ownNamespace)

	ns := &corev1.Namespace{ObjectMeta: named(o.namespace)}
	o.change(t, ns, func() { ns.Labels["team"] = "payments" })
	o.waits(t, key, v1alpha1.ReasonPendingImport)
}

func TestImportedKey_namespaceNotAllowed_isRefusedUntilTheKeyStoreSaysOtherwise(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) {
		s.AllowedNamespaces = selector("team", "payments")
	})
	key := importedKey("key", inClusterStore(o.ownNamespace))
	o.create(t, key)
	o.stalls(t, key, "ForbiddenNoPermission")
	o.change(t, store, func() { store.Spec.AllowedNamespaces = nil })
	o.waits(t, key, v1alpha1.ReasonPendingImport)
}

func selector(label, value string) *v1alpha1.LabelSelector {
	return &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{label: v1alpha1.LabelValue(value)}}
}
