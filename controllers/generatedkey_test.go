package controllers_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestGeneratedKey_isMadeInTheModule(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		store   string
		custody v1alpha1.Custody
		specs   []hsm.KeySpec
	}{
		{onSoftware, "Software", hsm.KeySpecs()},
		{onSoftHSM, "Module", []hsm.KeySpec{hsm.AES128, hsm.AES192, hsm.AES256}},
		{onNSS, "Module", []hsm.KeySpec{hsm.AES128, hsm.AES192, hsm.AES256}},
	} {
		t.Run(c.store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, c.store)
			for i, spec := range c.specs {
				key := o.generated(t, fmt.Sprint("key-", i), generatedSpec(spec), generatedWith(v1alpha1.DeletionDelete))
				first := key.Status.Versions[0]
				if first.Custody != c.custody || key.Status.Origin != "Aliyun_KMS" || key.Status.KeyID != string(key.UID) || key.Status.Token == "" {
					t.Errorf("the status is %s", harness.JSON(key.Status))
				}
				dataKey := o.dataKey(t, fmt.Sprint("dek-", i), underGenerated(key.Name))
				if dataKey.Status.KeyVersionID != first.KeyVersionID || len(o.dataKeyBytes(t, dataKey)) != 32 {
					t.Errorf("the data key is %s", harness.JSON(dataKey.Status))
				}
				o.Remove(t, key)
				o.Gone(t, key)
				if ids := o.versionsInModule(t, key); len(ids) != 0 {
					t.Errorf("the module still has %v", ids)
				}
			}
		})
	}
}

func TestGeneratedKey_ofATypeThatTheModuleCannotGenerate_stalls(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := generatedKey("key", generatedSpec(hsm.SM4))
	o.Make(t, key)
	o.Stalls(t, key, kms.UnsupportedOperation.Reason(), "SM4", "use a software key store")
	if key.Status.KeyState != "" || len(key.Status.Versions) != 0 {
		t.Errorf("the status of a key that does not exist is %s", harness.JSON(key.Status))
	}
}

func TestGeneratedKey_firstReconcile_costsOneCallAndOneStatusWrite(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithHealth(time.Hour))
	o.store(t, onSoftHSM)
	o.ForgetCounts()
	key := o.generated(t, "key")
	o.Settled(t, key)
	wantCounts(t, "a new key", o.Writes(), map[string]int{"patch generatedkeys": 1, "patch generatedkeys/status": 1})
	wantCounts(t, "a new key", o.Calls(), map[string]int{"GenerateKey": 1})
	wantCounts(t, "a new key", o.Requests.All().Reads, map[string]int{})
	if all := o.Events(t, key); len(all) != 0 {
		t.Errorf("it made events %q", all)
	}
}

func TestGeneratedKey_secondReconcileAndRestart_costNothing(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithHealth(time.Hour))
	store := o.store(t, onSoftHSM)
	var keys []client.Object
	for i := range 20 {
		keys = append(keys, o.generated(t, fmt.Sprint("key-", i), rotatedEvery("168h")))
	}
	rotated := o.generated(t, "rotated")
	o.rotate(t, rotated, "now")
	o.Event(t, rotated, "KeyRotated")
	keys = append(keys, rotated)
	o.Settled(t, keys...)
	o.ForgetCounts()
	for _, key := range keys {
		o.Touch(t, key)
	}
	wantCounts(t, "another reconcile", o.Writes(), map[string]int{})
	wantCounts(t, "another reconcile", o.Calls(), map[string]int{})
	o.Restart(t)
	o.Settled(t, append(keys, store)...)
	wantCounts(t, "a restart", o.Writes(), map[string]int{})
	wantCounts(t, "a restart", o.Calls(), map[string]int{})
}

