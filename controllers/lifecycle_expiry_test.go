package controllers_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// The end was not noticed yet: the status still says Enabled, and yet no operation is permitted.
func TestExpiry_takesEffectAtTheInstant_thoughNoReconcileRan(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			clock := testClock()
			o := startOperator(t, harness.WithClock(clock))
			o.store(t, kind)
			end := clock.Now().Add(time.Hour)
			rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
			key := o.keyUntil(t, "key", o.material(32), end, rsa)
			o.dataKey(t, "dek")
			exported := func(name string) *v1alpha1.ExportedDataKey { return newExport(name, withRSA("RSAES_OAEP_SHA_1")) }

			clock.SetTime(end.Add(-time.Second))
			before := exported("before")
			o.Make(t, before)
			o.Ready(t, before)

			clock.SetTime(end)
			begun, _ := o.Reconciles(t, key)
			dataKey, export := newDataKey("late"), exported("late-export")
			o.Make(t, dataKey, export)
			for _, object := range []client.Object{dataKey, export} {
				o.Waits(t, object, kms.RejectedPendingImport.Reason(), "Rejected.PendingImport: ")
			}
			o.absent(t, "late")
			o.absent(t, "late-export")
			if again, _ := o.Reconciles(t, key); again == begun {
				if o.Read(t, key); key.Status.KeyState != "Enabled" {
					t.Errorf("the status says %s; the test shows nothing", key.Status.KeyState)
				}
			} else {
				t.Error("the key was reconciled; the test shows nothing")
			}
			if !o.inModule(t, key) {
				t.Error("the material was destroyed already; the test shows nothing")
			}
			if calls := o.Calls(); calls["GenerateDataKey"] != 1 || calls["ExportDataKey"] != 1 {
				t.Errorf("the module was asked: %v", calls)
			}

			o.Touch(t, key)
			o.Waits(t, key, v1alpha1.ReasonPendingImport, "has expired", "same material")
			if o.inModule(t, key) {
				t.Error("the material is in the module still")
			}
			if s := key.Status; s.KeyState != "PendingImport" || s.MaterialFingerprint == "" || s.MaterialExpireTime != nil || s.Custody != "" || s.ImportParameters == nil {
				t.Errorf("the status of a key whose material has ended: %s", harness.JSON(s))
			}
			o.changesOfState(t, key, "PendingImport to Enabled", "Enabled to PendingImport")
			o.Ready(t, before) // what was exported stays
		})
	}
}

// The operator comes back by itself when the time is over: no change has to wake the key. It finds its clock set on,
// or comes again.
func TestExpiry_wakesTheKeyByItself(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	end := clock.Now().Add(2 * time.Second)
	key := o.keyUntil(t, "key", o.material(32), end)
	clock.SetTime(end)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	if o.inModule(t, key) {
		t.Error("the material is in the module still")
	}
}

