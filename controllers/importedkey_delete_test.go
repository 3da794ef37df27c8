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
)

// inModule says whether the module that was opened last holds a key.
func (o *operator) inModule(t testing.TB, key *v1alpha1.ImportedKey) bool {
	t.Helper()
	_, err := o.module(t).FindKey(t.Context(), uuid.MustParse(key.Status.KeyVersionID))
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
				t.Parallel()
				o := startOperator(t)
				o.store(t, kind)
				key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), withDeletionPolicy(policy))
				if !o.inModule(t, key) || len(o.pairs(t, key)) == 0 {
					t.Fatal("the key or its pair is not in the module")
				}
				o.remove(t, key)
				o.gone(t, key)
				if n := len(o.pairs(t, key)); n != 0 {
					t.Errorf("%d pairs are left in the module", n)
				}
				if there := o.inModule(t, key); there != retained {
					t.Errorf("in the module: %t, want %t", there, retained)
				}
				if retained {
					return
				}
				if note := o.event(t, key, "KeyDestroyed"); !strings.Contains(note, key.Status.KeyVersionID) {
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
	module := o.module(t)
	o.remove(t, store)
	o.editor(t, o.namespace).release(t, store) // which takes the key store from its keys
	o.closed(t, module)
	o.gone(t, store)
	bare := importedKey("bare")
	o.create(t, bare)
	o.waits(t, bare, v1alpha1.ReasonKeyStoreNotFound)
	for _, k := range []*v1alpha1.ImportedKey{bare, key} {
		o.remove(t, k)
		o.gone(t, k)
	}
	wantWords(t, o.event(t, key, "LeftInModule"), []string{`KeyStore "store"`, key.Status.KeyVersionID})
	if all := o.events(t, bare); len(all) != 0 {
		t.Errorf("of the key that had nothing in a module it is said: %q", all)
	}
}

// A deletion that began while the key store was not ready, and then loses it, finishes too.
func TestImportedKey_deletion_finishesWhenItsKeyStoreGoes(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: storeSpec(onSoftHSM)}
	key := importedKey("key")
	o.create(t, store, key)
	o.waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	o.remove(t, key)
	o.waits(t, key, v1alpha1.ReasonKeyStoreNotReady, "deletion")
	o.remove(t, store)
	o.gone(t, key)
}

func TestImportedKey_deletion_waitsForTheKeyStoreAndSaysSo(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	o := startOperator(t, beforeOpen(func(context.Context, hsm.Config) error {
		if away.Load() {
			return hsm.Errorf(hsm.Unavailable, "The device does not answer.")
		}
		return nil
	}))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	away.Store(true)
	o.restart(t)
	o.remove(t, key)
	message := o.waits(t, key, v1alpha1.ReasonKeyStoreNotReady, "Deletion", `KeyStore "store"`)
	if meta.IsStatusConditionTrue(key.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("it is Ready and says %q", message)
	}
	away.Store(false)
	o.gone(t, key)
	if o.inModule(t, key) || len(o.pairs(t, key)) != 0 {
		t.Error("something is left in the module")
	}
}

func TestImportedKey_deletion_isTriedAgainWhenTheModuleFails(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.module(t).FailAll("DestroyKey", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	o.remove(t, key)
	o.waits(t, key, "ServiceUnavailableTemporary", "deletion", "The device does not answer.")
	o.module(t).FailAll("DestroyKey", nil)
	o.gone(t, key)
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
	o.change(t, store, func() { store.Spec.AllowedNamespaces = selector("team", "nobody") })
	o.until(t, store, func() string {
		if store.Status.ObservedGeneration != store.Generation {
			return "the key store has not seen its new spec"
		}
		return ""
	})
	o.ready(t, store)
	o.remove(t, key)
	o.gone(t, key)
	if o.inModule(t, key) {
		t.Error("the key is in the module still")
	}
}
