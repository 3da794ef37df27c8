package controllers_test

import (
	"errors"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestKeyState_followsItsOwner_andTellsOfEachChange(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	const enabled, disabled, pendingDeletion = v1alpha1.DesiredEnabled, v1alpha1.DesiredDisabled, v1alpha1.DesiredPendingDeletion
	type step struct {
		desired v1alpha1.DesiredKeyState
		is      kms.KeyState // PendingImport is waited for, the others are Ready
	}
	for name, c := range map[string]struct {
		without bool // without material
		steps   []step
		events  []string
	}{
		"disabled-and-enabled": {false, []step{{disabled, kms.StateDisabled}, {enabled, kms.StateEnabled}},
			[]string{"PendingImport to Enabled", "Enabled to Disabled", "Disabled to Enabled"}},
		"disabled-and-nothing-said-any-more": {false, []step{{disabled, kms.StateDisabled}, {"", kms.StateEnabled}},
			[]string{"PendingImport to Enabled", "Enabled to Disabled", "Disabled to Enabled"}},
		"deleted-and-called-off": {false, []step{{pendingDeletion, kms.StatePendingDeletion}, {enabled, kms.StateEnabled}},
			[]string{"PendingImport to Enabled", "Enabled to PendingDeletion", "PendingDeletion to Enabled"}},
		"deleted-and-disabled-instead": {false, []step{{pendingDeletion, kms.StatePendingDeletion}, {disabled, kms.StateDisabled}},
			[]string{"PendingImport to Enabled", "Enabled to PendingDeletion", "PendingDeletion to Disabled"}},
		"disabled-and-deleted": {false, []step{{disabled, kms.StateDisabled}, {pendingDeletion, kms.StatePendingDeletion}},
			[]string{"PendingImport to Enabled", "Enabled to Disabled", "Disabled to PendingDeletion"}},
		"deleted-without-material-and-called-off": {true, []step{{pendingDeletion, kms.StatePendingDeletion}, {enabled, kms.StatePendingImport}},
			[]string{"PendingImport to PendingDeletion", "PendingDeletion to PendingImport"}},
		"disabled-without-material": {true, []step{{disabled, kms.StatePendingImport}, {enabled, kms.StatePendingImport}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var key *v1alpha1.ImportedKey
			if c.without {
				key = o.pendingKey(t, name)
			} else {
				key = o.enabledKey(t, name, nil)
			}
			material := key.Status.DeepCopy()
			for _, s := range c.steps {
				o.desire(t, key, s.desired, 0)
				if s.is == kms.StatePendingImport {
					o.Waits(t, key, v1alpha1.ReasonPendingImport)
					if key.Status.KeyState != "PendingImport" {
						t.Errorf("the key waits for material and is %s", key.Status.KeyState)
					}
				} else {
					o.keyIs(t, key, s.is)
				}
				if scheduled := key.Status.DeletionTime != nil; scheduled != (s.is == kms.StatePendingDeletion) {
					t.Errorf("the key is %s, and its deletion is at %v", s.is, key.Status.DeletionTime)
				}
				if key.Status.MaterialFingerprint != material.MaterialFingerprint || key.Status.Custody != material.Custody {
					t.Errorf("the key is %s and has other material", s.is)
				}
			}
			o.changesOfState(t, key, c.events...)
			if !c.without && !o.inModule(t, key) {
				t.Error("the key is not in the module any more")
			}
		})
	}
}

func TestKey_importedWhileDisabledIsDesired_isDisabled(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key", desiring(v1alpha1.DesiredDisabled))
	p := key.Status.ImportParameters
	o.give(t, key, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
	o.keyIs(t, key, kms.StateDisabled)
	o.changesOfState(t, key, "PendingImport to Disabled")
	o.desire(t, key, "", 0)
	o.keyIs(t, key, kms.StateEnabled)
}

func TestKey_thatMayNotBeUsed_refusesAndWakesWhoWaits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		desired v1alpha1.DesiredKeyState
		is      kms.KeyState
		code    kms.Code
	}{
		"disabled":         {v1alpha1.DesiredDisabled, kms.StateDisabled, kms.RejectedDisabled},
		"pending-deletion": {v1alpha1.DesiredPendingDeletion, kms.StatePendingDeletion, kms.RejectedPendingDeletion},
	} {
		t.Run(name, func(t *testing.T) {
			o := startWithKey(t)
			o.dataKey(t, "dek")
			made := o.export(t, "made-before", toBlob(sm2Recipient().public.Base64()), withSM2)
			key := importedKey("key")
			key.Namespace = o.Namespace
			o.desire(t, key, c.desired, 0)
			o.keyIs(t, key, c.is)
			waiting := o.refusesUse(t, "while", c.code)
			o.Ready(t, made) // what was exported stays
			o.desire(t, key, "", 0)
			o.keyIs(t, key, kms.StateEnabled)
			o.Ready(t, waiting...)
		})
	}
}

