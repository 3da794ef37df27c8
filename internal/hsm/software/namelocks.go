package software

import (
	"context"
	"sync"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// nameLocks is one lock per name, for as long as somebody holds it. A waiter gives up with its
// context.
type nameLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is given back
}

func (l *nameLocks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		wait := l.take(name)
		if wait == nil {
			return func() { l.give(name) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, hsm.Wrap(hsm.Unavailable, ctx.Err(), "")
		}
	}
}

// take takes the lock, or returns what to wait for.
func (l *nameLocks) take(name string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if wait, ok := l.held[name]; ok {
		return wait
	}
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	l.held[name] = make(chan struct{})
	return nil
}

func (l *nameLocks) give(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.held[name])
	delete(l.held, name)
}
