package keystore

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/keyconvoy/keyconvoy/internal/kms"
)

const (
	// busyAfter is how long a call waits until its key store counts as busy, and its caller does something else first. Calls
	// that find it busy do not wait.
	busyAfter = time.Second
	// busyFor is when the callers try again.
	busyFor = 2 * time.Second
)

// Lane is a Registry for one controller. It lets at most half of the controller's workers use one key store at a time, so
// that one that does not answer does not keep the controller from using the others.
type Lane struct {
	*Registry
	most int64
}

// Lane returns the lane of a controller with that many workers.
func (r *Registry) Lane(workers int) *Lane { return &Lane{r, int64(max(1, workers/2))} }

func (l *Lane) with(ctx context.Context, id ID, usable func(*module) bool, f func(Session) error) error {
	m, token, release := l.acquire(id, usable)
	if m == nil {
		return l.notReady(ctx, id)
	}
	defer release()
	slots := m.slots(l)
	if !slots.acquire(ctx) {
		return &NotReadyError{ID: id, State: Busy}
	}
	defer slots.release()
	return f(Session{kms.Operations{Module: m.Module, Now: l.clock.Now}, token})
}

// slots are what the calls of a lane take while they use a module.
type slots struct {
	free *semaphore.Weighted
	busy atomic.Bool // a call gave up waiting, and none has ended since
}

func (m *module) slots(l *Lane) *slots {
	found, _ := m.lanes.LoadOrStore(l, &slots{free: semaphore.NewWeighted(l.most)})
	return found.(*slots)
}

func (s *slots) acquire(ctx context.Context) bool {
	if s.free.TryAcquire(1) {
		return true
	}
	if s.busy.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, busyAfter)
	defer cancel()
	if s.free.Acquire(ctx, 1) == nil {
		return true
	}
	s.busy.Store(true)
	return false
}

func (s *slots) release() {
	s.free.Release(1)
	s.busy.Store(false)
}
