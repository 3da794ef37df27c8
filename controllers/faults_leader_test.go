package controllers_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/lease"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// leaderLease reads the Lease of the test's operators.
func (o *operator) leaderLease(t testing.TB) coordinationv1.LeaseSpec {
	t.Helper()
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: o.OwnNamespace, Name: "manager.keyconvoy.io"}}
	o.Read(t, l)
	return l.Spec
}

// A container that is restarted in its pod is the holder of the lease already. The lease lasts so long that a process
// which waited for its end would not be seen to serve.
func TestLeader_killedAndStartedAgain_isTheHolderStill(t *testing.T) {
	t.Parallel()
	const pod = "9d3f2c1a-8a57-4b7e-9a53-2f4f1b6f6a10"
	m := startMortal(t, tokens.Token{}, func(g *givenOperator) {
		g.Identity, g.Timing = pod, lease.Timing{Duration: time.Hour, RenewDeadline: 50 * time.Minute, RetryPeriod: time.Second}
	})
	m.store(t, onSoftware)
	m.enabledKey(t, "key", nil)
	before := m.leaderLease(t)
	if ptr.Deref(before.HolderIdentity, "") != pod {
		t.Fatalf("the holder is %v", before.HolderIdentity)
	}
	m.ends = true
	m.kill()
	_ = m.calls.Close()
	if killed := m.leaderLease(t); ptr.Deref(killed.HolderIdentity, "") != pod {
		t.Fatalf("the killed process gave its lease back: %v", killed.HolderIdentity)
	}

	m.ends = false
	m.begin(t)
	m.dataKey(t, "dek")
	after := m.leaderLease(t)
	if ptr.Deref(after.HolderIdentity, "") != pod || ptr.Deref(after.LeaseTransitions, 0) != ptr.Deref(before.LeaseTransitions, 0) || !after.AcquireTime.Equal(before.AcquireTime) {
		t.Errorf("the lease changed hands: %s, was %s", harness.JSON(after), harness.JSON(before))
	}
}

// A leader is stopped in the middle of an export. Another takes over, and withdraws. The former one goes on.
func TestLeader_frozenWhileAnotherWithdraws_writesNothing(t *testing.T) {
	t.Parallel()
	timing := lease.Timing{Duration: 20 * time.Second, RenewDeadline: 18 * time.Second, RetryPeriod: 500 * time.Millisecond}
	m := startMortal(t, tokens.Token{}, func(g *givenOperator) { g.Identity, g.Timing = "first", timing })
	m.store(t, onSoftware)
	m.enabledKey(t, "key", nil)
	m.dataKey(t, "dek")
	m.freezeAfter(t, 1) // the module has made the export, and nothing is written
	e := newExport("e")
	m.Make(t, e)
	m.frozen(t)

	m.setPolicy(t, &policy{Recipients: toRecipients(otherRSARecipient())})
	startOperatorOn(t, m.Env, beside(m.operator), electing(lease.Options{Identity: "second", Timing: timing}))
	eventuallyLater(t, m.endsAs(t, e, "ForbiddenNoPermission"))
	if holder := ptr.Deref(m.leaderLease(t).HolderIdentity, ""); holder != "second" {
		t.Fatalf("the holder is %s", holder)
	}
	written := m.statusesFrom(t, e)

	if err := syscall.Kill(m.cmd.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.settled(t, e)
	m.absent(t, "e")
	for _, status := range written() { // the new leader may write again, but what it wrote before
		if reason := readyReason(status); reason != "ForbiddenNoPermission" {
			t.Errorf("the former leader wrote the status %s: %s", reason, harness.JSON(status))
		}
	}
	m.ends = true
	m.kill() // as the product ends itself when the lease is lost
}

// statusesFrom follows an export from the version that was read. The function that it returns ends that, and returns
// every status that was written since.
func (o *operator) statusesFrom(t *testing.T, e *v1alpha1.ExportedDataKey) func() []v1alpha1.ExportedDataKeyStatus {
	t.Helper()
	c, err := client.NewWithWatch(o.Env.Config, client.Options{Scheme: o.Env.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Watch(t.Context(), &v1alpha1.ExportedDataKeyList{}, client.InNamespace(e.Namespace),
		&client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: e.ResourceVersion}})
	if err != nil {
		t.Fatal(err)
	}
	return func() (statuses []v1alpha1.ExportedDataKeyStatus) {
		defer w.Stop()
		o.Annotate(t, e, "example.com/last", "true")
		for {
			select {
			case event := <-w.ResultChan():
				is, ok := event.Object.(*v1alpha1.ExportedDataKey)
				if !ok {
					t.Fatalf("the watch ended: %v", event)
				}
				if metav1.HasAnnotation(is.ObjectMeta, "example.com/last") {
					return statuses
				}
				statuses = append(statuses, is.Status)
			case <-time.After(harness.Patience):
				t.Fatal("the watch shows no end")
			}
		}
	}
}

func readyReason(status v1alpha1.ExportedDataKeyStatus) string {
	for _, c := range status.Conditions {
		if c.Type == v1alpha1.ConditionReady {
			return c.Reason
		}
	}
	return "none"
}

// The process does not know yet that its lease is over: no renewal has failed.
func TestLeader_whoseLeaseIsOver_writesNothing(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startToSpread(t, "Same", electing(lease.Options{
		Identity: "only", Clock: clock,
		Timing: lease.Timing{Duration: 10 * time.Hour, RenewDeadline: 9 * time.Hour, RetryPeriod: 5 * time.Hour}, // it is not renewed in the test
	}))
	o.slowly(t, func() { clock.SetTime(clock.Now().Add(10 * time.Hour)) })
	e := newExport("e")
	o.Make(t, e)
	harness.Eventually(t, func() string {
		if !strings.Contains(o.Log.String(), lease.ErrNotHeld.Error()) {
			return "nothing was refused"
		}
		return ""
	})
	o.absent(t, "e")
	if o.Read(t, e); len(e.Status.Conditions) > 0 {
		t.Errorf("the status was written: %s", harness.StatusJSON(e))
	}
	o.Restart(t) // which acquires it anew
	o.Ready(t, e)
}

// eventuallyLater waits longer than eventually does: a lease must expire meanwhile.
func eventuallyLater(t testing.TB, problem func() string) {
	t.Helper()
	deadline := time.After(3 * harness.Patience)
	tick := time.NewTicker(harness.Interval)
	defer tick.Stop()
	for {
		last := problem()
		if last == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(last)
		case <-tick.C:
		}
	}
}