func TestExpiry_whileTheModuleIsDown_destroysWhenItIsBack(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	end := clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", o.material(32), end)
	o.Module(t).FailAll("DestroyKey", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	clock.SetTime(end)
	o.Touch(t, key)
	o.Waits(t, key, kms.ServiceUnavailableTemporary.Reason())
	if key.Status.KeyState != "PendingImport" || !o.inModule(t, key) {
		t.Errorf("the key is %s, in the module: %t", key.Status.KeyState, o.inModule(t, key))
	}
	clock.SetTime(end.Add(time.Hour))
	o.Module(t).FailAll("DestroyKey", nil)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	if o.inModule(t, key) {
		t.Error("the material is in the module still")
	}
}

func TestExpiry_whileOperatorAndModuleAreDown_destroysWhenBothAreBack(t *testing.T) {
	t.Parallel()
	clock := testClock()
	var away atomic.Bool
	o := startOperator(t, harness.WithClock(clock), harness.BeforeOpen(func(context.Context, hsm.Config) error {
		if away.Load() {
			return hsm.Errorf(hsm.Unavailable, "The device does not answer.")
		}
		return nil
	}))
	o.store(t, onSoftHSM)
	material, end := o.material(32), clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", material, end, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.dataKey(t, "dek")
	o.Stop(t)
	away.Store(true)
	clock.SetTime(end.Add(48 * time.Hour))
	o.Start(t)
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	if key.Status.KeyState != "PendingImport" {
		t.Errorf("the key is %s", key.Status.KeyState)
	}
	away.Store(false)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	if o.inModule(t, key) {
		t.Error("the material is in the module still")
	}
	o.importsAgain(t, key, "1", material, time.Time{})
	o.keyIs(t, key, kms.StateEnabled)
	o.export(t, "export", withRSA("RSAES_OAEP_SHA_1"))
}

func TestExpiry_whileAnotherStateIsDesired(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material, end := o.material(32), clock.Now().Add(48*time.Hour)
	disabled := o.keyUntil(t, "disabled", material, end)
	deleted := o.keyUntil(t, "deleted", material, end)
	o.desire(t, disabled, v1alpha1.DesiredDisabled, 0)
	o.desire(t, deleted, v1alpha1.DesiredPendingDeletion, 7)
	o.keyIs(t, disabled, kms.StateDisabled)
	o.keyIs(t, deleted, kms.StatePendingDeletion)
	date := deleted.Status.DeletionTime.DeepCopy()

	clock.SetTime(end)
	o.Touch(t, disabled)
	o.Touch(t, deleted)
	o.Waits(t, disabled, v1alpha1.ReasonPendingImport)
	o.keyIs(t, deleted, kms.StatePendingDeletion)
	if !deleted.Status.DeletionTime.Equal(date) {
		t.Errorf("the deletion was at %s and is at %s", date, deleted.Status.DeletionTime)
	}
	if o.inModule(t, disabled) || o.inModule(t, deleted) {
		t.Error("material that has ended is in the module")
	}
	o.importsAgain(t, disabled, "1", material, time.Time{})
	o.keyIs(t, disabled, kms.StateDisabled)
	// Without material a deletion that is called off leads to waiting for it.
	o.desire(t, deleted, "", 0)
	o.Waits(t, deleted, v1alpha1.ReasonPendingImport)
	o.importsAgain(t, deleted, "1", material, time.Time{})
	o.keyIs(t, deleted, kms.StateEnabled)
}

// Material that has ended, or was deleted, comes back by an import and by nothing else.
func TestMaterial_gone_comesBackByTheSameMaterialOnly(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		for name, lose := range map[string]func(o *operator, t *testing.T, key *v1alpha1.ImportedKey, expire func()){
			"expired": func(o *operator, t *testing.T, key *v1alpha1.ImportedKey, expire func()) {
				expire()
				o.Touch(t, key)
			},
			"deleted": func(o *operator, t *testing.T, key *v1alpha1.ImportedKey, _ func()) {
				o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "please")
			},
		} {
			t.Run(name+" on "+kind, func(t *testing.T) {
				clock := testClock()
				o := startOperator(t, harness.WithClock(clock))
				o.store(t, kind)
				material, other, end := o.material(32), o.material(32), clock.Now().Add(time.Hour)
				key := o.keyUntil(t, "key", material, end, under("RSA_2048", "RSAES_OAEP_SHA_1"))
				first := key.Status.DeepCopy()
				dataKey := o.dataKey(t, "dek")
				lose(o, t, key, func() { clock.SetTime(end) })
				o.Waits(t, key, v1alpha1.ReasonPendingImport)
				if key.Status.MaterialFingerprint != first.MaterialFingerprint || o.inModule(t, key) {
					t.Fatalf("in the module: %t; %s", o.inModule(t, key), harness.JSON(key.Status))
				}
				o.changesOfState(t, key, "PendingImport to Enabled", "Enabled to PendingImport")

				// The same inputs once more are no import.
				o.ForgetCounts()
				o.Touch(t, key)
				o.Restart(t)
				o.Settled(t, key)
				o.Waits(t, key, v1alpha1.ReasonPendingImport)
				if calls := o.Calls(); calls["ImportKey"] != 0 {
					t.Errorf("it is imported again by itself: %v", calls)
				}

				p := o.renew(t, key, "1").DeepCopy()
				o.give(t, key, inline(wrapUnder(t, p, other), p.ImportToken))
				o.Stalls(t, key, kms.InvalidKeyMaterial.Reason())
				if s := key.Status; s.KeyState != "PendingImport" || s.Custody != "" || s.MaterialFingerprint != first.MaterialFingerprint || o.inModule(t, key) {
					t.Errorf("a refused import changed something: %s", harness.JSON(s))
				}
				refused := o.refusedBytes(t, "refused", dataKey)

				o.give(t, key, until(inline(wrapUnder(t, p, material), p.ImportToken), end.Add(time.Hour)))
				o.enabled(t, key)
				if s := key.Status; s.MaterialFingerprint != first.MaterialFingerprint || s.KeyVersionID != first.KeyVersionID || !s.MaterialExpireTime.Time.Equal(end.Add(time.Hour)) {
					t.Errorf("it came back as another: %s", harness.JSON(s))
				}
				o.Ready(t, refused)
				if n := o.Calls()["GenerateDataKey"]; n != 0 {
					t.Errorf("%d data keys were made anew", n)
				}
			})
		}
	}
}

