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
		"SoftHSM has no SM4 keys":          {onSoftHSM, nil, ofSpec(hsm.SM4), "SM4"},
		"PKCS#1 v1.5 that was not allowed": {onSoftware, nil, under("RSA_2048", "RSAES_PKCS1_V1_5"), "RSAES_PKCS1_V1_5"},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			if c.store == nil {
				c.store = func(*v1alpha1.KeyStoreSpec) {}
			}
			o.store(t, c.kind, c.store)
			key := importedKey("key", c.key)
			o.Make(t, key)
			o.Stalls(t, key, "UnsupportedOperation", "UnsupportedOperation: ", c.says)
			if key.Status.ImportParameters != nil {
				t.Error("it publishes import parameters")
			}
			if n := o.Calls()["CreateWrappingKey"]; n != 0 {
				t.Error("it created a pair that cannot be used")
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
	o.Make(t, key)
	o.Stalls(t, key, "UnsupportedOperation")
	o.Change(t, store, func() { store.Spec.AllowPKCS1V15Import = true })
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	p := key.Status.ImportParameters
	o.give(t, key, inline(opensslWrap(t, p, o.material(32)), p.ImportToken))
	o.enabled(t, key)
}

func TestImportedKey_otherParametersAsked_areMade(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := importedKey("key", ofSpec(hsm.AES256), under("EC_SM2", "SM2PKE"))
	o.Make(t, key)
	o.Stalls(t, key, "UnsupportedOperation", "SM2PKE")
	o.Change(t, key, func() {
		key.Spec.ImportParameters = &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_1"}
	})
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	wantPublished(t, key)
	o.Change(t, key, func() { key.Spec.ImportParameters.WrappingAlgorithm = "RSAES_OAEP_SHA_256" })
	o.Until(t, key, func() string {
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
	near, far := importedKey("near"), importedKey("far", inClusterStore(o.OwnNamespace))
	o.Make(t, near, far)
	o.Waits(t, near, v1alpha1.ReasonKeyStoreNotFound, `KeyStore "store"`)
	o.Waits(t, far, v1alpha1.ReasonKeyStoreNotFound, fmt.Sprintf("ClusterKeyStore %q", o.OwnNamespace))
	o.store(t, onSoftware)
	o.Waits(t, near, v1alpha1.ReasonPendingImport)
	o.clusterStore(t, onSoftware)
	o.Waits(t, far, v1alpha1.ReasonPendingImport)
}

func TestImportedKey_keyStoreNotReady_waitsAndWakes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: storeSpec(onSoftHSM)}
	key := importedKey("key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.Make(t, store, key)
	o.Waits(t, store, v1alpha1.ReasonSourceNotFound)
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady, `KeyStore "store"`)
	o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

// A KeyStore of another namespace does not count, whatever its name.
func TestImportedKey_keyStoreOfAnotherNamespace_isNotUsed(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := importedKey("key")
	key.Namespace = o.Env.Namespace(t)
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotFound)
}

func TestImportedKey_namespaceNotAllowed_isRefusedUntilItsLabelsSayOtherwise(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) {
		s.AllowedNamespaces = selector("team", "payments")
	})
	key := importedKey("key", inClusterStore(o.OwnNamespace))
	allowed := importedKey("key", inClusterStore(o.OwnNamespace))
	allowed.Namespace = o.Env.NamespaceWith(t, map[string]string{"team": "payments"})
	o.Make(t, key, allowed)
	o.Waits(t, allowed, v1alpha1.ReasonPendingImport)
	o.Stalls(t, key, "ForbiddenNoPermission", "Forbidden.NoPermission: ", "spec.allowedNamespaces", o.OwnNamespace)

	ns := &corev1.Namespace{ObjectMeta: named(o.Namespace)}
	o.Change(t, ns, func() { ns.Labels["team"] = "payments" })
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

func TestImportedKey_namespaceNotAllowed_isRefusedUntilTheKeyStoreSaysOtherwise(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) {
		s.AllowedNamespaces = selector("team", "payments")
	})
	key := importedKey("key", inClusterStore(o.OwnNamespace))
	o.Make(t, key)
	o.Stalls(t, key, "ForbiddenNoPermission")
	o.Change(t, store, func() { store.Spec.AllowedNamespaces = nil })
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

func selector(label, value string) *v1alpha1.LabelSelector {
	return &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{label: v1alpha1.LabelValue(value)}}
}
