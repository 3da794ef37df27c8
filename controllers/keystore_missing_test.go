package controllers_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// missing waits until a key store reports that its module lacks these keys; none is that it lacks no key.
func (o *operator) missing(t *testing.T, store *v1alpha1.KeyStore, keys ...*v1alpha1.ImportedKey) {
	t.Helper()
	o.Until(t, store, func() string {
		c := meta.FindStatusCondition(store.Status.Conditions, v1alpha1.ConditionKeysMissing)
		if reported := store.Status.MissingKeys; (c != nil) != (len(keys) > 0) || (reported != nil) != (len(keys) > 0) || c != nil && int(reported.Count) != len(keys) {
			return "the status is " + harness.JSON(store.Status)
		}
		for _, key := range keys {
			if id := key.Status.KeyVersionID; !strings.Contains(c.Message, id) || !strings.Contains(harness.JSON(store.Status.MissingKeys), id) {
				return id + " is not in " + harness.JSON(store.Status)
			}
		}
		return ""
	})
}

// An HSM is replaced by one that does not have the keys yet, and then by its restored twin, which here is the same token.
func TestKeyStore_ofAnotherToken_warnsOfTheKeysThatItLacks(t *testing.T) {
	t.Parallel()
	token, empty := ownToken(t), ownToken(t)
	o := startOperator(t, harness.WithHealth(time.Second))
	store := o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Token.Label = token.Label })
	underRSA := under("RSA_2048", "RSAES_OAEP_SHA_1") // SoftHSM has no other
	a, b := o.enabledKey(t, "a", nil, underRSA), o.enabledKey(t, "b", nil, underRSA)
	o.pendingKey(t, "pending", underRSA) // has no material that could be missing
	o.missing(t, store)
	made := o.dataKey(t, "dek", underKey("a"))

	o.Change(t, store, func() { store.Spec.PKCS11.Token.Label = empty.Label })
	o.missing(t, store, a, b)
	o.Ready(t, store) // the module works
	warnings := func() (n int) {
		for _, e := range o.Events(t, store) {
			if strings.HasPrefix(e, v1alpha1.ConditionKeysMissing+": ") {
				n++
			}
		}
		return n
	}
	harness.Eventually(t, func() string {
		if warnings() != 1 {
			return "the events are " + strings.Join(o.Events(t, store), "\n")
		}
		return ""
	})
	if imports := o.Module(t).Calls()["ImportKey"]; imports != 0 {
		t.Errorf("%d keys were imported into the new token", imports)
	}

	o.Change(t, store, func() { store.Spec.PKCS11.Token.Label = token.Label })
	o.missing(t, store)
	o.Ready(t, a, b, made)
	if n := warnings(); n != 1 {
		t.Errorf("there were %d warnings", n)
	}
}

// A key that its owner destroyed is not missing.
func TestKeyStore_keyThatItsOwnerDestroyed_isNotMissing(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "now")
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	o.Restart(t)
	harness.Eventually(t, func() string {
		if o.Module(t).Calls()["ListKeys"] == 0 {
			return "the operator has not listed the keys in the module"
		}
		return ""
	})
	o.Settled(t, store)
	o.missing(t, store)
}

// A key is destroyed after the sweep has looked up which keys must be there, and before it lists those that are.
func TestKeyStore_keyThatIsDestroyedDuringTheSweep_isNotMissing(t *testing.T) {
	t.Parallel()
	var o *operator
	var key *v1alpha1.ImportedKey
	var armed, destroyed atomic.Bool
	o = startOperator(t, harness.WithModules(func(m *hsmtest.Recorder) {
		m.Before("ListKeys", func() {
			if armed.CompareAndSwap(true, false) {
				o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "now")
				o.Waits(t, key, v1alpha1.ReasonPendingImport)
				destroyed.Store(true)
			}
		})
	}))
	store := o.store(t, onSoftware)
	key = o.enabledKey(t, "key", nil)
	armed.Store(true)
	o.Restart(t)
	harness.Eventually(t, func() string {
		if !destroyed.Load() {
			return "the sweep has not listed the keys"
		}
		return ""
	})
	o.Settled(t, store)
	o.missing(t, store)
	for _, e := range o.Events(t, store) {
		if strings.HasPrefix(e, v1alpha1.ConditionKeysMissing) {
			t.Errorf("the event is %s", e)
		}
	}
}

// startWithMissingKey starts an operator with a key store that was changed to a token without its key.
func startWithMissingKey(t *testing.T) (*operator, *v1alpha1.KeyStore, *v1alpha1.ImportedKey) {
	t.Helper()
	token, empty := ownToken(t), ownToken(t)
	o := startOperator(t)
	store := o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Token.Label = token.Label })
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.Change(t, store, func() { store.Spec.PKCS11.Token.Label = empty.Label })
	o.missing(t, store, key)
	return o, store, key
}

// A key is destroyed in the token that its key store has now. Its material may still be in the one that it was imported into.
func TestImportedKey_destroyedWhileItsStoreHasAnotherToken_saysWhatIsLeft(t *testing.T) {
	t.Parallel()
	o, _, key := startWithMissingKey(t)

	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "now")
	harness.WantWords(t, o.Event(t, key, "LeftInModule"), []string{`KeyStore "store" now has another token`, key.Status.KeyVersionID})
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

// A report about another spec is not kept: it may be about another module.
func TestKeyStore_thatLacksKeysAndGetsAWrongSpec_noLongerReportsThem(t *testing.T) {
	t.Parallel()
	o, store, _ := startWithMissingKey(t)

	o.Change(t, store, func() { store.Spec.PKCS11.Token.Label = "no-such-token" })
	o.missing(t, store)
	o.Waits(t, store, v1alpha1.ReasonModuleMisconfigured)
}