// refusedBytes makes an export that waits for its key.
func (o *operator) refusedBytes(t testing.TB, name string, dataKey *v1alpha1.DataKey) *v1alpha1.ExportedDataKey {
	t.Helper()
	e := newExport(name, ofDataKey(dataKey.Name), withRSA("RSAES_OAEP_SHA_1"))
	o.Make(t, e)
	o.Waits(t, e, kms.RejectedPendingImport.Reason())
	return e
}

// An annotation is carried out once for each value, and never for one that was there before the material.
func TestDeleteKeyMaterial_isCarriedOutOnceForEachValue(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	material := o.material(32)
	key := o.pendingKey(t, "key")
	o.Again(t, key, func() { o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "before there was any") })
	o.importsAgain(t, key, "1", material, time.Time{})
	o.keyIs(t, key, kms.StateEnabled)

	long := strings.Repeat("with a reason that is longer than what the status keeps, ", 4)
	for _, value := range []string{"2026-01-01", long} {
		o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, value)
		o.Waits(t, key, v1alpha1.ReasonPendingImport)
		o.importsAgain(t, key, "for "+value, material, time.Time{})
		o.keyIs(t, key, kms.StateEnabled)
		o.Touch(t, key)
		o.Restart(t)
		o.Settled(t, key)
		o.keyIs(t, key, kms.StateEnabled)
		if !o.inModule(t, key) {
			t.Fatal("the material was deleted again")
		}
	}
	o.Again(t, key, func() { o.Change(t, key, func() { delete(key.Annotations, v1alpha1.AnnotationDeleteKeyMaterial) }) })
	o.keyIs(t, key, kms.StateEnabled)
}

func TestDeleteKeyMaterial_whileTheModuleIsDown_isTriedUntilItIsDone(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.Module(t).FailAll("DestroyKey", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "please")
	o.Waits(t, key, kms.ServiceUnavailableTemporary.Reason())
	o.Module(t).FailAll("DestroyKey", nil)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	if o.inModule(t, key) {
		t.Error("the material is in the module still")
	}
}

// Another end is another import, earlier or later; none is needed in the module, which has the material.
func TestReimport_setsAnotherEnd(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material, end := o.material(32), clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", material, end)
	for i, next := range []time.Time{end.Add(time.Hour), end.Add(time.Minute), {}, end} {
		o.importsAgain(t, key, string(rune('a'+i)), material, next)
		switch at := key.Status.MaterialExpireTime; {
		case next.IsZero() != (at == nil), at != nil && !at.Time.Equal(next):
			t.Errorf("the material ends at %v, want %s", at, next)
		}
	}
	clock.SetTime(end)
	o.Touch(t, key)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	o.changesOfState(t, key, "PendingImport to Enabled", "Enabled to PendingImport")
}

// A spec may say an end that has passed: a refusal, and what was imported stays.
func TestReimport_withAnEndThatHasPassed_isRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material, end := o.material(32), clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", material, end)
	for _, past := range []time.Time{clock.Now(), clock.Now().Add(-time.Hour)} {
		o.Change(t, key, func() { until(key.Spec.Material, past) })
		o.Stalls(t, key, kms.InvalidParameter.Reason(), "KeyMaterialExpireUnix")
		if s := key.Status; s.KeyState != "Enabled" || !s.MaterialExpireTime.Time.Equal(end) || !o.inModule(t, key) {
			t.Errorf("a refused import changed something: %s", harness.JSON(s))
		}
	}
	// The end that stands is kept, whatever the spec says.
	clock.SetTime(end)
	o.Touch(t, key)
	o.Until(t, key, func() string {
		if key.Status.KeyState != "PendingImport" {
			return "the key is " + string(key.Status.KeyState)
		}
		return ""
	})
	if o.inModule(t, key) {
		t.Error("the material is in the module still")
	}
}

// The end came and the material came back, and no reconcile saw the state in between: what was refused meanwhile
// is served.
func TestExpiry_overBeforeAnybodyNoticed_wakesWhoWasRefused(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material, end := o.material(32), clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", material, end)
	o.dataKey(t, "dek")
	p := o.renew(t, key, "1").DeepCopy()
	clock.SetTime(end)
	waiting := o.refusesUse(t, "meanwhile", kms.RejectedPendingImport)
	o.give(t, key, until(inline(wrapUnder(t, p, material), p.ImportToken), end.Add(time.Hour)))
	o.enabled(t, key)
	o.Ready(t, waiting...)
}