func TestGeneratedKey_rotated_oldVersionsOpenAndTheNewOneMakes(t *testing.T) {
	t.Parallel()
	for _, store := range []string{onSoftware, onSoftHSM} {
		t.Run(store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, store)
			key := o.generated(t, "key", generatedWith(v1alpha1.DeletionDelete))
			old := o.dataKey(t, "old", underGenerated("key"))
			plain := o.dataKeyBytes(t, old)
			before := old.ResourceVersion
			o.rotate(t, key, "first")
			if note := o.Event(t, key, "KeyRotated"); note != "Version 2 is the primary version now. Data keys are made under it." {
				t.Errorf("the event says %q", note)
			}
			made := o.dataKey(t, "new", underGenerated("key"))
			if made.Status.KeyVersionID != key.Status.PrimaryVersion {
				t.Errorf("a new data key is under %s, not the primary version", made.Status.KeyVersionID)
			}
			again := o.export(t, "again", ofDataKey("old"), toBlob(sm2Recipient().public.Base64()), withSM2)
			if !bytes.Equal(o.openExport(t, again, sm2Recipient()), plain) || again.Status.KeyVersionID != old.Status.KeyVersionID {
				t.Error("the old data key is another one after the rotation")
			}
			if o.Read(t, old); old.ResourceVersion != before {
				t.Error("the rotation changed a data key that does not ask for it")
			}
			// Neither the same value nor the removal of the annotation requests a rotation.
			o.Touch(t, key)
			o.Change(t, key, func() { delete(key.Annotations, v1alpha1.AnnotationRotate) })
			o.Touch(t, key)
			o.hasVersions(t, key, 2)
			o.Remove(t, key)
			o.Gone(t, key)
			if ids := o.versionsInModule(t, key); len(ids) != 0 {
				t.Errorf("the module still has %v", ids)
			}
		})
	}
}

// The interval counts from the time at which the primary version was made. A clock that is set forward rotates once, early. One
// that is set back rotates late, and neither makes a version twice or loses one.
func TestGeneratedKey_rotatesByTheClock(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	begin := clock.Now()
	key := o.generated(t, "key", rotatedEvery("168h"))
	const week = 7 * 24 * time.Hour
	next := func(want time.Time) {
		t.Helper()
		if at := key.Status.NextRotationTime; at == nil || !at.Time.Equal(want) {
			t.Errorf("the next rotation is at %v, want %s", at, want)
		}
	}
	next(begin.Add(week))
	at := func(now time.Time, versions int) {
		t.Helper()
		clock.SetTime(now)
		o.Touch(t, key)
		o.hasVersions(t, key, versions)
	}
	at(begin.Add(week-time.Second), 1)
	at(begin.Add(week), 2)
	next(begin.Add(2 * week))
	far := begin.Add(52 * week)
	at(far, 3) // once, not 51 times
	next(far.Add(week))
	at(begin, 3)
	next(far.Add(week))
	at(far.Add(week), 4)
	at(far.Add(week-time.Hour), 4) // back across a rotation
	at(far.Add(week), 4)
	if n := len(o.versionsInModule(t, key)); n != 4 {
		t.Errorf("the module has %d versions", n)
	}
}

// A key that is not Enabled is not rotated. A rotation that is requested meanwhile follows when the key is Enabled again.
func TestGeneratedKey_disabled_isRotatedWhenItIsEnabled(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.generated(t, "key", rotatedEvery("168h"), func(s *v1alpha1.GeneratedKeySpec) { s.DesiredState = v1alpha1.DesiredEnabled })
	desire := func(state v1alpha1.DesiredKeyState, is kms.KeyState) {
		t.Helper()
		o.Change(t, key, func() { key.Spec.DesiredState = state })
		o.Ready(t, key)
		if kms.KeyState(key.Status.KeyState) != is {
			t.Errorf("the key is %s, want %s", key.Status.KeyState, is)
		}
	}
	desire(v1alpha1.DesiredDisabled, kms.StateDisabled)
	clock.SetTime(clock.Now().AddDate(0, 0, 8))
	o.Annotate(t, key, v1alpha1.AnnotationRotate, "now")
	o.Touch(t, key)
	o.hasVersions(t, key, 1)
	if key.Status.NextRotationTime != nil {
		t.Errorf("a Disabled key is rotated at %s", key.Status.NextRotationTime)
	}
	waits := newDataKey("dek", underGenerated("key"))
	o.Make(t, waits)
	o.Waits(t, waits, kms.RejectedDisabled.Reason())
	desire(v1alpha1.DesiredEnabled, kms.StateEnabled)
	o.hasVersions(t, key, 2)
	o.Ready(t, waits)
	if waits.Status.KeyVersionID != key.Status.PrimaryVersion {
		t.Errorf("the data key is under %s", waits.Status.KeyVersionID)
	}
}

