package controllers_test

import (
	"crypto/rand"
	"slices"
	"strings"
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

func byName(s *v1alpha1.ImportedKeySpec) { s.Adopt = &v1alpha1.AdoptSpec{Type: v1alpha1.AdoptByName} }

// importInto imports a key into the module behind the operator's back, as another object did once.
func (o *operator) importInto(t testing.TB, spec hsm.KeySpec, owner hsm.Owner) {
	t.Helper()
	o.importAs(t, uuid.New(), spec, owner, o.material(spec.Len()))
}

// importAs is importInto, of a version and its material.
func (o *operator) importAs(t testing.TB, version uuid.UUID, spec hsm.KeySpec, owner hsm.Owner, material []byte) {
	t.Helper()
	m := o.Module(t).Module
	pair, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
		ID: uuid.New(), Owner: uuid.New(), Namespace: o.Namespace, Spec: wrapping.RSA2048, NotAfter: o.Clock.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := wrapping.Wrap(rand.Reader, hsmtest.PublicKey(t, pair), wrapping.RSAESOAEPSHA1, "", material)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ImportKey(t.Context(), hsm.ImportRequest{
		KeyVersionID: version, Spec: spec, WrappingKey: pair.ID, Algorithm: wrapping.RSAESOAEPSHA1, EncryptedMaterial: wrapped, Owner: owner,
	}); err != nil {
		t.Fatal(err)
	}
}

// former is the owner of a key that an object of that name imported.
func (o *operator) former(name string) hsm.Owner {
	return hsm.Owner{Namespace: o.Namespace, Name: name, Origin: hsm.OriginImported, Number: 1, KeyID: uuid.New()}
}

func wantOwnVersion(t testing.TB, key *v1alpha1.ImportedKey) {
	t.Helper()
	if want := kms.VersionID(uuid.MustParse(string(key.UID)), 1).String(); key.Status.KeyVersionID != want || key.Status.MaterialFingerprint != "" {
		t.Errorf("it is no new key: %s", harness.JSON(key.Status))
	}
}

// Git makes the first environment, too.
func TestAdoptByName_nothingLeft_isANewKeyForGood(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key", byName)
	wantOwnVersion(t, key)
	o.importInto(t, hsm.AES256, o.former("key"))
	looked := o.Module(t).Calls()["ListKeys"]
	o.ForgetCounts()
	o.Touch(t, key)
	o.costsNothing(t)
	if n := o.Module(t).Calls()["ListKeys"]; looked == 0 || n != 0 {
		t.Errorf("it looked into the module %d times when it was made, and %d times later", looked, n)
	}
	o.Restart(t)
	o.Settled(t, key)
	wantOwnVersion(t, key)

	p := key.Status.ImportParameters
	o.give(t, key, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.enabled(t, key)
	if events := o.Events(t, key); slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "KeyAdopted") }) {
		t.Errorf("an import is said to be an adoption: %q", events)
	}
}

func TestAdoptByName_keyOfAnotherObject_isNotAdopted(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	for name, c := range map[string]struct {
		spec   hsm.KeySpec
		change func(*hsm.Owner)
	}{
		"another-name":        {hsm.AES256, func(owner *hsm.Owner) { owner.Name = "other" }},
		"another-namespace":   {hsm.AES256, func(owner *hsm.Owner) { owner.Namespace += "0" }},
		"another-type":        {hsm.AES128, func(*hsm.Owner) {}},
		"generated":           {hsm.AES256, func(owner *hsm.Owner) { owner.Origin = hsm.OriginGenerated }},
		"of-an-early-version": {hsm.AES256, func(owner *hsm.Owner) { *owner = hsm.Owner{Namespace: owner.Namespace} }},
	} {
		t.Run(name, func(t *testing.T) {
			owner := o.former(name)
			c.change(&owner)
			o.importInto(t, c.spec, owner)
			key := o.pendingKey(t, name, byName)
			wantOwnVersion(t, key)
		})
	}
}