func TestTokens_mayBeUsedAgainWithinTheirTime(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material := o.material(32)
	key := o.keyUntil(t, "key", material, clock.Now().Add(time.Hour))
	p := key.Status.ImportParameters.DeepCopy()
	last := p.TokenExpireTime.Add(-time.Second)
	for _, now := range []time.Time{clock.Now().Add(time.Hour), clock.Now().Add(5 * time.Hour), last} {
		clock.SetTime(now)
		if now.Equal(last) {
			o.Restart(t)
		}
		o.Touch(t, key)
		o.Waits(t, key, v1alpha1.ReasonPendingImport)
		o.give(t, key, until(inline(wrapUnder(t, p, material), p.ImportToken), now.Add(time.Hour)))
		o.enabled(t, key)
	}
	clock.SetTime(p.TokenExpireTime.Add(time.Hour))
	o.Touch(t, key)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	o.give(t, key, inline(wrapUnder(t, p, material), p.ImportToken))
	o.Stalls(t, key, kms.ExpiredImportToken.Reason())
	// With the next renewal the pairs go that have ended by then.
	clock.SetTime(key.Status.ImportParameters.TokenExpireTime.Add(-2 * time.Hour))
	o.Touch(t, key)
	pairs := o.pairs(t, key)
	if len(pairs) == 0 {
		t.Error("the module has no pair for a key that waits")
	}
	for _, pair := range pairs {
		if !clock.Now().Before(pair.NotAfter) {
			t.Errorf("the pair of %s is in the module at %s", pair.NotAfter, clock.Now())
		}
	}
}

// An older pair is good until its own end, however many newer ones were asked for.
func TestTokens_ofEveryPairThatWasAskedFor_work(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	material := o.material(32)
	key := o.pendingKey(t, "key")
	all := []*v1alpha1.ImportParameters{key.Status.ImportParameters.DeepCopy()}
	for _, asked := range []string{"1", "2", "1"} { // a value that was there before is a new one again
		clock.SetTime(clock.Now().Add(time.Hour))
		all = append(all, o.renew(t, key, asked).DeepCopy())
	}
	if n := len(o.pairs(t, key)); n != len(all) {
		t.Fatalf("the module has %d pairs, want %d", n, len(all))
	}
	for _, p := range all {
		o.give(t, key, inline(wrapUnder(t, p, material), p.ImportToken))
		o.enabled(t, key)
	}
	if n := o.Calls()["ImportKey"]; n != len(all) {
		t.Errorf("%d imports, want %d", n, len(all))
	}
	// A pair and a token that do not belong together.
	o.give(t, key, inline(wrapUnder(t, all[0], material), all[1].ImportToken))
	o.Stalls(t, key, kms.InvalidKeyMaterial.Reason())
	o.give(t, key, inline(wrapUnder(t, all[3], material), all[3].ImportToken))
	o.enabled(t, key)

	// Each pair goes with its own end, once it is looked at again.
	clock.SetTime(all[3].TokenExpireTime.Time)
	o.Touch(t, key)
	if n := len(o.pairs(t, key)); n != 0 {
		t.Errorf("%d pairs that have ended are in the module", n)
	}
}

// What was imported in time is no error later, though its token could not be used any more.
func TestImport_thatSucceeded_isNoErrorAfterItsTokensEnd(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	inSpec := o.enabledKey(t, "in-spec", nil)
	inSecret := o.pendingKey(t, "in-secret")
	p := inSecret.Status.ImportParameters
	source := &corev1.Secret{ObjectMeta: named("source"), Data: map[string][]byte{
		"material": wrapUnder(t, p, o.material(32)), "token": []byte(p.ImportToken),
	}}
	o.Make(t, source)
	o.give(t, inSecret, &v1alpha1.MaterialSpec{
		EncryptedKeyMaterialFrom: fromSecret("source", "material"), ImportTokenFrom: fromSecret("source", "token"),
	})
	o.enabled(t, inSecret)
	clock.SetTime(clock.Now().Add(72 * time.Hour))
	keys := []*v1alpha1.ImportedKey{inSpec, inSecret}
	for _, key := range keys {
		o.Touch(t, key)
		o.enabled(t, key)
	}
	o.Restart(t)
	for _, key := range keys {
		o.Settled(t, key)
		o.Touch(t, key)
		o.enabled(t, key)
	}
	// The Secret is written again as it is, by a tool that knows no better.
	o.Again(t, inSecret, func() { o.Change(t, source, func() { source.Annotations = map[string]string{"touched": "yes"} }) })
	o.enabled(t, inSecret)
	if n := o.Calls()["ImportKey"]; n != 0 {
		t.Errorf("%d imports after the restart", n)
	}
	if events := o.Events(t, inSpec); slices.ContainsFunc(events, func(e string) bool { return strings.Contains(e, "Token") }) {
		t.Errorf("the events are %q", events)
	}
}
