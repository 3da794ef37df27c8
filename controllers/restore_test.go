package controllers_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// backup is what a backup tool keeps of a test's namespaces: of each object the kind, the name, labels,
// annotations and the spec or data. UIDs, owners and statuses are of the cluster that is lost. Secrets come
// back before what refers to them.
type backup []client.Object

func (o *operator) backUp(t testing.TB) backup {
	t.Helper()
	var all backup
	// A software store must not open before what it kept is there: its keys come first.
	for _, namespace := range []string{o.OwnNamespace, o.Namespace} {
		for _, list := range []client.ObjectList{
			&corev1.SecretList{}, &corev1.ConfigMapList{}, &v1alpha1.KeyStoreList{},
			&v1alpha1.ImportedKeyList{}, &v1alpha1.GeneratedKeyList{}, &v1alpha1.DataKeyList{}, &v1alpha1.ExportedDataKeyList{},
		} {
			if err := o.List(t.Context(), list, client.InNamespace(namespace)); err != nil {
				t.Fatal(err)
			}
			if err := meta.EachListItem(list, func(item runtime.Object) error {
				all = append(all, bare(item.(client.Object)))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// bare takes from an object what belongs to its cluster.
func bare(in client.Object) client.Object {
	out := in.DeepCopyObject().(client.Object)
	out.SetUID("")
	out.SetResourceVersion("")
	out.SetGeneration(0)
	out.SetCreationTimestamp(metav1.Time{})
	out.SetManagedFields(nil)
	out.SetOwnerReferences(nil)
	switch o := out.(type) {
	case *v1alpha1.KeyStore:
		o.Status = v1alpha1.KeyStoreStatus{}
	case *v1alpha1.ImportedKey:
		o.Status = v1alpha1.ImportedKeyStatus{}
	case *v1alpha1.GeneratedKey:
		o.Status = v1alpha1.GeneratedKeyStatus{}
	case *v1alpha1.DataKey:
		o.Status = v1alpha1.DataKeyStatus{}
	case *v1alpha1.ExportedDataKey:
		o.Status = v1alpha1.ExportedDataKeyStatus{}
	}
	return out
}

// restoredFrom makes an operator the successor of a lost one: of its namespaces, on another API server.
func restoredFrom(t testing.TB, env *testenv.Env, lost *operator) harness.Option {
	for _, name := range []string{lost.Namespace, lost.OwnNamespace} {
		if err := env.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: named(name)}); err != nil {
			t.Fatal(err)
		}
	}
	return harness.WithNamespaces(lost.Namespace, lost.OwnNamespace)
}

// restore puts a backup into a cluster. Each ImportedKey is told which key it had.
func (o *operator) restore(t testing.TB, objects backup, adopt map[string]*v1alpha1.ImportedKey) {
	t.Helper()
	for _, object := range objects {
		object := object.DeepCopyObject().(client.Object)
		if key, ok := object.(*v1alpha1.ImportedKey); ok {
			was := adopt[key.Name].Status
			key.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: was.KeyVersionID, MaterialFingerprint: was.MaterialFingerprint}
		}
		if err := o.Create(t.Context(), object); err != nil {
			t.Fatalf("Restoring the %T %s: %v", object, object.GetName(), err)
		}
	}
}

func TestRestore_intoAnEmptyCluster_bringsEverythingBack(t *testing.T) {
	t.Parallel()
	env := testenv.Another(t)
	for _, kind := range []string{onSoftHSM, onSoftware} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, kind)
			rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
			key := o.enabledKey(t, "key", nil, rsa)
			disabled := o.enabledKey(t, "disabled", nil, rsa)
			o.desire(t, disabled, v1alpha1.DesiredDisabled, 0)
			o.keyIs(t, disabled, kms.StateDisabled)
			fromSource := o.keyFromSource(t, "from-source", rsa)

			dataKeys := []*v1alpha1.DataKey{
				o.dataKey(t, "dek"),
				o.dataKey(t, "ledger", withContext(map[string]v1alpha1.ContextValue{"app": "ledger"}), withBytes(48)),
				o.dataKey(t, "elsewhere", withTarget(v1alpha1.SecretTarget{Name: "kept-elsewhere"})),
				o.dataKey(t, "of-another", underKey("from-source")),
			}
			plain := map[string][]byte{}
			for _, k := range dataKeys {
				e := o.export(t, k.Name+"-export", ofDataKey(k.Name), withRSA("RSAES_OAEP_SHA_1"))
				plain[k.Name] = o.openExport(t, e, rsaRecipient())
				o.Hide("data key "+k.Name, plain[k.Name])
			}
			saved := o.backUp(t)
			o.Stop(t) // and with it the cluster

			o2 := startOperatorOn(t, env, restoredFrom(t, env, o))
			o2.restore(t, saved, map[string]*v1alpha1.ImportedKey{"key": key, "disabled": disabled, "from-source": fromSource})
			o2.HideAllOf(o.Operator)
			for _, was := range []*v1alpha1.ImportedKey{key, disabled, fromSource} {
				is := was.DeepCopy()
				o2.keyIs(t, is, kms.KeyState(was.Status.KeyState))
				if s := is.Status; s.MaterialFingerprint != was.Status.MaterialFingerprint || s.KeyVersionID != was.Status.KeyVersionID || s.KeyID == was.Status.KeyID || s.Custody != v1alpha1.CustodyUnknown {
					t.Errorf("%s came back as another key: %s", was.Name, harness.JSON(s))
				}
			}
			for _, was := range dataKeys {
				is := was.DeepCopy()
				o2.Ready(t, is)
				name := o2.checkSecretOf(t, is, was.Status.SecretRef.Name).Name
				if is.Status.CiphertextBlob != was.Status.CiphertextBlob || is.Status.Custody != v1alpha1.CustodyUnknown {
					t.Errorf("%s in %s came back as another data key", was.Name, name)
				}
				e := newExport(was.Name + "-export")
				e.Namespace = o2.Namespace
				o2.Ready(t, e)
				o2.checkExport(t, e, rsaRecipient())
				if got := o2.openExport(t, e, rsaRecipient()); !bytes.Equal(got, plain[was.Name]) {
					t.Errorf("the recipient of %s gets another data key", was.Name)
				}
			}
			calls := o2.Calls()
			for _, made := range []string{"GenerateDataKey", "ImportKey", "CreateWrappingKey", "DestroyKey"} {
				if calls[made] != 0 {
					t.Errorf("the restore calls %s %d times", made, calls[made])
				}
			}
			if calls["ExportDataKey"] != len(dataKeys) {
				t.Errorf("%d exports were made again, want %d", calls["ExportDataKey"], len(dataKeys))
			}
			// Once it is back it is as it was before: nothing costs anything.
			store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: o2.Namespace, Name: "store"}}
			o2.Until(t, store, func() string {
				if k := store.Status.KeysWithoutHolder; k != nil {
					return "keys that were adopted are reported as without a holder: " + harness.JSON(k)
				}
				return ""
			})
			o2.Restart(t)
			o2.Settled(t, o2.Objects(t)...)
			if w := o2.Writes(); len(w) > 0 || len(o2.Calls()) > 0 {
				t.Errorf("the next start wrote %v and called %v", w, o2.Calls())
			}
		})
	}
}