func TestPendingDeletion_windowIsCountedFromTheRequest(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	const day = 24 * time.Hour
	for name, c := range map[string]struct{ given, want int32 }{
		"nothing-said": {0, 30}, "the-shortest": {7, 7}, "the-longest": {366, 366},
	} {
		key := o.pendingKey(t, name)
		o.desire(t, key, v1alpha1.DesiredPendingDeletion, c.given)
		o.keyIs(t, key, kms.StatePendingDeletion)
		s := key.Status
		if s.DeletionRequestTime == nil || s.DeletionTime == nil || !s.DeletionRequestTime.Time.Equal(clock.Now()) {
			t.Fatalf("%s: asked for at %v, ends at %v", name, s.DeletionRequestTime, s.DeletionTime)
		}
		if got := s.DeletionTime.Sub(clock.Now()); got != time.Duration(c.want)*day {
			t.Errorf("%s: the window is %s", name, got)
		}
	}
	for _, days := range []int32{-1, 1, 6, 367} {
		key := importedKey("key")
		key.Namespace, key.Labels = o.Namespace, o.Mark()
		key.Spec.DesiredState, key.Spec.PendingWindowInDays = v1alpha1.DesiredPendingDeletion, days
		if err := o.Create(t.Context(), key); !apierrors.IsInvalid(err) {
			t.Errorf("a window of %d days: %v", days, err)
		}
	}

	key := &v1alpha1.ImportedKey{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "nothing-said"}}
	o.Read(t, key)
	asked := key.Status.DeletionRequestTime.Time
	clock.SetTime(asked.Add(5 * day))
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 10)
	o.Until(t, key, func() string {
		if at := key.Status.DeletionTime; !at.Time.Equal(asked.Add(10 * day)) {
			return "the deletion is at " + at.String()
		}
		return ""
	})
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 0)
	o.Until(t, key, func() string {
		if at := key.Status.DeletionTime; !at.Time.Equal(asked.Add(30 * day)) {
			return "the deletion is at " + at.String()
		}
		return ""
	})
	// A deletion that is asked for again begins anew.
	o.desire(t, key, "", 0)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	if s := key.Status; s.DeletionRequestTime != nil || s.DeletionTime != nil {
		t.Errorf("called off, and still asked for at %v, ends at %v", s.DeletionRequestTime, s.DeletionTime)
	}
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
	o.keyIs(t, key, kms.StatePendingDeletion)
	if at := key.Status.DeletionTime; !at.Time.Equal(clock.Now().Add(7 * day)) {
		t.Errorf("the deletion is at %s", at)
	}
}

// A window that is shortened to one that has passed is over.
func TestPendingDeletion_windowShortenedIntoThePast_isOver(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 30)
	o.keyIs(t, key, kms.StatePendingDeletion)
	clock.SetTime(clock.Now().AddDate(0, 0, 8))
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason())
	if o.inModule(t, key) {
		t.Error("the key is in the module still")
	}
}

func TestPendingDeletion_endsInDestruction_atTheInstant(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM, onNSS} {
		t.Run(kind, func(t *testing.T) {
			clock := testClock()
			o := startOperator(t, harness.WithClock(clock))
			o.store(t, kind)
			key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
			fingerprint := key.Status.MaterialFingerprint
			o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
			o.keyIs(t, key, kms.StatePendingDeletion)
			end := key.Status.DeletionTime.Time

			clock.SetTime(end.Add(-time.Second))
			o.Touch(t, key)
			o.keyIs(t, key, kms.StatePendingDeletion)
			if !o.inModule(t, key) {
				t.Fatal("the key was destroyed before its time")
			}
			clock.SetTime(end)
			o.Touch(t, key)
			o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason(), "Forbidden.KeyNotFound: The specified Key is not found.", "destroyed")
			if o.inModule(t, key) || len(o.pairs(t, key)) > 0 {
				t.Error("something of the key is in the module still")
			}
			if s := key.Status; s.KeyState != "Deleted" || s.ImportParameters != nil || s.MaterialFingerprint != fingerprint || s.Custody != "" {
				t.Errorf("the status of a destroyed key: %s", harness.JSON(s))
			}
			o.changesOfState(t, key, "PendingImport to Enabled", "Enabled to PendingDeletion", "PendingDeletion to Deleted")
		})
	}
}

// Nothing brings a destroyed key back, and nothing is made for it.
func TestKey_destroyed_staysSo(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material := o.material(32)
	key := o.enabledKey(t, "key", material)
	o.dataKey(t, "dek")
	p := key.Status.ImportParameters.DeepCopy()
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
	o.keyIs(t, key, kms.StatePendingDeletion)
	clock.SetTime(key.Status.DeletionTime.Time)
	o.Touch(t, key)
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason())
	o.ForgetCounts()

	o.desire(t, key, v1alpha1.DesiredEnabled, 0)
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason())
	o.Again(t, key, func() { o.Annotate(t, key, v1alpha1.AnnotationRenewImportParameters, "please") })
	o.Again(t, key, func() { o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "please") })
	o.give(t, key, inline(wrapUnder(t, p, material), p.ImportToken))
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason())
	if key.Status.KeyState != "Deleted" || key.Status.ImportParameters != nil {
		t.Errorf("a destroyed key says: %s", harness.JSON(key.Status))
	}
	o.refusesUse(t, "after", kms.ForbiddenKeyNotFound)
	if calls := o.Calls(); len(calls) > 0 {
		t.Errorf("the module was called: %v", calls)
	}
	o.Remove(t, key)
	o.Gone(t, key)
}