// A second key store has another module, whatever its keys are called.
func TestAdoptByName_keyInAnotherKeyStore_isNotAdopted(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	cluster := o.clusterStore(t, onSoftware)
	o.retained(t, "key", nil)
	key := o.pendingKey(t, "key", byName, inClusterStore(cluster.Name))
	wantOwnVersion(t, key)
}

func TestAdoptByName_objectThatDoesNotAsk_isANewKey(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	was := o.retained(t, "key", nil)
	key := o.pendingKey(t, "key")
	wantOwnVersion(t, key)
	if !o.inModule(t, was) {
		t.Error("the former key was destroyed")
	}
}

// Only the owner knows which of them the data keys need.
func TestAdoptByName_severalFormerKeys_adoptsNoneAndListsThem(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	first := o.retained(t, "key", nil)
	second := o.retained(t, "key", nil)
	key := importedKey("key", byName, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonSeveralFormerKeys, first.Status.KeyVersionID, second.Status.KeyVersionID, "adopt.keyVersionID")
	o.Event(t, key, v1alpha1.ReasonSeveralFormerKeys)
	if s := key.Status; s.KeyVersionID != "" || s.ImportParameters != nil {
		t.Errorf("it is a key nevertheless: %s", harness.JSON(s))
	}
	dataKey := newDataKey("dek")
	o.Make(t, dataKey)
	o.Waits(t, dataKey, v1alpha1.ReasonKeyNotReady)

	o.Remove(t, key)
	o.Gone(t, key)
	if !o.inModule(t, first) || !o.inModule(t, second) {
		t.Error("a key was destroyed by an object that did not get it")
	}
	chosen := adoptionOf(second, "key")
	o.Make(t, chosen)
	o.enabled(t, chosen)
	o.Ready(t, dataKey)
	if chosen.Status.KeyVersionID != second.Status.KeyVersionID {
		t.Errorf("it adopted %s", chosen.Status.KeyVersionID)
	}
}

func TestAdoptByName_keyThatAnotherObjectHolds_waitsForItsEnd(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	was := o.retained(t, "key", nil)
	holder := adoptionOf(was, "holder")
	o.Make(t, holder)
	o.enabled(t, holder)
	key := importedKey("key", byName, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonKeyVersionTaken)
	o.Restart(t)
	o.Settled(t, key, holder)
	o.Waits(t, key, v1alpha1.ReasonKeyVersionTaken)
	o.enabled(t, holder)
	o.Remove(t, holder)
	o.Gone(t, holder)
	o.enabled(t, key)
	if key.Status.KeyVersionID != was.Status.KeyVersionID {
		t.Errorf("it is another key: %s", harness.JSON(key.Status))
	}
}

// One asks by name, the other by version, at once. Whichever is older, one of them gets the key.
func TestAdoptByName_anotherAdoptsByVersionAtOnce_oneGetsIt(t *testing.T) {
	t.Parallel()
	for name, namedFirst := range map[string]bool{"the name comes first": true, "the version comes first": false} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, onSoftware)
			was := o.retained(t, "key", nil)
			key, other := importedKey("key", byName), adoptionOf(was, "other")
			o.Stop(t)
			if namedFirst {
				o.Make(t, key, other)
			} else {
				o.Make(t, other, key)
			}
			o.Start(t)
			for _, k := range []*v1alpha1.ImportedKey{key, other} {
				o.Until(t, k, func() string {
					if reason := reasonOf(k); reason != v1alpha1.ReasonKeyVersionTaken && reason != v1alpha1.ReasonSucceeded {
						return k.Name + " is undecided: " + reason
					}
					return ""
				})
			}
			if a, b := reasonOf(key), reasonOf(other); a == b {
				t.Errorf("both are %s", a)
			}
		})
	}
}

