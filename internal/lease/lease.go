// Package lease elects the one active operator among the replicas in a namespace, and prevents a process that may
// have lost its lease from writing.
//
// Leader election alone does not prevent this: a leader that was stopped (by a debugger, a full disk, a migration of
// its machine) and continues after another has taken over does not know this yet, and would finish its work.
package lease

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// name is the name of the Lease.
const name = "manager.keyconvoy.io"

// Options configure the election.
type Options struct {
	// Namespace is the namespace of the Lease.
	Namespace string
	// Identity identifies this candidate. A process that restarts with the identity of the holder is the holder, and
	// continues without waiting for the lease to expire, so no two running processes may have the same identity.
	// Defaults to a random one.
	Identity string
	// Timing defaults to DefaultTiming.
	Timing Timing
	// Clock defaults to the real clock. Its monotonic reading measures durations independently of the wall clock.
	Clock clock.PassiveClock
}

// Timing holds the durations of an election.
type Timing struct {
	// Duration is the validity of a lease after its last renewal. Then another candidate takes it over.
	Duration time.Duration
	// RenewDeadline is how long the holder tries to renew the lease before its process ends.
	RenewDeadline time.Duration
	// RetryPeriod is the interval of renewals. A candidate checks the lease after one to 2.2 times this interval.
	RetryPeriod time.Duration
}

// DefaultTiming lets another replica take over at most Duration plus 2.2 times RetryPeriod after the leader's last
// renewal: 9.3 s. The leader writes the Lease 40 times a minute, and each waiting replica reads it about 25 times.
var DefaultTiming = Timing{Duration: 6 * time.Second, RenewDeadline: 4 * time.Second, RetryPeriod: 1500 * time.Millisecond}

// ErrNotHeld is the error of a write by a process that may not hold the lease.
var ErrNotHeld = errors.New("the leader's lease may have expired: the request was not sent")

// Elect makes a manager work only while it holds the lease, and reject every write of its client otherwise.
func Elect(options *ctrl.Options, cfg *rest.Config, o Options) error {
	if o.Identity == "" {
		o.Identity = uuid.NewString()
	}
	if o.Timing == (Timing{}) {
		o.Timing = DefaultTiming
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	inner, err := resourcelock.NewFromKubeconfig(resourcelock.LeasesResourceLock, o.Namespace, name,
		resourcelock.ResourceLockConfig{Identity: o.Identity}, cfg, o.Timing.RenewDeadline)
	if err != nil {
		return err
	}
	held := &lock{Interface: inner, duration: o.Timing.Duration, clock: o.Clock}
	options.LeaderElection = true
	options.LeaderElectionID = name
	options.LeaderElectionResourceLockInterface = held
	// The process ends with the manager, so the lease can be released at once.
	options.LeaderElectionReleaseOnCancel = true
	options.LeaseDuration, options.RenewDeadline = ptr.To(o.Timing.Duration), ptr.To(o.Timing.RenewDeadline)
	options.RetryPeriod = ptr.To(o.Timing.RetryPeriod)
	options.NewClient = held.guard(options.NewClient)
	return nil
}

// lock is a Lease that records when this process last renewed it.
type lock struct {
	resourcelock.Interface
	duration time.Duration
	clock    clock.PassiveClock

	mu      sync.Mutex
	renewed time.Time // zero while it is not held
}

// Create implements resourcelock.Interface.
func (l *lock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, record, l.Interface.Create)
}

// Update implements resourcelock.Interface.
func (l *lock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, record, l.Interface.Update)
}

// write records the time before a renewal. Others measure from the time at which they see it, which is later.
func (l *lock) write(ctx context.Context, record resourcelock.LeaderElectionRecord, write func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	at := l.clock.Now()
	if record.HolderIdentity != l.Identity() { // the lease is released
		l.note(time.Time{})
	}
	if err := write(ctx, record); err != nil {
		return err
	}
	if record.HolderIdentity == l.Identity() {
		l.note(at)
	}
	return nil
}

func (l *lock) note(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed = at
}

// left is the remaining validity of the lease; zero or negative if it is not held.
func (l *lock) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.renewed.IsZero() {
		return 0
	}
	// The monotonic clock stops while a machine is suspended, and the wall clock can be changed. The longer time
	// counts.
	now := l.clock.Now()
	return l.duration - max(now.Sub(l.renewed), now.Round(0).Sub(l.renewed.Round(0)))
}

// guard wraps a constructor of clients, nil for the usual one, so that they write only while the lease is held.
func (l *lock) guard(newClient client.NewClientFunc) client.NewClientFunc {
	if newClient == nil {
		newClient = client.New
	}
	return func(cfg *rest.Config, options client.Options) (client.Client, error) {
		guarded := rest.CopyConfig(cfg)
		guarded.Wrap(func(next http.RoundTripper) http.RoundTripper { return &guardedTransport{l, next} })
		httpClient, err := rest.HTTPClientFor(guarded)
		if err != nil {
			return nil, err
		}
		options.HTTPClient = httpClient
		return newClient(guarded, options)
	}
}

// guardedTransport is the last transport before a write is sent, so that no time passes after the check of the lease.
// It limits the duration of a write to the remaining validity of the lease.
type guardedTransport struct {
	lock *lock
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (g *guardedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Method == http.MethodGet || request.Method == http.MethodHead {
		return g.next.RoundTrip(request)
	}
	left := g.lock.left()
	if left <= 0 {
		if request.Body != nil {
			_ = request.Body.Close() // as the contract of RoundTripper requires; the error does not matter
		}
		return nil, ErrNotHeld
	}
	ctx, cancel := context.WithTimeoutCause(request.Context(), left, ErrNotHeld)
	response, err := g.next.RoundTrip(request.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	response.Body = cancelOnClose{response.Body, cancel}
	return response, nil
}

// cancelOnClose releases the timer of a context when the response has been read.
type cancelOnClose struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (c cancelOnClose) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
