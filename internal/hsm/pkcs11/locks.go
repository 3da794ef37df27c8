//go:build cgo

package pkcs11

import (
	"context"
	"sync"
)

// patientMutex is a mutex whose waiters can give up: what it is held over may hang in C.
type patientMutex chan struct{}

func newPatientMutex() patientMutex { return make(patientMutex, 1) }

func (m patientMutex) lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m patientMutex) unlock() { <-m }

// gate lets operations in together, until somebody must have the library alone.
type gate struct {
	mu      sync.Mutex
	inside  int
	alone   bool
	waiting bool          // somebody waits for changed
	changed chan struct{} // closed and replaced when somebody leaves and somebody waits
}

func newGate() *gate { return &gate{changed: make(chan struct{})} }

// enter waits until nobody is or wants to be alone.
func (g *gate) enter(ctx context.Context) error {
	return g.wait(ctx, func() bool {
		if g.alone {
			return false
		}
		g.inside++
		return true
	})
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.wake()
}

// enterAlone keeps others from entering and waits until those inside have left. Where a call hangs it
// fails when ctx is done, and lets the others on.
func (g *gate) enterAlone(ctx context.Context) error {
	err := g.wait(ctx, func() bool {
		if g.alone {
			return false
		}
		g.alone = true
		return true
	})
	if err != nil {
		return err
	}
	if err := g.wait(ctx, func() bool { return g.inside == 0 }); err != nil {
		g.leaveAlone()
		return err
	}
	return nil
}

func (g *gate) leaveAlone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone = false
	g.wake()
}

// wake wakes every waiter. g.mu is held.
func (g *gate) wake() {
	if !g.waiting {
		return
	}
	g.waiting = false
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) wait(ctx context.Context, done func() bool) error {
	for {
		g.mu.Lock()
		if done() {
			g.mu.Unlock()
			return nil
		}
		g.waiting = true
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// nameLocks serialises those who make or destroy an object of one name.
type nameLocks struct {
	mu    sync.Mutex
	names map[string]*nameLock
}

type nameLock struct {
	patientMutex
	users int
}

func (l *nameLocks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.names == nil {
		l.names = map[string]*nameLock{}
	}
	n := l.names[name]
	if n == nil {
		n = &nameLock{patientMutex: newPatientMutex()}
		l.names[name] = n
	}
	n.users++
	l.mu.Unlock()
	if err := n.lock(ctx); err != nil {
		l.forget(name, n)
		return nil, err
	}
	return func() {
		n.unlock()
		l.forget(name, n)
	}, nil
}

func (l *nameLocks) forget(name string, n *nameLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.users--; n.users == 0 {
		delete(l.names, name)
	}
}

// catalogues keep searches and changes of a token's objects apart: searches go together, a change alone.
// SoftHSM 2.6 reads its directory again in a search when an object was added or destroyed; while another
// thread is adding one, the addition fails now and then (CKR_GENERAL_ERROR, CKR_TEMPLATE_INCONSISTENT,
// attributes that read as others than were set) and leaves half an object. Searches are rare, because
// handles are cached, and operations on session objects are not concerned.
type catalogues struct {
	mu      sync.Mutex
	byToken map[tokenID]*gate
}

func (c *catalogues) of(token tokenID) *gate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byToken == nil {
		c.byToken = map[tokenID]*gate{}
	}
	if c.byToken[token] == nil {
		c.byToken[token] = newGate()
	}
	return c.byToken[token]
}