// An ImportedKey and a GeneratedKey may have the same name.
func TestGeneratedKey_andImportedKeyOfTheSameName_areTwoKeys(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	key := o.generated(t, "key")
	underImported, under := o.dataKey(t, "imported"), o.dataKey(t, "generated", underGenerated("key"))
	if underImported.Status.KeyID == under.Status.KeyID || under.Status.KeyID != string(key.UID) {
		t.Errorf("the data keys are under %s and %s", underImported.Status.KeyID, under.Status.KeyID)
	}
}

func TestGeneratedKey_pendingDeletion_destroysAllVersionsAfterTheWindow(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.generated(t, "key", rotatedEvery("168h"))
	o.rotate(t, key, "now")
	o.dataKey(t, "dek", underGenerated("key"))
	desire := func(state v1alpha1.DesiredKeyState, days int32) {
		t.Helper()
		o.Change(t, key, func() { key.Spec.DesiredState, key.Spec.PendingWindowInDays = state, days })
	}
	desire(v1alpha1.DesiredPendingDeletion, 7)
	o.Ready(t, key)
	o.Event(t, key, "KeyInUse")
	if key.Status.KeyState != "PendingDeletion" || key.Status.DeletionTime == nil || key.Status.NextRotationTime != nil {
		t.Errorf("the status is %s", harness.JSON(key.Status))
	}
	desire(v1alpha1.DesiredEnabled, 0)
	o.Ready(t, key)
	if key.Status.KeyState != "Enabled" || key.Status.DeletionTime != nil {
		t.Errorf("a deletion that was called off leaves %s", harness.JSON(key.Status))
	}
	desire(v1alpha1.DesiredPendingDeletion, 7)
	o.Ready(t, key)
	clock.SetTime(key.Status.DeletionTime.Time)
	o.Touch(t, key)
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason(), "The key was destroyed")
	if ids := o.versionsInModule(t, key); len(ids) != 0 || key.Status.KeyState != "Deleted" {
		t.Errorf("the key is %s, and the module has %v", key.Status.KeyState, ids)
	}
	desire(v1alpha1.DesiredEnabled, 0)
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason())
	if ids := o.versionsInModule(t, key); len(ids) != 0 {
		t.Errorf("a destroyed key was generated again: %v", ids)
	}
}

// The key is not made only to be destroyed, and is made when the deletion is called off.
func TestGeneratedKey_thatIsToBeDestroyedFromTheBeginning_isNotGenerated(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := generatedKey("key", func(s *v1alpha1.GeneratedKeySpec) { s.DesiredState = v1alpha1.DesiredPendingDeletion })
	o.Make(t, key)
	o.Ready(t, key)
	if ids := o.versionsInModule(t, key); len(ids) != 0 || key.Status.KeyState != "PendingDeletion" {
		t.Errorf("the key is %s with %v in the module", key.Status.KeyState, ids)
	}
	o.Change(t, key, func() { key.Spec.DesiredState = "" })
	o.hasVersions(t, key, 1)
}

func TestGeneratedKey_deletedWithRetain_staysInTheModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	o.rotate(t, key, "now")
	o.Remove(t, key)
	o.Gone(t, key)
	if ids := o.versionsInModule(t, key); len(ids) != 2 {
		t.Errorf("the module has %v", ids)
	}
}