// keyFromSource makes a key whose material and token are in a Secret.
func (o *operator) keyFromSource(t testing.TB, name string, change ...func(*v1alpha1.ImportedKeySpec)) *v1alpha1.ImportedKey {
	t.Helper()
	key := o.pendingKey(t, name, change...)
	p := key.Status.ImportParameters
	o.makeSecret(t, &corev1.Secret{ObjectMeta: named(name + "-source"), Data: map[string][]byte{
		"material": wrapUnder(t, p, o.material(32)), "token": []byte(p.ImportToken),
	}})
	o.give(t, key, &v1alpha1.MaterialSpec{
		EncryptedKeyMaterialFrom: fromSecret(name+"-source", "material"), ImportTokenFrom: fromSecret(name+"-source", "token"),
	})
	o.enabled(t, key)
	return key
}

// retained makes a key, and deletes its object: the key stays in the module.
func (o *operator) retained(t testing.TB, name string, material []byte) *v1alpha1.ImportedKey {
	t.Helper()
	key := o.enabledKey(t, name, material)
	o.Remove(t, key)
	o.Gone(t, key)
	return key
}

func adoptionOf(key *v1alpha1.ImportedKey, name string, change ...func(*v1alpha1.AdoptSpec)) *v1alpha1.ImportedKey {
	again := importedKey(name)
	again.Spec.KeySpec, again.Spec.KeyStoreRef = key.Spec.KeySpec, key.Spec.KeyStoreRef
	again.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: key.Status.KeyVersionID, MaterialFingerprint: key.Status.MaterialFingerprint}
	for _, c := range change {
		c(again.Spec.Adopt)
	}
	return again
}

