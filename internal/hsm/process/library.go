package process

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/semaphore"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

const (
	// The first restart after a failure is immediate, and the next ones are delayed, each twice as long as the one before.
	minDelay = time.Second
	maxDelay = time.Minute
	// stableAfter is how long after a failure the next one counts as the first again.
	stableAfter = 10 * time.Minute
)

// library is a PKCS#11 library and the child that runs it, if any.
type library struct {
	name     string
	provider *Provider
	log      logr.Logger

	busy     *semaphore.Weighted // guards the fields below; held while a child starts or stops, which takes time
	child    *child
	users    int // modules of the child
	failures int // in a row
	failed   time.Time
	failure  *hsm.Error // the last one
	cause    string     // of the last failure, for the metric
	restart  bool       // the next start follows a failure
}

func newLibrary(name string, p *Provider) *library {
	return &library{name: name, provider: p, log: p.options.Log.WithValues("module", name), busy: semaphore.NewWeighted(1)}
}

// acquire returns the child, which it starts if none runs, and counts a module that uses it. Each successful acquire needs one
// release.
func (l *library) acquire(ctx context.Context, allowed Library) (*child, error) {
	if err := l.busy.Acquire(ctx, 1); err != nil {
		waiting := timeoutError(err)
		waiting.After = openAgainAfter
		return nil, waiting
	}
	defer l.busy.Release(1)
	if l.child != nil && l.child.ended() {
		l.recordEnd(l.child)
	}
	if l.child == nil {
		if err := l.start(ctx, allowed); err != nil {
			return nil, err
		}
	}
	l.users++
	return l.child, nil
}

func (l *library) start(ctx context.Context, allowed Library) error {
	now := l.provider.options.Now()
	if wait := l.failed.Add(delay(l.failures)).Sub(now); wait > 0 {
		waiting := hsm.Wrap(hsm.Unavailable, l.failure, l.failure.Detail+"; the operator starts it again after a delay")
		waiting.After = wait
		return waiting
	}
	c, err := startChild(ctx, l, allowed)
	if err != nil {
		if err.Kind != hsm.Misconfigured && ctx.Err() == nil { // a person must change something first, or the caller gave up
			l.countFailure("start", err)
		}
		return err
	}
	if l.restart {
		l.restart = false
		l.provider.restarts.WithLabelValues(l.name, l.cause).Inc()
	}
	l.child, l.users = c, 0
	go l.await(c) //nolint:gosec // until the child ends
	return nil
}

// await waits for the end of a child.
func (l *library) await(c *child) {
	<-c.done
	c.calls.close()
	_ = l.busy.Acquire(context.Background(), 1) // a context that is never done
	if l.child == c {
		l.recordEnd(c)
	}
	l.busy.Release(1)
	c.loseModules() // after the record: their callers open them again at once
}

// recordEnd records the end of a child that the operator did not stop.
func (l *library) recordEnd(c *child) {
	l.child = nil
	l.countFailure(c.cause, c.failure)
}

// countFailure delays the next start, unless this is the first failure for long.
func (l *library) countFailure(cause string, failure *hsm.Error) {
	now := l.provider.options.Now()
	if now.Sub(l.failed) >= stableAfter {
		l.failures = 0
	}
	l.failures++
	l.cause, l.failure, l.failed, l.restart = cause, failure, now, true
	l.log.Error(failure, "The process of a PKCS#11 library ended", "cause", cause, "failures", l.failures)
}

// delay returns the delay before the start that follows the n-th failure in a row.
func delay(n int) time.Duration {
	if n <= 1 {
		return 0
	}
	return min(minDelay<<min(n-2, 16), maxDelay)
}

// release ends the use of a child by a module. The last one stops the child, which finalizes the library.
func (l *library) release(c *child) {
	_ = l.busy.Acquire(context.Background(), 1) // a context that is never done
	defer l.busy.Release(1)
	if l.child != c {
		return
	}
	if c.ended() { // await has not recorded it yet
		l.recordEnd(c)
		return
	}
	if l.users--; l.users == 0 {
		l.child = nil
		if killed := c.stop(); killed {
			l.countFailure("hang", c.failure)
		}
	}
}