func TestGeneratedKey_withTheMaximumOfVersions_isNotRotated(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.generated(t, "key")
	for i := 2; i <= kms.MaxVersions; i++ {
		o.rotate(t, key, fmt.Sprint(i))
	}
	o.Annotate(t, key, v1alpha1.AnnotationRotate, "once more")
	o.Stalls(t, key, kms.UnsupportedOperation.Reason(), "The key has 64 versions, the maximum", "Create another key")
	if n := len(o.versionsInModule(t, key)); n != kms.MaxVersions {
		t.Errorf("the module has %d versions", n)
	}
	o.dataKey(t, "dek", underGenerated("key")) // it still serves
}

// A token that is full in the middle of a rotation costs no version, and what is there serves.
func TestGeneratedKey_tokenFullDuringARotation_isRotatedLater(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := o.generated(t, "key", generatedWith(v1alpha1.DeletionDelete))
	k := o.dataKey(t, "dek", underGenerated("key"), onRotation)
	former := *k.Status.DeepCopy()
	o.Module(t).FailAll("GenerateKey", hsm.Errorf(hsm.Unavailable, "the token is full"))
	o.Annotate(t, key, v1alpha1.AnnotationRotate, "now")
	o.Condition(t, key, v1alpha1.ConditionReady, metav1.ConditionFalse, kms.ServiceUnavailableTemporary.Reason())
	if len(key.Status.Versions) != 1 || key.Status.PrimaryVersion != former.KeyVersionID || key.Status.KeyState != "Enabled" {
		t.Errorf("the status is %s", harness.JSON(key.Status))
	}
	o.dataKey(t, "meanwhile", underGenerated("key"))
	o.Module(t).FailAll("GenerateKey", nil)
	o.hasVersions(t, key, 2)
	o.movedTo(t, k, key.Status.PrimaryVersion, former)
	if n := len(o.versionsInModule(t, key)); n != 2 {
		t.Errorf("the module has %d versions", n)
	}
	o.Remove(t, key)
	o.Gone(t, key)
}

// What a deletion leaves in a module is said once, with all versions that were generated and no others.
func TestGeneratedKey_deleted_saysWhichVersionsItLeaves(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	token, empty := ownToken(t), ownToken(t)
	store := o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Token.Label = token.Label })
	elsewhere, orphan := o.generated(t, "elsewhere", generatedWith(v1alpha1.DeletionDelete)), o.generated(t, "orphan", generatedWith(v1alpha1.DeletionDelete))
	for _, key := range []*v1alpha1.GeneratedKey{elsewhere, orphan} {
		o.rotate(t, key, "now")
	}
	o.Change(t, store, func() { store.Spec.PKCS11.Token.Label = empty.Label })
	o.Ready(t, store)
	o.Remove(t, elsewhere)
	o.Gone(t, elsewhere)
	o.leaves(t, elsewhere, "now has another token")

	module := o.Module(t)
	o.Remove(t, store)
	o.editor(t, o.Namespace).release(t, store)
	o.closed(t, module)
	o.Gone(t, store)
	o.Remove(t, orphan)
	o.Gone(t, orphan)
	o.leaves(t, orphan, "no longer exists")
}

// leaves checks that one event says which versions a deleted key left.
func (o *operator) leaves(t testing.TB, key *v1alpha1.GeneratedKey, says string) {
	t.Helper()
	words := []string{says}
	for _, v := range key.Status.Versions {
		words = append(words, v.KeyVersionID)
	}
	note := o.Event(t, key, "LeftInModule")
	harness.WantWords(t, note, words)
	next := kms.VersionID(uuid.MustParse(string(key.UID)), len(key.Status.Versions)+1).String()
	if strings.Contains(note, next) || strings.Contains(note, "import") {
		t.Errorf("the event is about something that never was in the module: %s", note)
	}
	n := 0
	for _, e := range o.Events(t, key) {
		if strings.HasPrefix(e, "LeftInModule") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d events say it: %q", n, o.Events(t, key))
	}
}