func TestAdopt_whatIsNotTheKeyThatIsMeant_isRefused(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key, other := o.retained(t, "key", nil), o.retained(t, "other", nil)
	for name, c := range map[string]struct {
		change func(*v1alpha1.ImportedKey)
		code   kms.Code
		says   string
	}{
		"another-fingerprint": {func(k *v1alpha1.ImportedKey) { k.Spec.Adopt.MaterialFingerprint = other.Status.MaterialFingerprint },
			kms.InvalidKeyMaterial, key.Status.MaterialFingerprint},
		"another-type": {func(k *v1alpha1.ImportedKey) { k.Spec.KeySpec = v1alpha1.KeySpec(hsm.SM4) },
			kms.InvalidParameter, "KeySpec: The key in the module is AES_256, not SM4."},
		"absent": {func(k *v1alpha1.ImportedKey) { k.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: uuid.NewString()} },
			kms.ForbiddenKeyVersionNotFound, "imported from a namespace with the name " + o.Namespace},
	} {
		t.Run(name, func(t *testing.T) {
			again := adoptionOf(key, name)
			c.change(again)
			again.Spec.DeletionPolicy = v1alpha1.DeletionDelete
			o.Make(t, again)
			o.Waits(t, again, c.code.Reason(), string(c.code)+": ", c.says)
			if s := again.Status; s.MaterialFingerprint != "" || s.Custody != "" || s.ImportParameters != nil || s.KeyState != "PendingImport" {
				t.Errorf("what was refused left something: %s", harness.JSON(s))
			}
			o.Event(t, again, c.code.Reason())
			dataKey := newDataKey(name+"-dek", underKey(name))
			o.Make(t, dataKey)
			o.Waits(t, dataKey, kms.RejectedPendingImport.Reason())
			// Not even its own deletion touches what it did not get.
			o.Remove(t, again)
			o.Gone(t, again)
			if !o.inModule(t, key) {
				t.Error("the key was destroyed by who did not get it")
			}
		})
	}
}

// The owner of a key is a namespace's name: another's key is not even said to be there.
func TestAdopt_keyOfAnotherNamespace_isNotFound(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name), under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.Remove(t, key)
	o.Gone(t, key)
	elsewhere := o.Env.Namespace(t)
	said := map[string]string{}
	for name, version := range map[string]string{"there": key.Status.KeyVersionID, "not-there": uuid.NewString()} {
		again := adoptionOf(key, name, func(a *v1alpha1.AdoptSpec) { *a = v1alpha1.AdoptSpec{KeyVersionID: version} })
		again.Namespace = elsewhere
		o.Make(t, again)
		said[name] = strings.ReplaceAll(o.Waits(t, again, kms.ForbiddenKeyVersionNotFound.Reason()), version, "ID")
	}
	if said["there"] != said["not-there"] {
		t.Errorf("the two are told apart: %q", said)
	}
	own := adoptionOf(key, "own")
	o.Make(t, own)
	o.enabled(t, own)
}

func TestAdopt_byTwo_theSecondWaitsForTheFirstToGo(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.retained(t, "key", nil)
	first, second := adoptionOf(key, "first"), adoptionOf(key, "second")
	o.Make(t, first)
	o.enabled(t, first)
	o.Make(t, second)
	o.Waits(t, second, v1alpha1.ReasonKeyVersionTaken, "Another object already holds this key version")
	o.Touch(t, first)
	o.enabled(t, first)
	o.Restart(t)
	o.Settled(t, first, second)
	o.enabled(t, first)
	o.Waits(t, second, v1alpha1.ReasonKeyVersionTaken)

	o.Remove(t, first)
	o.Gone(t, first)
	o.enabled(t, second)
	if !o.inModule(t, second) {
		t.Error("the key went with the first")
	}
}

