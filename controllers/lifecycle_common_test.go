package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// testClock begins at a whole second, for times in the API have no fractions.
func testClock() *clocktesting.FakePassiveClock {
	return clocktesting.NewFakePassiveClock(time.Now().UTC().Truncate(time.Second))
}

// keyIs waits until a key is Ready in that state.
func (o *operator) keyIs(t testing.TB, key *v1alpha1.ImportedKey, state kms.KeyState) {
	t.Helper()
	o.Ready(t, key)
	if kms.KeyState(key.Status.KeyState) != state {
		t.Fatalf("the key is Ready and %s, not %s", key.Status.KeyState, state)
	}
}

// desire sets desiredState, and the window where it is not 0.
func (o *operator) desire(t testing.TB, key *v1alpha1.ImportedKey, state v1alpha1.DesiredKeyState, days int32) {
	t.Helper()
	o.Change(t, key, func() { key.Spec.DesiredState, key.Spec.PendingWindowInDays = state, days })
}

func desiring(state v1alpha1.DesiredKeyState) func(*v1alpha1.ImportedKeySpec) {
	return func(s *v1alpha1.ImportedKeySpec) { s.DesiredState = state }
}

// until sets when material ends.
func until(m *v1alpha1.MaterialSpec, end time.Time) *v1alpha1.MaterialSpec {
	m.ExpireTime = &metav1.Time{Time: end}
	return m
}

// keyUntil makes an Enabled key whose material ends.
func (o *operator) keyUntil(t testing.TB, name string, material []byte, end time.Time, change ...func(*v1alpha1.ImportedKeySpec)) *v1alpha1.ImportedKey {
	t.Helper()
	key := o.pendingKey(t, name, change...)
	p := key.Status.ImportParameters
	o.give(t, key, until(inline(wrapUnder(t, p, material), p.ImportToken), end))
	o.enabled(t, key)
	if at := key.Status.MaterialExpireTime; at == nil || !at.Time.Equal(end) {
		t.Fatalf("the material ends at %v, want %s", at, end)
	}
	return key
}

// importsAgain wraps material under fresh parameters, gives it, and waits until the key has it.
func (o *operator) importsAgain(t testing.TB, key *v1alpha1.ImportedKey, asked string, material []byte, end time.Time) {
	t.Helper()
	p := o.renew(t, key, asked).DeepCopy()
	m := inline(wrapUnder(t, p, material), p.ImportToken)
	if !end.IsZero() {
		until(m, end)
	}
	o.give(t, key, m)
	o.Ready(t, key)
}

// changesOfState waits until the events tell of these changes of state and no others, in any order.
func (o *operator) changesOfState(t testing.TB, key *v1alpha1.ImportedKey, want ...string) {
	t.Helper()
	var notes []string
	for _, change := range want {
		was, is, _ := strings.Cut(change, " to ")
		notes = append(notes, fmt.Sprintf("KeyState: The key was %s and is %s.", was, is))
	}
	slices.Sort(notes)
	harness.Eventually(t, func() string {
		got := slices.DeleteFunc(o.Events(t, key), func(e string) bool { return !strings.HasPrefix(e, "KeyState: ") })
		if slices.Sort(got); !slices.Equal(got, notes) {
			return fmt.Sprintf("the events are %q, want %q", got, notes)
		}
		return ""
	})
}

// refusesUse checks that data keys are neither made nor exported under a key, for that reason. The data key
// dek must be there.
func (o *operator) refusesUse(t testing.TB, name string, code kms.Code) (waiting []client.Object) {
	t.Helper()
	made, exported := newDataKey(name+"-dek"), newExport(name+"-export", toBlob(sm2Recipient().public.Base64()), withSM2)
	o.Make(t, made, exported)
	for _, object := range []client.Object{made, exported} {
		condition := v1alpha1.ConditionReconciling
		if code == kms.ForbiddenKeyNotFound {
			condition = v1alpha1.ConditionStalled
		}
		message := o.Condition(t, object, condition, metav1.ConditionTrue, code.Reason())
		harness.WantWords(t, message, []string{string(code) + ": " + strings.TrimSuffix(code.Message(), ".")})
	}
	o.absent(t, made.Name)
	o.absent(t, exported.Name)
	return []client.Object{made, exported}
}

// noEnd is for material that does not end.
var noEnd time.Time