// An older object that has not found its version yet has precedence over a younger one that names it.
func TestAdoptByName_olderObjectHasNotLookedYet_isWaitedFor(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	was := o.retained(t, "key", nil)
	o.Module(t).FailAll("ListKeys", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	key := importedKey("key", byName)
	o.Make(t, key)
	o.Waits(t, key, kms.ServiceUnavailableTemporary.Reason())
	harness.Eventually(t, func() string { // ages have whole seconds
		if time.Now().Unix() <= key.CreationTimestamp.Unix() {
			return "the next object would have the same age"
		}
		return ""
	})
	other := adoptionOf(was, "other")
	o.Make(t, other)
	o.Waits(t, other, v1alpha1.ReasonKeyVersionTaken)
	o.Remove(t, key)
	o.Gone(t, key)
	o.enabled(t, other)
}

func TestAdoptByName_changesOfMaterialAreProcessedAsEver(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	material := o.material(32)
	was := o.enabledKey(t, "key", material, byName)
	again := inGit(was).(*v1alpha1.ImportedKey)
	o.Remove(t, was)
	o.Gone(t, was)
	o.Make(t, again)
	o.enabled(t, again)
	o.Touch(t, again)
	o.enabled(t, again)

	o.Change(t, again, func() { until(again.Spec.Material, time.Now().Add(time.Hour)) })
	o.Stalls(t, again, kms.InvalidImportToken.Reason())
	o.renew(t, again, "1")
	p := again.Status.ImportParameters
	o.give(t, again, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.Stalls(t, again, kms.InvalidKeyMaterial.Reason())
	o.importsAgain(t, again, "2", material, noEnd)
	o.keyIs(t, again, kms.StateEnabled)
	if again.Status.KeyVersionID != was.Status.KeyVersionID {
		t.Errorf("it became another key: %s", harness.JSON(again.Status))
	}
}

func TestAdoptByName_firstReconcile_costsOneLookAndOneWrite(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	was := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), byName)
	again := inGit(was).(*v1alpha1.ImportedKey)
	o.Remove(t, was)
	o.Gone(t, was)
	o.ForgetCounts()
	o.Make(t, again)
	o.enabled(t, again)
	o.Event(t, again, "KeyState")
	o.Event(t, again, "KeyAdopted")
	if calls, looks := o.Calls(), o.Module(t).Calls()["ListKeys"]; calls["FindKey"] != 1 || len(calls) != 1 || looks != 1 {
		t.Errorf("it called: %v, and looked %d times", calls, looks)
	}
	if w := o.Writes(); w["patch importedkeys/status"] != 1 || w["patch importedkeys"] != 1 || w["create events"] != 2 || len(w) != 3 {
		t.Errorf("it wrote: %v", w)
	}
	o.quiet(t, again)
	o.Touch(t, again)
	o.costsNothing(t)
	o.Restart(t)
	o.Settled(t, again)
	if w := o.Writes(); len(w) > 0 || len(o.Calls()) > 0 {
		t.Errorf("the next start wrote %v and called %v", w, o.Calls())
	}
}

func TestAdoptByName_operatorEndsBeforeItSaysSo_adoptsTheSameKey(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			var c cut
			o := startOperator(t, c.option())
			o.store(t, kind)
			was := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
			again := inGit(was).(*v1alpha1.ImportedKey)
			byName(&again.Spec)
			o.Remove(t, was)
			o.Gone(t, was)
			c.on.Store(true)
			o.called(t, "FindKey", func() { o.Make(t, again) })
			o.Stop(t)
			c.on.Store(false)
			o.Start(t)
			o.enabled(t, again)
			if again.Status.KeyVersionID != was.Status.KeyVersionID {
				t.Errorf("it is another key: %s", harness.JSON(again.Status))
			}
		})
	}
}

// A status is not where a key is remembered.
func TestAdoptByName_statusLost_bindsToTheSameKey(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	was := o.retained(t, "adopted", nil)
	adopted := inGit(was).(*v1alpha1.ImportedKey)
	byName(&adopted.Spec)
	o.Make(t, adopted)
	o.enabled(t, adopted)
	fresh := o.enabledKey(t, "fresh", nil, byName)
	o.importInto(t, hsm.AES256, o.former("fresh")) // its own key has precedence
	for _, key := range []*v1alpha1.ImportedKey{adopted, fresh} {
		o.Read(t, key)
		before := key.Status
		o.loseStatus(t, key)
		o.Touch(t, key)
		o.enabled(t, key)
		if s := key.Status; s.KeyVersionID != before.KeyVersionID || s.MaterialFingerprint != before.MaterialFingerprint {
			t.Errorf("%s is another key: %s", key.Name, harness.JSON(s))
		}
	}
}