// The key of an object that is still there is that object's.
func TestAdopt_keyThatItsOwnObjectHolds_isTaken(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	again := adoptionOf(key, "again")
	o.Make(t, again)
	o.Waits(t, again, v1alpha1.ReasonKeyVersionTaken)
	o.Remove(t, key)
	o.Gone(t, key)
	o.enabled(t, again)
}

// What the restored object says was done to the former one: to do it again would destroy the key.
func TestAdopt_restoredAnnotationsAndMaterial_areNotCarriedOutAgain(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	material := o.material(32)
	key := o.enabledKey(t, "key", material)
	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "last year")
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	o.importsAgain(t, key, "1", material, time.Time{})
	o.keyIs(t, key, kms.StateEnabled)
	saved := bare(key).(*v1alpha1.ImportedKey)
	was := key.DeepCopy()
	o.Remove(t, key)
	o.Gone(t, key)

	saved.Finalizers = nil
	saved.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: was.Status.KeyVersionID}
	o.ForgetCounts()
	o.Make(t, saved)
	o.keyIs(t, saved, kms.StateEnabled)
	o.Touch(t, saved)
	o.keyIs(t, saved, kms.StateEnabled)
	if calls := o.Calls(); calls["DestroyKey"]+calls["ImportKey"] != 0 || !o.inModule(t, saved) {
		t.Errorf("it called %v; in the module: %t", calls, o.inModule(t, saved))
	}
	// A new value is a new request, and material comes back under parameters of the object's own.
	o.Annotate(t, saved, v1alpha1.AnnotationDeleteKeyMaterial, "today")
	o.Waits(t, saved, v1alpha1.ReasonPendingImport)
	o.importsAgain(t, saved, "2", material, time.Time{})
	o.keyIs(t, saved, kms.StateEnabled)
	if saved.Status.MaterialFingerprint != was.Status.MaterialFingerprint || saved.Status.KeyVersionID != was.Status.KeyVersionID {
		t.Errorf("it came back as another key: %s", harness.JSON(saved.Status))
	}
}

func TestAdopt_sourceOfTheMaterialThatIsWrittenAgain_isNotImportedAgain(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.keyFromSource(t, "key")
	saved, was := bare(key).(*v1alpha1.ImportedKey), key.DeepCopy()
	o.Remove(t, key)
	o.Gone(t, key)
	saved.Finalizers = nil
	saved.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: was.Status.KeyVersionID}
	o.Make(t, saved)
	o.keyIs(t, saved, kms.StateEnabled)
	o.Again(t, saved, func() { o.wakeBySecret(t, "key-source") })
	o.keyIs(t, saved, kms.StateEnabled)
}

// Who applies a repository creates the key and the Secret in any order.
func TestAdoptByName_sourceOfTheMaterialThatComesLater_isNotImported(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.keyFromSource(t, "key")
	saved := bare(key).(*v1alpha1.ImportedKey)
	source := bare(o.secretOf(t, "key-source")).(*corev1.Secret)
	o.Remove(t, key)
	o.Gone(t, key)
	o.RemoveUnseen(t, o.secretOf(t, "key-source"))
	saved.Finalizers = nil
	byName(&saved.Spec)
	o.ForgetCounts()
	o.Make(t, saved)
	o.keyIs(t, saved, kms.StateEnabled)
	if saved.Status.SourcesVersion != "" {
		t.Fatal("the key has seen a source that does not exist")
	}
	o.makeSecret(t, source)
	o.Until(t, saved, func() string {
		if saved.Status.SourcesVersion == "" {
			return "the source was not recorded: " + harness.JSON(saved.Status.Conditions)
		}
		return ""
	})
	o.keyIs(t, saved, kms.StateEnabled)
	o.Again(t, saved, func() { o.wakeBySecret(t, "key-source") })
	o.keyIs(t, saved, kms.StateEnabled)
	if calls := o.Calls(); calls["ImportKey"] != 0 || saved.Status.KeyVersionID != key.Status.KeyVersionID {
		t.Errorf("it called %v, and is %s", calls, harness.JSON(saved.Status))
	}
}

