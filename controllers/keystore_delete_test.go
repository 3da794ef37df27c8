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
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
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

// endNamespace does what deleting a namespace does: everything in it is deleted, in the worst order. There is
// no namespace controller in these tests.
func (o *operator) endNamespace(t testing.TB, objects ...client.Object) {
	t.Helper()
	o.Remove(t, &corev1.Namespace{ObjectMeta: named(o.Namespace)})
	o.Remove(t, pinSecret(o.Namespace, ""))
	for _, object := range objects {
		o.Remove(t, object)
	}
}

func TestKeyStore_deletionOfItsNamespace_destroysWhatIsInTheToken(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftHSM, onNSS} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			store := o.store(t, kind)
			rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
			key := o.enabledKey(t, "key", nil, rsa, withDeletionPolicy(v1alpha1.DeletionDelete))
			kept := o.enabledKey(t, "kept", nil, rsa)
			pending := o.pendingKey(t, "pending", rsa)
			cluster := o.clusterStore(t, kind)
			witness := o.Module(t)
			if there, pairs := o.inToken(t, witness, key); !there || pairs == 0 {
				t.Fatal("the witness sees another token")
			}
			o.endNamespace(t, store, pending, key, kept)
			for _, object := range []client.Object{key, kept, pending, store} {
				o.Gone(t, object)
			}
			for k, want := range map[*v1alpha1.ImportedKey]bool{key: false, kept: true, pending: false} {
				if there, pairs := o.inToken(t, witness, k); there != want || pairs != 0 {
					t.Errorf("%s: in the token %t, want %t; %d pairs are left", k.Name, there, want, pairs)
				}
			}
			o.Ready(t, cluster)
		})
	}
}

func TestKeyStore_deletionWhileKeysAreInIt_waitsAndNamesThem(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Remove(t, store)
	o.Waits(t, store, v1alpha1.ReasonKeyStoreInUse, o.Namespace+"/key", "Delete them")
	fresh := importedKey("fresh")
	o.Make(t, fresh)
	o.Waits(t, fresh, v1alpha1.ReasonKeyStoreNotReady, "is being deleted")

	o.Restart(t)
	o.Waits(t, store, v1alpha1.ReasonKeyStoreInUse, o.Namespace+"/key")
	module := o.Module(t)
	for _, k := range []*v1alpha1.ImportedKey{fresh, key} {
		o.Remove(t, k)
		o.Gone(t, k)
	}
	o.Gone(t, store)
	if n := module.Calls()["DestroyKey"]; n != 1 {
		t.Errorf("the key was destroyed %d times, want once", n)
	}
}

// A tenant that a ClusterKeyStore does not allow cannot keep it from being deleted.
func TestKeyStore_deletion_doesNotWaitForKeysThatItNeverServed(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) { s.AllowedNamespaces = selector("team", "payments") })
	key := importedKey("key", inClusterStore(store.Name))
	o.editor(t, o.Namespace).makes(t, key)
	o.Stalls(t, key, "ForbiddenNoPermission")
	o.Remove(t, store)
	o.Gone(t, store)
}

// The PIN is deleted and the operator no longer has it: the deletion ends all the same, and says what stays.
func TestKeyStore_deletionWithoutPIN_afterARestart_finishesAndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Stop(t)
	o.endNamespace(t, store, key)
	o.Start(t)
	version := key.Status.KeyVersionID
	o.Gone(t, key)
	o.Gone(t, store)
	harness.WantWords(t, o.Log.String(), []string{"Left a key", version})
}

// Five software stores that come and go leave nothing; one that still holds a key keeps its root key.
func TestKeyStore_softwareStore_takesItsRootKeyAlongWhenItIsEmpty(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	for i := range 5 {
		s := &v1alpha1.KeyStore{ObjectMeta: named(fmt.Sprintf("store-%d", i)), Spec: storeSpec(onSoftware)}
		o.Make(t, s)
		o.Ready(t, s)
		key := importedKey("key", func(s *v1alpha1.ImportedKeySpec) {
			s.KeyStoreRef.Name = v1alpha1.ObjectName(fmt.Sprintf("store-%d", i))
		})
		o.Make(t, key)
		o.Waits(t, key, v1alpha1.ReasonPendingImport)
		o.Remove(t, key)
		o.Gone(t, key)
		o.Remove(t, s)
		o.Gone(t, s)
	}
	if n := len(o.ownSecrets(t)); n != 0 {
		t.Errorf("%d Secrets are left of five software stores", n)
	}

	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.Remove(t, key)
	o.Gone(t, key)
	o.Remove(t, store)
	o.Gone(t, store)
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
	o.Make(t, again)
	o.enabled(t, again)
}

func (o *operator) ownSecrets(t testing.TB) []corev1.Secret {
	t.Helper()
	var list corev1.SecretList
	if err := o.List(t.Context(), &list, client.InNamespace(o.OwnNamespace)); err != nil {
		t.Fatal(err)
	}
	return list.Items
}
