// Package namelock serialises calls that create or destroy an object of one name in a module.
package namelock

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Locks is one lock per name, kept while a call holds it or waits for it. The zero value is ready for use.
type Locks struct {
	mu     sync.Mutex
	byName map[string]*lock
}

type lock struct {
	*semaphore.Weighted
	users int // calls that hold it or wait for it
}

// Lock waits for the lock of a name. If ctx is done first, it fails with the context's error.
func (l *Locks) Lock(ctx context.Context, name string) (unlock func(), err error) {
	of := l.use(name)
	if err := of.Acquire(ctx, 1); err != nil {
		l.leave(name, of)
		return nil, err
	}
	return func() {
		of.Release(1)
		l.leave(name, of)
	}, nil
}

func (l *Locks) use(name string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.byName[name]
	if of == nil {
		of = &lock{Weighted: semaphore.NewWeighted(1)}
		if l.byName == nil {
			l.byName = map[string]*lock{}
		}
		l.byName[name] = of
	}
	of.users++
	return of
}

func (l *Locks) leave(name string, of *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if of.users--; of.users == 0 {
		delete(l.byName, name)
	}
}