func TestAdopt_materialThatHasEndedMeanwhile_isDestroyed(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material, end := o.material(32), clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", material, end)
	saved, was := bare(key).(*v1alpha1.ImportedKey), key.DeepCopy()
	o.Remove(t, key)
	o.Gone(t, key)
	clock.SetTime(end)
	saved.Finalizers = nil
	saved.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: was.Status.KeyVersionID}
	o.Make(t, saved)
	o.Waits(t, saved, v1alpha1.ReasonPendingImport, "has expired")
	if o.inModule(t, saved) || saved.Status.MaterialFingerprint != was.Status.MaterialFingerprint {
		t.Errorf("in the module: %t; %s", o.inModule(t, saved), harness.JSON(saved.Status))
	}
	o.importsAgain(t, saved, "1", material, time.Time{})
	o.keyIs(t, saved, kms.StateEnabled)
}

func TestAdopt_whileTheModuleIsDown_waits(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.retained(t, "key", nil)
	o.Module(t).FailAll("FindKey", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	again := adoptionOf(key, "again")
	o.Make(t, again)
	o.Waits(t, again, kms.ServiceUnavailableTemporary.Reason())
	o.Module(t).FailAll("FindKey", nil)
	o.enabled(t, again)
}

// A Secret without an owner that says it is another export's, or no one's, is left alone.
func TestExportedDataKey_restoredSecretOfAnother_isLeftAlone(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	for name, says := range map[string]string{"of-another": "another", "without-owner": ""} {
		s := &corev1.Secret{ObjectMeta: named(name), Type: v1alpha1.SecretTypeExportedDataKey, Data: map[string][]byte{"exportedDataKey": {1}}}
		s.Annotations = map[string]string{"keyconvoy.io/exported-data-key": says}
		o.makeSecret(t, s)
		e := newExport(name, toBlob(sm2Recipient().public.Base64()), withSM2)
		o.Make(t, e)
		o.Stalls(t, e, v1alpha1.ReasonTargetNotOwned)
		if got := o.secretOf(t, name); got.ResourceVersion != s.ResourceVersion {
			t.Errorf("the Secret %s was changed", name)
		}
	}
	// Nor one of another type, whatever it says.
	s := &corev1.Secret{ObjectMeta: named("opaque"), Data: map[string][]byte{"k": {1}}}
	s.Annotations = map[string]string{"keyconvoy.io/exported-data-key": "opaque"}
	o.makeSecret(t, s)
	e := newExport("opaque", toBlob(sm2Recipient().public.Base64()), withSM2)
	o.Make(t, e)
	o.Stalls(t, e, v1alpha1.ReasonTargetNotOwned)
}

// Consent that the restored key's owner does not give any more: the restored Secret goes, too.
func TestRestore_exportWithoutConsent_isTakenBack(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "export", toBlob(sm2Recipient().public.Base64()), withSM2)
	s, again := bare(o.secretOf(t, "export")).(*corev1.Secret), bare(e).(*v1alpha1.ExportedDataKey)
	o.RemoveUnseen(t, e, o.secretOf(t, "export")) // there is no garbage collector here
	key := importedKey("key")
	key.Namespace = o.Namespace
	o.Change(t, key, func() {
		key.Spec.ExportPolicy = &v1alpha1.ExportPolicy{WrappingAlgorithms: []v1alpha1.ExportAlgorithm{"RSAES_OAEP_SHA_256"}}
	})
	o.Ready(t, key)
	o.makeSecret(t, s)
	o.Make(t, again)
	o.Stalls(t, again, kms.ForbiddenNoPermission.Reason())
	harness.Eventually(t, func() string {
		err := o.Get(t.Context(), types.NamespacedName{Namespace: o.Namespace, Name: "export"}, &corev1.Secret{})
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		if err == nil {
			return "the Secret is there still"
		}
		return ""
	})
}
