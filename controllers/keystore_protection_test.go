package controllers_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestKeyStore_saysWhetherItsKeysAreProtected(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]v1alpha1.KeyProtectionState{
		onSoftware: v1alpha1.KeyProtectionNotEnforced,
		onSoftHSM:  v1alpha1.KeyProtectionEnforced,
		onNSS:      v1alpha1.KeyProtectionNotEnforced,
	} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			p := o.store(t, kind).Status.KeyProtection
			if p == nil || p.State != want || (len(p.Methods) > 0) != (want == v1alpha1.KeyProtectionNotEnforced) {
				t.Errorf("status.keyProtection is %+v", p)
			}
		})
	}
}

func enforcedOnly(s *v1alpha1.KeyStoreSpec) { s.KeyProtection = v1alpha1.KeyProtectionEnforcedOnly }

func TestKeyStore_enforcedOnly_servesOnAModuleThatProtectsItsKeys(t *testing.T) {
	t.Parallel()
	startOperator(t).store(t, onSoftHSM, enforcedOnly)
}

func TestKeyStore_enforcedOnly_importsNothingIntoAnotherModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: storeSpec(onNSS)}
	enforcedOnly(&store.Spec)
	key := importedKey("key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.givePIN(t, o.Namespace, commonToken(onNSS).PIN)
	o.Make(t, store, key)
	o.Waits(t, store, v1alpha1.ReasonModuleMisconfigured, "EnforcedOnly", "C_WrapKey with CKM_AES_KEY_WRAP", "NotEnforcedAllowed")
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	if p := store.Status.KeyProtection; p == nil || p.State != v1alpha1.KeyProtectionNotEnforced {
		t.Errorf("status.keyProtection is %+v", p)
	}
	if calls := o.Calls(); len(calls) != 0 {
		t.Errorf("the module was asked for %v", calls)
	}

	o.Change(t, store, func() { store.Spec.KeyProtection = "" })
	o.Ready(t, store)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	// A store that serves is taken out of service again, too.
	o.Change(t, store, func() { enforcedOnly(&store.Spec) })
	o.Waits(t, store, v1alpha1.ReasonModuleMisconfigured, "EnforcedOnly")
}
