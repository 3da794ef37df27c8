package controllers_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// inModule says whether the module that was opened last holds a key.
func (o *operator) inModule(t testing.TB, key *v1alpha1.ImportedKey) bool {
	t.Helper()
	_, err := o.Module(t).FindKey(t.Context(), uuid.MustParse(key.Status.KeyVersionID))
	if err != nil && hsm.KindOf(err) != hsm.NotFound {
		t.Fatal(err)
	}
	return err == nil
}

func withDeletionPolicy(p v1alpha1.DeletionPolicy) func(*v1alpha1.ImportedKeySpec) {
	return func(s *v1alpha1.ImportedKeySpec) { s.DeletionPolicy = p }
}

func TestImportedKey_deletion_doesToTheModuleWhatThePolicySays(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM, onNSS} {
		for policy, retained := range map[v1alpha1.DeletionPolicy]bool{"": true, v1alpha1.DeletionRetain: true, v1alpha1.DeletionDelete: false} {
			if kind != onSoftware && policy == "" {
				continue
			}
			t.Run(strings.TrimSuffix(kind+", "+string(policy), ", "), func(t *testing.T) {
				o := startOperator(t)
				o.store(t, kind)
				key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), withDeletionPolicy(policy))
				if !o.inModule(t, key) || len(o.pairs(t, key)) == 0 {
					t.Fatal("the key or its pair is not in the module")
				}
				o.Remove(t, key)
				o.Gone(t, key)
				if n := len(o.pairs(t, key)); n != 0 {
					t.Errorf("%d pairs are left in the module", n)
				}
				if there := o.inModule(t, key); there != retained {
					t.Errorf("in the module: %t, want %t", there, retained)
				}
				if retained {
					return
				}
				if note := o.Event(t, key, "KeyDestroyed"); !strings.Contains(note, key.Status.KeyVersionID) {
					t.Errorf("the event does not name the key: %q", note)
				}
			})
		}
	}
}

func TestImportedKey_deletion_withoutKeyStore_finishesAndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	module := o.Module(t)
	o.Remove(t, store)
	o.editor(t, o.Namespace).release(t, store) // which takes the key store from its keys
	o.closed(t, module)
	o.Gone(t, store)
	bare := importedKey("bare")
	o.Make(t, bare)
	o.Waits(t, bare, v1alpha1.ReasonKeyStoreNotFound)
	for _, k := range []*v1alpha1.ImportedKey{bare, key} {
		o.Remove(t, k)
		o.Gone(t, k)
	}
	harness.WantWords(t, o.Event(t, key, "LeftInModule"), []string{`KeyStore "store"`, key.Status.KeyVersionID})
	if all := o.Events(t, bare); len(all) != 0 {
		t.Errorf("of the key that had nothing in a module it is said: %q", all)
	}
}

// A deletion that began while the key store was not ready, and then loses it, finishes too.
func TestImportedKey_deletion_finishesWhenItsKeyStoreGoes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: storeSpec(onSoftHSM)}
	key := importedKey("key")
	o.Make(t, store, key)
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	o.Remove(t, key)
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady, "deletion")
	o.Remove(t, store)
	o.Gone(t, key)
}

func TestImportedKey_deletion_waitsForTheKeyStoreAndSaysSo(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	o := startOperator(t, harness.BeforeOpen(func(context.Context, hsm.Config) error {
		if away.Load() {
			return hsm.Errorf(hsm.Unavailable, "The device does not answer.")
		}
		return nil
	}))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	away.Store(true)
	o.Restart(t)
	o.Remove(t, key)
	message := o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady, "Deletion", `KeyStore "store"`)
	if meta.IsStatusConditionTrue(key.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("it is Ready and says %q", message)
	}
	away.Store(false)
	o.Gone(t, key)
	if o.inModule(t, key) || len(o.pairs(t, key)) != 0 {
		t.Error("something is left in the module")
	}
}

func TestImportedKey_deletion_isTriedAgainWhenTheModuleFails(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Module(t).FailAll("DestroyKey", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	o.Remove(t, key)
	o.Waits(t, key, "ServiceUnavailableTemporary", "deletion", "The device does not answer.")
	o.Module(t).FailAll("DestroyKey", nil)
	o.Gone(t, key)
	if o.inModule(t, key) {
		t.Error("the key is in the module still")
	}
}

// A namespace that may no longer use a key store may still take out what it put in.
func TestImportedKey_deletion_needsNoConsent(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware)
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name), withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Change(t, store, func() { store.Spec.AllowedNamespaces = selector("team", "no-such-team") })
	o.Until(t, store, func() string {
		if store.Status.ObservedGeneration != store.Generation {
			return "the key store has not seen its new spec"
		}
		return ""
	})
	o.Ready(t, store)
	o.Remove(t, key)
	o.Gone(t, key)
	if o.inModule(t, key) {
		t.Error("the key is in the module still")
	}
}
