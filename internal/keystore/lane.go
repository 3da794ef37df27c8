package keystore

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// busyAfter is how long a call waits until its key store counts as busy, and its caller does something else first.
const busyAfter = time.Second

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
	waiting, cancel := context.WithTimeout(ctx, busyAfter)
	defer cancel()
	if slots.Acquire(waiting, 1) != nil {
		return &NotReadyError{ID: id, State: Busy}
	}
	defer slots.Release(1)
	return f(Session{kms.Operations{Module: m.Module, Now: l.clock.Now}, token})
}

// slots are what the calls of a lane take while they use the module.
func (m *module) slots(l *Lane) *semaphore.Weighted {
	slots, _ := m.lanes.LoadOrStore(l, semaphore.NewWeighted(l.most))
	return slots.(*semaphore.Weighted)
}
