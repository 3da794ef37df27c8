package controllers_test

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// lose removes a key store's module with all that is in it, and makes an empty one of another kind, or the same.
type lose func(t *testing.T, o *operator)

// remakeStore deletes the key store and makes one on another token.
func (o *operator) remakeStore(t *testing.T, spec v1alpha1.KeyStoreSpec, pin string) {
	t.Helper()
	store := &v1alpha1.KeyStore{ObjectMeta: named("store")}
	store.Namespace = o.Namespace
	o.Remove(t, store)
	o.Gone(t, store)
	if err := o.DeleteAllOf(t.Context(), &corev1.Secret{}, client.InNamespace(o.OwnNamespace)); err != nil {
		t.Fatal(err)
	}
	if pin != "" {
		o.givePIN(t, o.Namespace, pin)
	}
	again := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: spec}
	o.Make(t, again)
	o.Ready(t, again)
}

func TestRestore_ofALostKeyFromItsMaterial_bringsTheDataKeysBack(t *testing.T) {
	t.Parallel()
	softHSM := func(t *testing.T, o *operator) {
		token := ownToken(t)
		o.remakeStore(t, tokenSpec(onSoftHSM, token.Label), token.PIN)
	}
	nss := func(t *testing.T, o *operator) { o.remakeStore(t, storeSpec(onNSS), commonToken(onNSS).PIN) }
	software := func(t *testing.T, o *operator) { o.remakeStore(t, storeSpec(onSoftware), "") }
	for name, c := range map[string]struct {
		kind string
		lose lose
	}{
		"software store, made anew":          {onSoftware, software},
		"SoftHSM, another token":             {onSoftHSM, softHSM},
		"NSS, emptied":                       {onNSS, func(t *testing.T, o *operator) { o.emptied(t) }},
		"from the software store to SoftHSM": {onSoftware, softHSM},
		"from SoftHSM to NSS":                {onSoftHSM, nss},
		"from NSS to the software store":     {onNSS, software},
	} {
		t.Run(name, func(t *testing.T) {
			restoreFromMaterial(t, c.kind, c.lose)
		})
	}
}

// emptied destroys the master keys of the test in its module.
func (o *operator) emptied(t *testing.T) {
	t.Helper()
	m := o.Module(t)
	keys, err := m.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if key.Owner.Namespace == o.Namespace {
			if err := m.DestroyKey(t.Context(), key.KeyVersionID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func restoreFromMaterial(t *testing.T, kind string, lose lose) {
	o := startOperator(t)
	o.store(t, kind)
	rsa, algorithm := under("RSA_2048", "RSAES_OAEP_SHA_1"), withRSA("RSAES_OAEP_SHA_1")
	material := o.material(32)
	consumer := o.Env.Namespace(t)
	policy := func(s *v1alpha1.ImportedKeySpec) {
		s.ExportPolicy = &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: "All"}, WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_1"}}
	}
	key := o.enabledKey(t, "key", material, rsa, policy)
	dataKey := o.dataKey(t, "dek", withContext(map[string]v1alpha1.ContextValue{"app": "ledger"}))
	export := o.export(t, "export", algorithm)
	abroad := newExport("abroad", ofBlobUnder(o.Namespace, "key", dataKey.Status.CiphertextBlob, dataKey.Spec.EncryptionContext), algorithm)
	abroad.Namespace = consumer
	o.Make(t, abroad)
	o.Ready(t, abroad)
	plain := o.openExport(t, export, rsaRecipient())
	o.Hide("the data key", plain)

	// Everything is lost but what Git, the backup of the data keys' Secrets and the owner of the material have.
	git := []client.Object{inGit(key), inGit(dataKey), inGit(export), inGit(abroad)}
	for _, object := range []client.Object{abroad, export, dataKey, key} {
		o.Remove(t, object)
		o.Gone(t, object)
	}
	o.RemoveUnseen(t, o.secretOf(t, "export"), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: consumer, Name: "abroad"}})
	lose(t, o)

	was := key.Status
	again := git[0].(*v1alpha1.ImportedKey)
	again.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: was.KeyVersionID, MaterialFingerprint: was.MaterialFingerprint}
	again.Spec.Material = nil
	// The tag of the blob in the Secret was the lost module's: its owner says that it is the data key's.
	git[1].(*v1alpha1.DataKey).Spec.CiphertextBlob = string(o.secretOf(t, "dek").Data["ciphertextBlob"])
	o.Make(t, git...)
	o.Waits(t, again, v1alpha1.ReasonPendingImport, was.KeyVersionID, was.MaterialFingerprint, "keyconvoy wrap --key key")
	if s := again.Status; s.KeyVersionID != was.KeyVersionID || s.ImportParameters == nil || s.MaterialFingerprint != "" {
		t.Errorf("it waits for something else: %s", harness.JSON(s))
	}
	o.Waits(t, git[1], kms.RejectedPendingImport.Reason())

	p := again.Status.ImportParameters
	o.give(t, again, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.Stalls(t, again, kms.InvalidKeyMaterial.Reason())
	if o.inModule(t, key) {
		t.Fatal("other material got the version")
	}
	o.give(t, again, inline(wrapUnder(t, p, material), p.ImportToken))
	o.enabled(t, again)
	if s := again.Status; s.KeyVersionID != was.KeyVersionID || s.MaterialFingerprint != was.MaterialFingerprint || s.Custody == v1alpha1.CustodyUnknown {
		t.Errorf("it is another key: %s", harness.JSON(s))
	}
	o.Ready(t, git[1:]...)
	if got := o.openExport(t, git[2].(*v1alpha1.ExportedDataKey), rsaRecipient()); !bytes.Equal(got, plain) {
		t.Error("the recipient gets another data key")
	}
	o.Change(t, again, func() { again.Spec.ExportPolicy = nil })
	o.Stalls(t, git[3], kms.ForbiddenNoPermission.Reason())
	o.Ready(t, git[2])
}