func TestAdoptByName_moduleIsDown_decidesNothing(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	was := o.retained(t, "key", nil)
	o.Module(t).FailAll("ListKeys", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	key, dataKey := importedKey("key", byName), newDataKey("dek")
	o.Make(t, key, dataKey)
	o.Waits(t, key, kms.ServiceUnavailableTemporary.Reason())
	o.Waits(t, dataKey, v1alpha1.ReasonKeyNotReady, "has not found it yet")
	if key.Status.KeyVersionID != "" {
		t.Errorf("it is key version %s", key.Status.KeyVersionID)
	}
	o.Module(t).FailAll("ListKeys", nil)
	o.enabled(t, key)
	o.Ready(t, dataKey)
	if key.Status.KeyVersionID != was.Status.KeyVersionID {
		t.Errorf("it is another key: %s", harness.JSON(key.Status))
	}
}

func TestAdoptByName_thenDeletedWithItsKey_leavesNothingToAdopt(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	was := o.retained(t, "key", nil)
	key := importedKey("key", byName, withDeletionPolicy(v1alpha1.DeletionDelete))
	o.Make(t, key)
	o.enabled(t, key)
	o.Remove(t, key)
	o.Gone(t, key)
	if o.inModule(t, was) {
		t.Error("the key is still in the module")
	}
	next := o.pendingKey(t, "key", byName)
	wantOwnVersion(t, next)

	// The same by the window of a pending deletion, which begins with the new object.
	was = o.retained(t, "pending", nil)
	pending := importedKey("pending", byName, desiring(v1alpha1.DesiredPendingDeletion))
	o.Make(t, pending)
	o.keyIs(t, pending, kms.StatePendingDeletion)
	if pending.Status.KeyVersionID != was.Status.KeyVersionID || !o.inModule(t, was) {
		t.Errorf("it did not adopt the key: %s", harness.JSON(pending.Status))
	}
	clock.SetTime(pending.Status.DeletionTime.Time)
	o.Touch(t, pending)
	o.Stalls(t, pending, kms.ForbiddenKeyNotFound.Reason())
	if o.inModule(t, was) {
		t.Error("the key is still in the module")
	}
}

// The new object's consent counts, not that of the former one.
func TestAdoptByName_consentIsThatOfTheNewObject(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftware)
	all := func(s *v1alpha1.ImportedKeySpec) {
		s.ExportPolicy = &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: "All"}}
	}
	was := o.enabledKey(t, "key", nil, inClusterStore(store.Name), all)
	dataKey := o.dataKey(t, "dek")
	o.Remove(t, was)
	o.Gone(t, was)
	key := importedKey("key", inClusterStore(store.Name), byName)
	o.Make(t, key)
	o.enabled(t, key)
	export := newExport("export", ofBlobUnder(o.Namespace, "key", dataKey.Status.CiphertextBlob, dataKey.Spec.EncryptionContext))
	export.Namespace = o.Env.Namespace(t)
	o.Make(t, export)
	o.Stalls(t, export, kms.ForbiddenNoPermission.Reason())
	o.Change(t, key, func() { all(&key.Spec) })
	o.Ready(t, export)
}

// The namespace of another tenant has no such key, whatever its objects are called.
func TestAdoptByName_inAnotherNamespace_findsNothing(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.clusterStore(t, onSoftHSM)
	rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
	was := o.enabledKey(t, "key", nil, inClusterStore(store.Name), rsa)
	o.Remove(t, was)
	o.Gone(t, was)
	key := importedKey("key", inClusterStore(store.Name), rsa, byName)
	key.Namespace = o.Env.Namespace(t)
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	wantOwnVersion(t, key)
}
