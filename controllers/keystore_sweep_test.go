package controllers_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// An editor removes the finalizer of a key by hand. Its pair goes with the next sweep after its expiry.
func TestSweep_pairsOfKeysThatLostTheirFinalizer_goWhenTheyExpire(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(*testing.T, *operator, *v1alpha1.KeyStore){
		"after a day":       func(t *testing.T, o *operator, s *v1alpha1.KeyStore) {},
		"at the next start": func(t *testing.T, o *operator, s *v1alpha1.KeyStore) { o.Restart(t) },
	} {
		t.Run(name, func(t *testing.T) {
			clock := testClock()
			o := startOperator(t, harness.WithClock(clock), harness.WithHealth(time.Second))
			store := o.store(t, onSoftware)
			key, other := o.pendingKey(t, "key"), o.pendingKey(t, "other")
			attacker := o.editor(t, o.Namespace)
			o.Stop(t)
			attacker.removes(t, key)
			attacker.release(t, key)
			o.Gone(t, key)
			o.Start(t)
			o.Ready(t, store)
			if n := len(o.pairs(t, key)); n != 1 {
				t.Fatalf("the deleted key left %d pairs, want 1", n)
			}
			clock.SetTime(clock.Now().Add(kms.TokenLifetime))
			again(t, o, store)
			harness.Eventually(t, func() string {
				if n := len(o.pairs(t, key)); n != 0 {
					return fmt.Sprintf("%d pairs of the deleted key are left", n)
				}
				return ""
			})
			o.Touch(t, other)
			o.Waits(t, other, v1alpha1.ReasonPendingImport)
			if len(o.pairs(t, other)) == 0 {
				t.Error("the key that waits has no pair")
			}
		})
	}
}

// Keys without an ImportedKey are reported and left alone.
func TestSweep_keysWithoutHolder_areReportedAndKept(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithHealth(time.Second))
	store := o.store(t, onSoftware)
	key := o.retained(t, "key", nil)
	held := o.enabledKey(t, "held", nil)
	o.Restart(t)
	o.Until(t, store, func() string {
		if k := store.Status.KeysWithoutHolder; k == nil || k.Count != 1 || len(k.KeyVersionIDs) != 1 || k.KeyVersionIDs[0] != key.Status.KeyVersionID {
			return "the status reports " + harness.JSON(store.Status.KeysWithoutHolder)
		}
		return ""
	})
	if !o.inModule(t, key) || !o.inModule(t, held) {
		t.Error("a key was destroyed")
	}
	again := adoptionOf(key, "again")
	o.Make(t, again)
	o.enabled(t, again)
	o.Until(t, store, func() string {
		if store.Status.KeysWithoutHolder != nil {
			return "the status still reports " + harness.JSON(store.Status.KeysWithoutHolder)
		}
		return ""
	})
}

// A tenant removes finalizers by hand and makes keys again. The module still knows in whose name its pairs are.
func TestImportedKey_pairsOfANamespace_areLimited(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware)
	o.pendingKey(t, "first", inClusterStore(store.Name))
	for range kms.MaxNamespaceWrappingKeys - 1 { // as of keys that lost their finalizers
		_, err := o.Module(t).CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
			ID: uuid.New(), Owner: uuid.New(), Namespace: o.Namespace, Spec: wrapping.ECSM2, NotAfter: time.Now().Add(time.Hour),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	more := importedKey("more", inClusterStore(store.Name))
	o.editor(t, o.Namespace).makes(t, more)
	o.Condition(t, more, v1alpha1.ConditionReady, "False", kms.RejectedThrottling.Reason())
	if n, err := hsmtest.PairsOf(t.Context(), o.Module(t), uuid.MustParse(string(more.UID))); err != nil || len(n) != 0 {
		t.Errorf("it has %d pairs (%v)", len(n), err)
	}
	neighbour := importedKey("neighbour", inClusterStore(store.Name))
	neighbour.Namespace = o.Env.Namespace(t)
	o.Make(t, neighbour)
	o.Waits(t, neighbour, v1alpha1.ReasonPendingImport)
}
