package controllers_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
)

// inToken says whether a key, and how many of its pairs, are in the token, as another key store sees it.
func (o *operator) inToken(t testing.TB, witness *hsmtest.Recorder, key *v1alpha1.ImportedKey) (there bool, pairs int) {
	t.Helper()
	_, err := witness.FindKey(t.Context(), uuid.MustParse(key.Status.KeyVersionID))
	if err != nil && hsm.KindOf(err) != hsm.NotFound {
		t.Fatal(err)
	}
	list, listErr := hsmtest.PairsOf(t.Context(), witness, uuid.MustParse(string(key.UID)))
	if listErr != nil {
		t.Fatal(listErr)
	}
	return err == nil, len(list)
}

// endNamespace does what deleting a namespace does: everything in it is deleted, in an order that suits nobody. There is
// no namespace controller in these tests.
func (o *operator) endNamespace(t testing.TB, objects ...client.Object) {
	t.Helper()
	o.remove(t, &corev1.Namespace{ObjectMeta: named(o.namespace)})
	o.remove(t, pinSecret(o.namespace, ""))
	for _, object := range objects {
		o.remove(t, object)
	}
}

func TestKeyStore_deletionOfItsNamespace_destroysWhatIsInTheToken(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftHSM, onNSS} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o := startOperator(t)
			store := o.store(t, kind)
			rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
			key := o.enabledKey(t, "key", nil, rsa, withDeletionPolicy(v1alpha1.DeletionDelete))
			kept := o.enabledKey(t, "kept", nil, rsa)
			pending := o.pendingKey(t, "pending", rsa)
			cluster := o.clusterStore(t, kind)
			witness := o.module(t)
			if there, pairs := o.inToken(t, witness, key); !there || pairs == 0 {
				t.Fatal("the witness sees another token")
			}
			o.endNamespace(t, store, pending, key, kept)
			for _, object := range []client.Object{key, kept, pending, store} {
				o.gone(t, object)
			}
			for k, want := range map[*v1alpha1.ImportedKey]bool{key: false, kept: true, pending: false} {
				if there, pairs := o.inToken(t, witness, k); there != want || pairs != 0 {
					t.Errorf("%s: in the token %t, want %t; %d pairs are left", k.Name, there, want, pairs)
				}
			}
			o.ready(t, cluster)
		})
	}
}

func TestKeyStore_deletionWhileKeysAreInIt_waitsAndNamesThem(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.remove(t, store)
	o.waits(t, store, v1alpha1.ReasonKeyStoreInUse, o.namespace+"/key", "Delete them")
	fresh := importedKey("fresh")
	o.create(t, fresh)
	o.waits(t, fresh, v1alpha1.ReasonKeyStoreNotReady, "is being deleted")

	o.restart(t)
	o.waits(t, store, v1alpha1.ReasonKeyStoreInUse, o.namespace+"/key")
	module := o.module(t)
	for _, k := range []*v1alpha1.ImportedKey{fresh, key} {
		o.remove(t, k)
		o.gone(t, k)
	}
	o.gone(t, store)
	if n := module.Calls()["DestroyKey"]; n != 1 {
		t.Errorf("the key was destroyed %d times, want once", n)
	}
}

// A tenant whom a ClusterKeyStore does not serve cannot keep it from being deleted.
func TestKeyStore_deletion_doesNotWaitForKeysThatItNeverServed(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) { s.AllowedNamespaces = selector("team", "payments") })
	key := importedKey("key", inClusterStore(store.Name))
	o.editor(t, o.namespace).makes(t, key)
	o.stalls(t, key, "ForbiddenNoPermission")
	o.remove(t, store)
	o.gone(t, store)
}

// The PIN is gone and the operator has forgotten it: the deletion ends all the same, and says what stays.
func TestKeyStore_deletionWithoutPIN_afterARestart_finishesAndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), withDeletionPolicy(v1alpha1.DeletionDelete))
	o.stop(t)
	o.endNamespace(t, store, key)
	o.start(t)
	version := key.Status.KeyVersionID
	o.gone(t, key)
	o.gone(t, store)
	wantWords(t, o.logged(), []string{"Left a key", version})
}

// Five software stores that come and go leave nothing; one that still holds a key keeps its root key.
func TestKeyStore_softwareStore_takesItsRootKeyAlongWhenItIsEmpty(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	for i := range 5 {
		s := &v1alpha1.KeyStore{ObjectMeta: named(fmt.Sprintf("store-%d", i)), Spec: storeSpec(onSoftware)}
		o.create(t, s)
		o.ready(t, s)
		key := importedKey("key", func(s *v1alpha1.ImportedKeySpec) {
			s.KeyStoreRef.Name = v1alpha1.ObjectName(fmt.Sprintf("store-%d", i))
		})
		o.create(t, key)
		o.waits(t, key, v1alpha1.ReasonPendingImport)
		o.remove(t, key)
		o.gone(t, key)
		o.remove(t, s)
		o.gone(t, s)
	}
	if n := len(o.ownSecrets(t)); n != 0 {
		t.Errorf("%d Secrets are left of five software stores", n)
	}

	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.remove(t, key)
	o.gone(t, key)
	o.remove(t, store)
	o.gone(t, store)
	roots := 0
	for _, s := range o.ownSecrets(t) {
		if s.Type == "keyconvoy.io/root-key" {
			roots++
		}
	}
	if roots != 1 {
		t.Errorf("%d root keys are left, want that of the key", roots)
	}
	o.store(t, onSoftware)
	again := adoptionOf(key, "again")
	o.create(t, again)
	o.enabled(t, again)
}

func (o *operator) ownSecrets(t testing.TB) []corev1.Secret {
	t.Helper()
	var list corev1.SecretList
	if err := o.List(t.Context(), &list, client.InNamespace(o.ownNamespace)); err != nil {
		t.Fatal(err)
	}
	return list.Items
}
