package namelock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func mustLock(t *testing.T, l *Locks, name string) (unlock func()) {
	t.Helper()
	unlock, err := l.Lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func TestLock_ofOneName_isHeldByOne(t *testing.T) {
	t.Parallel()
	var l Locks
	var all sync.WaitGroup
	held, most := 0, 0 // guarded by the lock itself: the race detector looks, too
	for range 20 {
		all.Go(func() {
			for range 50 {
				unlock, err := l.Lock(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				held++
				most = max(most, held)
				held--
				unlock()
			}
		})
	}
	all.Wait()
	if most != 1 {
		t.Errorf("%d held it at once", most)
	}
}

func TestLock_ofAnotherName_doesNotWait(t *testing.T) {
	t.Parallel()
	var l Locks
	defer mustLock(t, &l, "a")()
	mustLock(t, &l, "b")()
}

func TestLock_waiterGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	var l Locks
	unlock := mustLock(t, &l, "a")
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Lock(done, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("it fails with %v; want the context's error", err)
	}
	unlock()
	mustLock(t, &l, "a")() // the waiter that gave up does not hold it
}

func TestLock_withoutUsers_isForgotten(t *testing.T) {
	t.Parallel()
	var l Locks
	done, cancel := context.WithCancel(t.Context())
	unlock := mustLock(t, &l, "a")
	cancel()
	_, _ = l.Lock(done, "a")
	unlock()
	if len(l.byName) != 0 {
		t.Errorf("%d are kept", len(l.byName))
	}
}
