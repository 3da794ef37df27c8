package controllers_test

import (
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// pairs are the wrapping pairs that the module has for a key.
func (o *operator) pairs(t testing.TB, key *v1alpha1.ImportedKey) []hsm.WrappingKey {
	t.Helper()
	pairs, err := o.module(t).ListWrappingKeys(t.Context(), uuid.MustParse(string(key.UID)))
	if err != nil {
		t.Fatal(err)
	}
	return pairs
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
	o.touch(t, key)
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
		t.Errorf("the key is another: %s", toJSON(s))
	}
}

func TestImportedKey_parameters_areRenewedBeforeTheyEnd_whileTheKeyWaits(t *testing.T) {
	t.Parallel()
	clock := clocktesting.NewFakePassiveClock(time.Now())
	o := startOperator(t, withClock(clock))
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	first := key.Status.ImportParameters.DeepCopy()
	if d := first.TokenExpireTime.Sub(clock.Now()); d <= 24*time.Hour-2*time.Second || d > 24*time.Hour {
		t.Errorf("the token is good for %s, want 24 h", d)
	}

	clock.SetTime(first.TokenExpireTime.Add(-2*time.Hour - time.Second))
	o.touch(t, key)
	if key.Status.ImportParameters.ImportToken != first.ImportToken {
		t.Fatal("renewed too early")
	}

	clock.SetTime(first.TokenExpireTime.Add(-2 * time.Hour))
	o.touch(t, key)
	o.waits(t, key, v1alpha1.ReasonPendingImport)
	second := key.Status.ImportParameters.DeepCopy()
	if second.ImportToken == first.ImportToken || !second.TokenExpireTime.After(first.TokenExpireTime.Time) {
		t.Fatal("not renewed")
	}
	if n := len(o.pairs(t, key)); n != 2 {
		t.Errorf("the module has %d pairs, want the older one too", n)
	}

	// The older pair ends with its own token.
	clock.SetTime(second.TokenExpireTime.Add(-2 * time.Hour))
	o.touch(t, key)
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
	o := startOperator(t, withClock(clock))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	end := key.Status.ImportParameters.TokenExpireTime.Time

	clock.SetTime(end.Add(-time.Second))
	o.touch(t, key)
	if key.Status.ImportParameters == nil || len(o.pairs(t, key)) != 1 {
		t.Fatal("the parameters are gone too early")
	}
	clock.SetTime(end)
	o.touch(t, key)
	o.enabled(t, key)
	if key.Status.ImportParameters != nil {
		t.Error("parameters that have ended are published")
	}
	if n := len(o.pairs(t, key)); n != 0 {
		t.Errorf("%d pairs that have ended are in the module", n)
	}
	o.quiet(t, key)
	o.touch(t, key)
	o.costsNothing(t)
	o.renew(t, key, "1")
	o.enabled(t, key)
}
