package controllers_test

import (
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// pairs are the wrapping pairs that the module has for a key.
func (o *operator) pairs(t testing.TB, key *v1alpha1.ImportedKey) []hsm.WrappingKey {
	t.Helper()
	pairs, err := hsmtest.PairsOf(t.Context(), o.Module(t), uuid.MustParse(string(key.UID)))
	if err != nil {
		t.Fatal(err)
	}
	return pairs
}

// publishedPair is the pair that a key's import token names.
func publishedPair(t testing.TB, key *v1alpha1.ImportedKey) uuid.UUID {
	t.Helper()
	token, err := base64.StdEncoding.DecodeString(key.Status.ImportParameters.ImportToken)
	if err != nil {
		t.Fatal(err)
	}
	return uuid.UUID(token[17:33])
}

func TestImportedKey_renewal_leavesTheOlderPairUsable(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	former := key.Status.ImportParameters.DeepCopy()
	fresh := o.renew(t, key, "1").DeepCopy()
	if fresh.ImportToken == former.ImportToken {
		t.Error("another pair has the same token")
	}
	if n := len(o.pairs(t, key)); n != 2 {
		t.Errorf("the module has %d pairs, want 2", n)
	}
	o.Touch(t, key)
	if p := key.Status.ImportParameters; p.ImportToken != fresh.ImportToken {
		t.Error("one request made two renewals")
	}
	o.give(t, key, inline(wrapUnder(t, former, o.material(32)), former.ImportToken))
	o.enabled(t, key)
}

func TestImportedKey_renewal_ofAnEnabledKey_leavesItEnabled(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	first := key.Status.DeepCopy()
	o.renew(t, key, "please, and with more words than the status keeps of them: "+time.Now().String())
	o.enabled(t, key)
	if s := key.Status; s.MaterialFingerprint != first.MaterialFingerprint || s.InputsDigest != first.InputsDigest {
		t.Errorf("the key is another: %s", harness.JSON(s))
	}
}

func TestImportedKey_parameters_areRenewedBeforeTheyEnd_whileTheKeyWaits(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakePassiveClock(time.Now())
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	first := key.Status.ImportParameters.DeepCopy()
	if d := first.TokenExpireTime.Sub(clock.Now()); d <= 24*time.Hour-2*time.Second || d > 24*time.Hour {
		t.Errorf("the token is good for %s, want 24 h", d)
	}

	clock.SetTime(first.TokenExpireTime.Add(-2*time.Hour - time.Second))
	o.Touch(t, key)
	if key.Status.ImportParameters.ImportToken != first.ImportToken {
		t.Fatal("renewed too early")
	}

	clock.SetTime(first.TokenExpireTime.Add(-2 * time.Hour))
	o.Touch(t, key)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	second := key.Status.ImportParameters.DeepCopy()
	if second.ImportToken == first.ImportToken || !second.TokenExpireTime.After(first.TokenExpireTime.Time) {
		t.Fatal("not renewed")
	}
	if n := len(o.pairs(t, key)); n != 2 {
		t.Errorf("the module has %d pairs, want the older one too", n)
	}

	// The older pair ends with its own token.
	clock.SetTime(second.TokenExpireTime.Add(-2 * time.Hour))
	o.Touch(t, key)
	if n := len(o.pairs(t, key)); n != 2 {
		t.Errorf("the module has %d pairs, want the last two", n)
	}
	third := key.Status.ImportParameters
	o.give(t, key, inline(wrapUnder(t, second, o.material(32)), second.ImportToken))
	o.enabled(t, key)
	if third == nil {
		t.Error("there are no parameters")
	}
}

func TestImportedKey_parameters_goWithTheirEnd_onceTheKeyIsEnabled(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakePassiveClock(time.Now())
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	end := key.Status.ImportParameters.TokenExpireTime.Time

	clock.SetTime(end.Add(-time.Second))
	o.Touch(t, key)
	if key.Status.ImportParameters == nil || len(o.pairs(t, key)) != 1 {
		t.Fatal("the parameters disappeared too early")
	}
	clock.SetTime(end)
	o.Touch(t, key)
	o.enabled(t, key)
	if key.Status.ImportParameters != nil {
		t.Error("parameters that have ended are published")
	}
	if n := len(o.pairs(t, key)); n != 0 {
		t.Errorf("%d pairs that have ended are in the module", n)
	}
	o.quiet(t, key)
	o.Touch(t, key)
	o.costsNothing(t)
	o.renew(t, key, "1")
	o.enabled(t, key)
}

// pairsAre waits until a key has so many pairs, none of which has ended, and its status says when the first ends of
// those that are not published any more.
func (o *operator) pairsAre(t testing.TB, key *v1alpha1.ImportedKey, want int) {
	t.Helper()
	o.Until(t, key, func() string {
		pairs := o.pairs(t, key)
		var former time.Time
		for _, pair := range pairs {
			p := key.Status.ImportParameters
			published := p != nil && p.TokenExpireTime.Time.Equal(pair.NotAfter)
			if !published && (former.IsZero() || pair.NotAfter.Before(former)) {
				former = pair.NotAfter
			}
			if !o.Clock.Now().Before(pair.NotAfter) {
				return fmt.Sprintf("the pair of %s is in the module at %s", pair.NotAfter, o.Clock.Now())
			}
		}
		at := key.Status.FormerParametersExpireTime
		switch {
		case len(pairs) != want:
			return fmt.Sprintf("the module has %d pairs, want %d", len(pairs), want)
		case (at == nil) != former.IsZero(), at != nil && !at.Time.Equal(former):
			return fmt.Sprintf("the first of the former pairs ends at %v, want %s", at, former)
		}
		return ""
	})
}

// Each pair ends by itself, whatever became of the key meanwhile, also while the operator is down.
func TestImportedKey_formerPairs_goWithTheirOwnEnd(t *testing.T) {
	t.Parallel()
	for state, desired := range map[kms.KeyState]v1alpha1.DesiredKeyState{
		kms.StatePendingImport: "", kms.StateEnabled: "",
		kms.StateDisabled: v1alpha1.DesiredDisabled, kms.StatePendingDeletion: v1alpha1.DesiredPendingDeletion,
	} {
		for _, kind := range []string{onSoftware, onSoftHSM} {
			t.Run(fmt.Sprintf("%s on %s", state, kind), func(t *testing.T) {
				clock := testClock()
				o := startOperator(t, harness.WithClock(clock))
				o.store(t, kind)
				key := o.pendingKey(t, "key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
				if p := key.Status.ImportParameters; state != kms.StatePendingImport {
					o.give(t, key, inline(wrapUnder(t, p, o.material(32)), p.ImportToken))
					o.enabled(t, key)
				}
				ends := []time.Time{key.Status.ImportParameters.TokenExpireTime.Time}
				for _, asked := range []string{"1", "2"} {
					clock.SetTime(clock.Now().Add(20 * time.Minute))
					ends = append(ends, o.renew(t, key, asked).TokenExpireTime.Time)
				}
				if desired != "" {
					o.desire(t, key, desired, 0)
					o.keyIs(t, key, state)
				}
				o.Settled(t, key)
				left := len(ends)
				o.pairsAre(t, key, left)
				if state == kms.StatePendingImport { // which has other parameters before those end
					clock.SetTime(ends[2].Add(-2 * time.Hour))
					o.Touch(t, key)
					left++
					o.pairsAre(t, key, left)
				}

				for i, end := range ends {
					clock.SetTime(end.Add(-time.Second))
					o.Touch(t, key)
					o.pairsAre(t, key, left)
					if clock.SetTime(end); i == 1 {
						o.Restart(t)
					} else {
						o.Touch(t, key)
					}
					left--
					o.pairsAre(t, key, left)
					if got := kms.KeyState(key.Status.KeyState); got != state {
						t.Errorf("the key is %s", got)
					}
					o.Settled(t, key)
					o.ForgetCounts()
					o.Touch(t, key)
					o.costsNothing(t)
				}
				o.Restart(t)
				o.Settled(t, key)
				if w, calls := o.Writes(), o.Calls(); len(w) != 0 || len(calls) != 0 {
					t.Errorf("the restart wrote %v and called %v", w, calls)
				}
			})
		}
	}
}

// startWithFormerPair starts an operator with a key that has a pair, and another that superseded it an hour later;
// end is that of the first.
func startWithFormerPair(t *testing.T) (o *operator, clock *clocktesting.FakePassiveClock, key *v1alpha1.ImportedKey, end time.Time) {
	t.Helper()
	clock = testClock()
	o = startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key = o.enabledKey(t, "key", nil)
	end = key.Status.ImportParameters.TokenExpireTime.Time
	clock.SetTime(clock.Now().Add(time.Hour))
	o.renew(t, key, "1")
	return o, clock, key, end
}

// No change wakes the key: it is reconciled again by itself.
func TestImportedKey_formerPair_isLookedAtWhenItEnds(t *testing.T) {
	t.Parallel()
	o, clock, key, end := startWithFormerPair(t)
	clock.SetTime(end.Add(-time.Second))
	o.Touch(t, key)
	o.pairsAre(t, key, 2)
	clock.SetTime(end)
	o.Until(t, key, func() string {
		if key.Status.FormerParametersExpireTime != nil {
			return "the former pair is still spoken of"
		}
		return ""
	})
	o.pairsAre(t, key, 1)
	o.enabled(t, key)
}

func TestOperator_endsBetweenDestroyingAFormerPairAndSayingSo_goesOn(t *testing.T) {
	t.Parallel()
	var c cut
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock), c.option())
	o.store(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	end := key.Status.ImportParameters.TokenExpireTime.Time
	for _, asked := range []string{"1", "2"} {
		clock.SetTime(clock.Now().Add(time.Hour))
		o.renew(t, key, asked)
	}
	c.on.Store(true)
	clock.SetTime(end)
	o.called(t, "DestroyWrappingKey", func() { o.Annotate(t, key, harness.AnnotationTouched, "yes") })
	o.Stop(t)
	c.on.Store(false)
	if o.Read(t, key); !key.Status.FormerParametersExpireTime.Time.Equal(end) {
		t.Fatal("the status was written; the test shows nothing")
	}
	o.Start(t)
	o.pairsAre(t, key, 2)
	o.enabled(t, key)
}

// The module fails at that very moment: it is tried until it is done, and the key comes back.
func TestImportedKey_formerPair_thatCannotBeDestroyed_isTriedAgain(t *testing.T) {
	t.Parallel()
	o, clock, key, end := startWithFormerPair(t)
	o.Module(t).FailAll("DestroyWrappingKey", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
	clock.SetTime(end)
	o.Annotate(t, key, harness.AnnotationTouched, "yes")
	o.Waits(t, key, kms.ServiceUnavailableTemporary.Reason())
	o.Module(t).FailAll("DestroyWrappingKey", nil)
	o.enabled(t, key)
	o.pairsAre(t, key, 1)
}

// A namespace that may not use the key store any more still takes out what it put in.
func TestImportedKey_pairs_goWithTheirEnd_alsoWithoutConsent(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	store := o.clusterStore(t, onSoftware)
	key := o.enabledKey(t, "key", nil, inClusterStore(store.Name))
	end := key.Status.ImportParameters.TokenExpireTime.Time
	clock.SetTime(clock.Now().Add(time.Hour))
	last := o.renew(t, key, "1").TokenExpireTime.Time
	o.Change(t, store, func() {
		store.Spec.AllowedNamespaces = &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{corev1.LabelMetadataName: "another"}}
	})
	o.Ready(t, store)
	for i, at := range []time.Time{end, last} {
		clock.SetTime(at)
		o.Touch(t, key)
		o.pairsAre(t, key, 1-i)
		o.enabled(t, key)
	}
}

// Nor does it take consent that the key may still ask for new ones: it waits, and is refused them.
func TestImportedKey_pairs_goWithTheirEnd_alsoWhenNewOnesAreRefused(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	store := o.clusterStore(t, onSoftware)
	key := o.pendingKey(t, "key", inClusterStore(store.Name))
	o.Change(t, store, func() {
		store.Spec.AllowedNamespaces = &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{corev1.LabelMetadataName: "another"}}
	})
	o.Ready(t, store)
	clock.SetTime(key.Status.ImportParameters.TokenExpireTime.Time)
	o.Touch(t, key)
	o.Stalls(t, key, "ForbiddenNoPermission")
	o.pairsAre(t, key, 0)
}

// A status of an older version does not say when former pairs end: they go with the published one, as they did, or with
// the sweep when the key store is opened, so nothing has ended yet at the restart.
func TestImportedKey_formerPairs_ofAnOlderVersion_goWithThePublishedOne(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	clock.SetTime(clock.Now().Add(time.Hour))
	last := o.renew(t, key, "1").TokenExpireTime.Time
	o.Stop(t)
	before := key.DeepCopy()
	key.Status.FormerParametersExpireTime = nil
	if err := o.Status().Patch(t.Context(), key, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	o.Restart(t)
	o.Settled(t, key)
	if w, calls := o.Writes(), o.Calls(); len(w) != 0 || len(calls) != 0 {
		t.Errorf("the restart wrote %v and called %v", w, calls)
	}
	clock.SetTime(last)
	o.Touch(t, key)
	o.pairsAre(t, key, 0)
	o.enabled(t, key)
}