func TestPendingDeletion_windowEndsWhileTheModuleIsAway_isCarriedOutLater(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
	o.keyIs(t, key, kms.StatePendingDeletion)
	o.Module(t).FailAll("DestroyKey", hsm.Wrap(hsm.Unavailable, errors.New("gone"), "The device does not answer."))
	clock.SetTime(key.Status.DeletionTime.Time)
	o.Touch(t, key)
	o.Waits(t, key, kms.ServiceUnavailableTemporary.Reason(), "The device does not answer.")
	if key.Status.KeyState != "PendingDeletion" || key.Status.DeletionTime == nil {
		t.Errorf("nothing is destroyed, and the key says: %s", harness.JSON(key.Status))
	}
	o.Module(t).FailAll("DestroyKey", nil)
	o.Stalls(t, key, kms.ForbiddenKeyNotFound.Reason())
	if o.inModule(t, key) {
		t.Error("the key is in the module still")
	}
}

// The last word is the clock's: a deletion is called off before its window is over, or not at all.
// The key is still there when the operator comes to look, and its owner wants it: nothing is destroyed.
func TestPendingDeletion_calledOffLate_isCalledOff(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 7)
	o.keyIs(t, key, kms.StatePendingDeletion)
	o.Stop(t)
	o.desire(t, key, "", 0)
	clock.SetTime(key.Status.DeletionTime.Add(time.Hour))
	o.Start(t)
	o.keyIs(t, key, kms.StateEnabled)
	if !o.inModule(t, key) {
		t.Error("the key was destroyed")
	}
}

func TestPendingDeletion_takesNoMaterial(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	p := key.Status.ImportParameters.DeepCopy()
	o.desire(t, key, v1alpha1.DesiredPendingDeletion, 0)
	o.keyIs(t, key, kms.StatePendingDeletion)
	material := o.material(32)
	o.give(t, key, inline(wrapUnder(t, p, material), p.ImportToken))
	o.keyIs(t, key, kms.StatePendingDeletion)
	if n := o.Calls()["ImportKey"]; n != 0 || o.inModule(t, key) {
		t.Errorf("it was imported (%d calls)", n)
	}
	// New parameters are had in every state, and the material comes in once the deletion is called off.
	o.renew(t, key, "1")
	o.desire(t, key, "", 0)
	o.keyIs(t, key, kms.StateEnabled)
	if want, _ := hsm.FingerprintOf(hsm.AES256, material); key.Status.MaterialFingerprint != want.String() {
		t.Error("it is other material")
	}
}

// The warning comes before the deed: a reader of it may have a backup of the module.
func TestKey_inUse_saysSoBeforeItIsDestroyed(t *testing.T) {
	t.Parallel()
	t.Run("by deletion of its object", func(t *testing.T) {
		o := startOperator(t)
		o.store(t, onSoftware)
		key := o.enabledKey(t, "key", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
		unused := o.enabledKey(t, "unused", nil, withDeletionPolicy(v1alpha1.DeletionDelete))
		retained := o.enabledKey(t, "retained", nil)
		o.dataKey(t, "dek")
		o.dataKey(t, "dek-2", underKey("retained"))
		// The module's call waits for the event.
		owner := key.DeepCopy()
		o.Module(t).Before("DestroyKey", func() {
			harness.WantWords(t, o.Event(t, owner, "KeyInUse"), []string{"DataKeys still depend on this key", "permanently lost"})
		})
		o.Remove(t, key)
		o.Gone(t, key)
		for _, other := range []*v1alpha1.ImportedKey{unused, retained} {
			o.Remove(t, other)
			o.Gone(t, other)
			for _, e := range o.Events(t, other) {
				if e[:8] == "KeyInUse" {
					t.Errorf("%s: %s", other.Name, e)
				}
			}
		}
		if o.inModule(t, key) || !o.inModule(t, retained) {
			t.Error("the module has what it should not, or has not what it should")
		}
	})
	t.Run("by a pending deletion", func(t *testing.T) {
		o := startWithKey(t)
		o.dataKey(t, "dek")
		key := importedKey("key")
		key.Namespace = o.Namespace
		o.desire(t, key, v1alpha1.DesiredPendingDeletion, 0)
		o.keyIs(t, key, kms.StatePendingDeletion)
		o.Event(t, key, "KeyInUse")
		if !o.inModule(t, key) {
			t.Error("it is destroyed already")
		}
	})
}
