package lease

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
	clocktesting "k8s.io/utils/clock/testing"
)

// paper is a Lease that is not in a cluster.
type paper struct {
	resourcelock.Interface
	err error
}

func (p *paper) Identity() string { return "me" }

func (p *paper) Create(context.Context, resourcelock.LeaderElectionRecord) error { return p.err }

func (p *paper) Update(context.Context, resourcelock.LeaderElectionRecord) error { return p.err }

var errServer = errors.New("the API server does not answer")

// sends sends a request through the guard and says whether it arrived, and how long it might take.
func (l *lock) sends(t *testing.T, method string) (arrived bool, most time.Duration, err error) {
	t.Helper()
	next := func(r *http.Request) (*http.Response, error) {
		arrived = true
		if deadline, bounded := r.Context().Deadline(); bounded {
			most = time.Until(deadline)
		}
		return &http.Response{Body: io.NopCloser(strings.NewReader("done"))}, nil
	}
	response, err := (&guardedTransport{l, roundTripper(next)}).RoundTrip(httptest.NewRequest(method, "/", strings.NewReader("body")))
	if err == nil {
		if _, err := io.ReadAll(response.Body); err != nil {
			t.Errorf("the response cannot be read: %v", err)
		}
		_ = response.Body.Close()
	}
	return arrived, most, err
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestGuard_letsWritesThroughWhileTheLeaseIsHeldOnly(t *testing.T) {
	t.Parallel()
	mine, theirs, nobodys := resourcelock.LeaderElectionRecord{HolderIdentity: "me"}, resourcelock.LeaderElectionRecord{HolderIdentity: "them"}, resourcelock.LeaderElectionRecord{}
	type step func(*lock, *paper, *clocktesting.FakePassiveClock)
	create := func(l *lock, _ *paper, _ *clocktesting.FakePassiveClock) { _ = l.Create(context.Background(), mine) }
	update := func(record resourcelock.LeaderElectionRecord) step {
		return func(l *lock, _ *paper, _ *clocktesting.FakePassiveClock) { _ = l.Update(context.Background(), record) }
	}
	later := func(d time.Duration) step {
		return func(_ *lock, _ *paper, c *clocktesting.FakePassiveClock) { c.SetTime(c.Now().Add(d)) }
	}
	fails := func(_ *lock, p *paper, _ *clocktesting.FakePassiveClock) { p.err = errServer }
	for sentence, tc := range map[string]struct {
		steps []step
		left  time.Duration
	}{
		"before the first renewal":          {nil, 0},
		"just created":                      {[]step{create}, time.Minute},
		"just renewed":                      {[]step{create, later(time.Hour), update(mine)}, time.Minute},
		"a while later":                     {[]step{create, later(59 * time.Second)}, time.Second},
		"at its end":                        {[]step{create, later(time.Minute)}, 0},
		"after its end":                     {[]step{create, later(time.Hour)}, 0},
		"a renewal that failed":             {[]step{create, later(40 * time.Second), fails, update(mine)}, 20 * time.Second},
		"renewals that failed for too long": {[]step{create, fails, later(time.Minute), update(mine)}, 0},
		"given back":                        {[]step{create, update(nobodys)}, 0},
		"not even given back":               {[]step{create, fails, update(nobodys)}, 0},
		"of another operator":               {[]step{create, update(theirs)}, 0},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			clock, p := clocktesting.NewFakePassiveClock(time.Now()), &paper{}
			l := &lock{Interface: p, duration: time.Minute, clock: clock}
			for _, s := range tc.steps {
				s(l, p, clock)
			}
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
				arrived, most, err := l.sends(t, method)
				if arrived != (tc.left > 0) || errors.Is(err, ErrNotHeld) != (tc.left == 0) {
					t.Errorf("%s arrived: %t, %v", method, arrived, err)
				}
				if most > tc.left {
					t.Errorf("%s might take %s", method, most)
				}
			}
			if arrived, _, err := l.sends(t, http.MethodGet); !arrived || err != nil {
				t.Errorf("GET arrived: %t, %v", arrived, err)
			}
		})
	}
}

func TestDefaultTiming_hasAnotherTakeOverWithinTenSeconds(t *testing.T) {
	t.Parallel()
	d := DefaultTiming
	if most := d.Duration + d.RetryPeriod*22/10; most > 10*time.Second {
		t.Errorf("another takes over after up to %s", most)
	}
	if d.RenewDeadline >= d.Duration || d.RetryPeriod*12/10 >= d.RenewDeadline {
		t.Error("client-go refuses it")
	}
}