// A token that was initialised anew, and a cluster that was not lost: nothing but the material is needed.
func TestRestore_tokenInitialisedAnew_keyIsAdoptedIfItsBackupIsRestored(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	token := ownToken(t)
	o.givePIN(t, o.Namespace, token.PIN)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: tokenSpec(onSoftHSM, token.Label)}
	o.Make(t, store)
	o.Ready(t, store)
	material := o.material(32)
	rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
	key := o.enabledKey(t, "key", material, rsa)
	o.Remove(t, key)
	o.Gone(t, key)
	tokens.Reinitialise(t, token)
	o.Ready(t, store)

	again := adoptionOf(key, "key")
	rsa(&again.Spec)
	o.Make(t, again)
	o.Waits(t, again, v1alpha1.ReasonPendingImport)
	o.ForgetCounts()
	o.Touch(t, again)
	if calls := o.Calls(); !maps.Equal(calls, map[string]int{"FindKey": 1}) || len(o.Writes()) > 0 {
		t.Errorf("an unchanged object that waits called %v and wrote %v", calls, o.Writes())
	}
	if slices.ContainsFunc(o.auditLines(t), func(line audit.Record) bool { return line.Operation == audit.AdoptKey }) {
		t.Error("what was not adopted is in the audit log")
	}
	// The vendor's tools restore the key meanwhile.
	o.importAs(t, uuid.MustParse(key.Status.KeyVersionID), hsm.AES256, o.former("key"), material)
	o.Touch(t, again)
	o.enabled(t, again)
	if again.Status.KeyVersionID != key.Status.KeyVersionID || again.Status.Custody != v1alpha1.CustodyUnknown {
		t.Errorf("it did not adopt the key: %s", harness.JSON(again.Status))
	}
}

