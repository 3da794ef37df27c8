//go:build cgo

package pkcs11

import (
	"context"
	"errors"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// attachment is a token as one generation of its library shows it: where it is, the session that
// keeps the login, idle sessions, and handles of objects.
type attachment struct {
	found
	generation uint64
	login      p11.SessionHandle // open while the attachment lives: closing the last session logs out

	// Guarded by Module.mu:
	epoch   uint64
	idle    []p11.SessionHandle
	handles map[objectName]p11.ObjectHandle
}

// objectName is how an object of ours is found.
type objectName struct {
	class uint
	id    string
}

// maxHandles bounds the cache of handles: enough for the keys in use, little enough to forget.
const maxHandles = 1024

const sessionFlags = p11.CKF_SERIAL_SESSION | p11.CKF_RW_SESSION

// operate runs op in a session, with recovery. It waits for a session and for the result as long as
// ctx lives. A call in C cannot be cancelled: when ctx ends, op goes on by itself and keeps its place,
// and its session is closed afterwards. So no more than MaxSessions calls hang, ever.
func (m *Module) operate(ctx context.Context, op func(*session) error) error {
	if err := ctx.Err(); err != nil {
		return errWaiting(err)
	}
	if m.isClosed() {
		return errClosed
	}
	select {
	case m.slots <- struct{}{}:
	case <-ctx.Done():
		return errWaiting(ctx.Err())
	}
	if m.isClosed() {
		<-m.slots
		return errClosed
	}
	done := make(chan error, 1)
	go func() { done <- m.inPlace(ctx, op) }()
	select {
	case err := <-done:
		return final(err)
	case <-ctx.Done():
	}
	select {
	case err := <-done: // both at once: what was done counts
		return final(err)
	default:
		return errWaiting(ctx.Err())
	}
}

// inPlace runs op and gives its place back before anybody hears that it is over.
func (m *Module) inPlace(ctx context.Context, op func(*session) error) error {
	defer func() { <-m.slots }()
	return m.attempt(ctx, op)
}

// result runs op as operate does and returns what it made. What an abandoned op makes goes nowhere.
func result[T any](ctx context.Context, m *Module, op func(*session) (T, error)) (T, error) {
	made := make(chan T, 1)
	err := m.operate(ctx, func(s *session) error {
		value, err := op(s)
		if err == nil {
			made <- value
		}
		return err
	})
	var value T
	if err == nil {
		value = <-made
	}
	return value, err
}

// final makes every error an *hsm.Error.
func final(err error) error {
	if err == nil {
		return nil
	}
	var e *hsm.Error
	if errors.As(err, &e) {
		return e
	}
	return hsm.Wrap(hsm.Internal, err, "")
}

// once runs op in one session of one generation. seen says which, for who recovers.
func (m *Module) once(ctx context.Context, op func(*session) error) (seen mark, err error) {
	seen = m.mark()
	seen.generation, err = m.lib.enter(ctx)
	if err != nil {
		return seen, err
	}
	defer m.lib.leave()
	at, err := m.attach(ctx, seen.generation)
	if err != nil {
		return seen, err
	}
	s, err := m.takeSession(ctx, at)
	if err != nil {
		return seen, err
	}
	seen.epoch = s.epoch
	defer s.putBack()
	err = op(s)
	if classOf(err) == staleHandle {
		m.forget(at, s.used)
	}
	return seen, err
}

// attach finds the token in this generation and logs in, if that is still to be done.
func (m *Module) attach(ctx context.Context, generation uint64) (*attachment, error) {
	if err := m.attaching.lock(ctx); err != nil {
		return nil, errWaiting(err)
	}
	defer m.attaching.unlock()
	m.mu.Lock()
	at := m.at
	m.mu.Unlock()
	if at != nil && at.generation == generation {
		return at, nil
	}
	token, err := selectToken(m.lib.c, m.cfg.Token)
	if err != nil {
		return nil, err
	}
	at = &attachment{found: token, generation: generation, handles: map[objectName]p11.ObjectHandle{}}
	at.login, err = m.lib.c.OpenSession(at.slot, sessionFlags)
	if err != nil {
		return nil, called("C_OpenSession", err)
	}
	if err := m.login(ctx, at, at.login); err != nil {
		_ = m.lib.c.CloseSession(at.login)
		return nil, err
	}
	if !m.attached(at) {
		m.letGo(at, nil)
		return nil, errClosed
	}
	return at, nil
}

// attached takes the attachment over, unless the module was closed meanwhile.
func (m *Module) attached(at *attachment) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.epoch++
	at.epoch = m.epoch
	m.at = at
	return true
}

// detach closes every session that nobody uses.
func (m *Module) detach(ctx context.Context) {
	generation, err := m.lib.enter(ctx)
	if err != nil {
		return
	}
	defer m.lib.leave()
	if m.attaching.lock(ctx) != nil {
		return
	}
	defer m.attaching.unlock()
	m.mu.Lock()
	at := m.at
	m.at = nil
	var idle []p11.SessionHandle
	if at != nil && at.generation == generation {
		idle, at.idle = at.idle, nil
	} else {
		at = nil
	}
	m.mu.Unlock()
	m.letGo(at, idle)
}

// letGo closes sessions of this generation. A module that is closed leaves the login, and the last one
// to leave logs out.
func (m *Module) letGo(at *attachment, idle []p11.SessionHandle) {
	for _, h := range idle {
		_ = m.lib.c.CloseSession(h)
	}
	last := m.isClosed() && m.lib.logins.leave(m)
	if at == nil {
		return
	}
	if last {
		_ = m.lib.c.Logout(at.login)
	}
	_ = m.lib.c.CloseSession(at.login)
}

// takeSession takes an idle session or opens one.
func (m *Module) takeSession(ctx context.Context, at *attachment) (*session, error) {
	s := &session{m: m, c: m.lib.c, ctx: ctx, at: at}
	m.mu.Lock()
	s.epoch = at.epoch
	n := len(at.idle)
	if n > 0 {
		s.h, at.idle = at.idle[n-1], at.idle[:n-1]
	}
	m.mu.Unlock()
	if n > 0 {
		return s, nil
	}
	h, err := m.lib.c.OpenSession(at.slot, sessionFlags)
	if err != nil {
		return nil, called("C_OpenSession", err)
	}
	s.h = h
	return s, nil
}

// putBack makes a session idle, or closes one that saw an error (its state is not to be trusted), that
// nobody waits for any more, or that is of an older epoch.
func (s *session) putBack() {
	s.cleanUp()
	m := s.m
	m.mu.Lock()
	keep := !s.broken && s.ctx.Err() == nil && !m.closed && m.at == s.at && s.at.epoch == s.epoch
	if keep {
		s.at.idle = append(s.at.idle, s.h)
	}
	m.mu.Unlock()
	if !keep {
		_ = s.c.CloseSession(s.h) // and with it its session objects
	}
}

// handle returns what the cache knows.
func (m *Module) handle(s *session, name objectName) (p11.ObjectHandle, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := s.at.handles[name]
	return h, ok && s.at.epoch == s.epoch
}

// remember caches a handle; any other makes room.
func (m *Module) remember(s *session, name objectName, h p11.ObjectHandle) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.at.epoch != s.epoch {
		return
	}
	if _, there := s.at.handles[name]; !there && len(s.at.handles) >= maxHandles {
		for other := range s.at.handles {
			delete(s.at.handles, other)
			break
		}
	}
	s.at.handles[name] = h
}

// forget drops cached handles.
func (m *Module) forget(at *attachment, names []objectName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		delete(at.handles, name)
	}
}