// A lost key's version is known to everyone who has seen a blob. An object that waits for it has no say over it.
func TestRestore_versionOfAnotherNamespace_isNeitherTakenNorDestroyed(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	store := o.clusterStore(t, onSoftware)
	material := o.material(32)
	key := o.enabledKey(t, "key", material, inClusterStore(store.Name))
	o.Remove(t, key)
	o.Gone(t, key)

	attacker := adoptionOf(key, "attacker")
	attacker.Namespace = o.Env.Namespace(t)
	attacker.Spec.DeletionPolicy, attacker.Spec.DesiredState = v1alpha1.DeletionDelete, v1alpha1.DesiredPendingDeletion
	absent := adoptionOf(key, "absent", func(a *v1alpha1.AdoptSpec) { a.KeyVersionID = uuid.NewString() })
	absent.Namespace = attacker.Namespace
	o.Make(t, attacker, absent)
	o.keyIs(t, attacker, kms.StatePendingDeletion)
	clock.SetTime(attacker.Status.DeletionTime.Time)
	o.Touch(t, attacker)
	o.Stalls(t, attacker, kms.ForbiddenKeyNotFound.Reason())
	o.Annotate(t, attacker, v1alpha1.AnnotationDeleteKeyMaterial, "now")
	o.Remove(t, attacker)
	o.Gone(t, attacker)
	if !o.inModule(t, key) {
		t.Fatal("the key was destroyed by an object that never held it")
	}

	// What is there and what is not read the same.
	there := adoptionOf(key, "there")
	there.Namespace = attacker.Namespace
	o.Make(t, there)
	said := map[string]string{}
	for _, k := range []*v1alpha1.ImportedKey{there, absent} {
		message := o.Waits(t, k, v1alpha1.ReasonPendingImport)
		said[k.Name] = strings.NewReplacer(k.Spec.Adopt.KeyVersionID, "ID", k.Name, "NAME").Replace(message)
	}
	if said["there"] != said["absent"] {
		t.Errorf("the two are told apart: %q", said)
	}

	// Not even who knows the material gets hold of the key.
	p := there.Status.ImportParameters
	o.give(t, there, inline(wrapUnder(t, p, material), p.ImportToken))
	o.Stalls(t, there, kms.ForbiddenNoPermission.Reason())
	o.Change(t, there, func() { there.Spec.DeletionPolicy = v1alpha1.DeletionDelete })
	o.Remove(t, there)
	o.Gone(t, there)
	own := adoptionOf(key, "own")
	own.Spec.KeyStoreRef = key.Spec.KeyStoreRef
	o.Make(t, own)
	o.enabled(t, own)
}

// The holder's key may be missing in its module. Its version is its own nevertheless.
func TestRestore_versionThatAnotherObjectHolds_isTaken(t *testing.T) {
	t.Parallel()
	for name, elsewhere := range map[string]bool{"in the same namespace": false, "in another namespace": true} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			store := o.clusterStore(t, onSoftware)
			material := o.material(32)
			key := o.enabledKey(t, "key", material, inClusterStore(store.Name))
			if err := o.Module(t).Module.DestroyKey(t.Context(), uuid.MustParse(key.Status.KeyVersionID)); err != nil {
				t.Fatal(err)
			}
			thief := adoptionOf(key, "thief")
			if elsewhere {
				thief.Namespace = o.Env.Namespace(t)
			}
			o.Make(t, thief)
			if elsewhere {
				o.Waits(t, thief, v1alpha1.ReasonPendingImport)
				p := thief.Status.ImportParameters
				o.give(t, thief, inline(wrapUnder(t, p, material), p.ImportToken))
			}
			o.Waits(t, thief, v1alpha1.ReasonKeyVersionTaken)
			if o.inModule(t, key) {
				t.Error("the version was imported for another object")
			}
			o.importsAgain(t, key, "1", material, noEnd)
			o.keyIs(t, key, kms.StateEnabled)
		})
	}
}

func TestRestore_operatorEndsBetweenImportAndSayingSo_findsTheKeyAgain(t *testing.T) {
	t.Parallel()
	var c cut
	o := startOperator(t, c.option())
	o.store(t, onSoftware)
	material := o.material(32)
	key := o.retained(t, "key", material)
	o.emptied(t)
	again := adoptionOf(key, "key")
	o.Make(t, again)
	o.Waits(t, again, v1alpha1.ReasonPendingImport)
	p := again.Status.ImportParameters
	c.on.Store(true)
	o.called(t, "ImportKey", func() { o.give(t, again, inline(wrapUnder(t, p, material), p.ImportToken)) })
	o.Stop(t)
	c.on.Store(false)
	o.Start(t)
	o.enabled(t, again)
	if again.Status.KeyVersionID != key.Status.KeyVersionID || !o.inModule(t, key) {
		t.Errorf("it is another key: %s", harness.JSON(again.Status))
	}
	o.Touch(t, again)
	o.enabled(t, again)
}
