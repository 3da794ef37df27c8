//go:build cgo

package token

import (
	"context"

	p11 "github.com/miekg/pkcs11"
)

// connection is a token in one generation of its library: its slot, the session that keeps the login, the pool of idle
// sessions, and the cache of object handles.
type connection struct {
	slot
	generation uint64
	session    p11.SessionHandle // open as long as the connection: closing the last session of a token logs out

	// Guarded by Token.mu:
	epoch   uint64
	idle    []p11.SessionHandle
	busy    int // sessions that operations use
	handles map[ObjectName]p11.ObjectHandle
	objects map[p11.ObjectHandle]struct{} // the same handles
}

// connectionID identifies the state in which an operation failed, so that of several operations that fail together only one
// reconnects.
type connectionID struct{ generation, epoch uint64 }

func (t *Token) connectionID() connectionID {
	generation, _ := t.lib.currentGeneration()
	t.mu.Lock()
	defer t.mu.Unlock()
	return connectionID{generation: generation, epoch: t.epoch}
}

// maxHandles bounds the cache of object handles. It is more than the keys in use.
const maxHandles = 1024

// run runs op in one session of one generation, without a retry. seen identifies the connection that op used.
func (t *Token) run(ctx context.Context, op func(*Session) error) (seen connectionID, err error) {
	seen = t.connectionID()
	seen.generation, err = t.lib.enter(ctx)
	if err != nil {
		return seen, err
	}
	defer t.lib.leave()
	conn, err := t.connect(ctx, seen.generation)
	if err != nil {
		return seen, err
	}
	s, err := t.acquireSession(ctx, conn)
	if err != nil {
		return seen, err
	}
	seen.epoch = s.epoch
	defer s.release()
	err = op(s)
	if ClassOf(err) == StaleHandle {
		t.forget(conn, s.used...)
	}
	return seen, err
}

// connect returns the connection of this generation. If there is none, it finds the token and logs in.
func (t *Token) connect(ctx context.Context, generation uint64) (*connection, error) {
	if err := t.connecting.lock(ctx); err != nil {
		return nil, timeoutError(err)
	}
	defer t.connecting.unlock()
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	if conn != nil && conn.generation == generation {
		return conn, nil
	}
	found, err := findSlot(t.lib.c, t.selector)
	if err != nil {
		return nil, err
	}
	conn = &connection{slot: found, generation: generation, handles: map[ObjectName]p11.ObjectHandle{}, objects: map[p11.ObjectHandle]struct{}{}}
	conn.session, err = t.lib.c.OpenSession(conn.slotID, t.cfg.sessionFlags())
	if err != nil {
		return nil, callError("C_OpenSession", err)
	}
	if err := t.login(ctx, conn); err != nil {
		_ = t.lib.c.CloseSession(conn.session)
		return nil, err
	}
	if !t.setConnection(conn) {
		t.closeConnection(conn, nil)
		return nil, errClosed
	}
	return conn, nil
}

// setConnection begins to use a connection, unless the token was closed meanwhile.
func (t *Token) setConnection(conn *connection) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.epoch++
	conn.epoch = t.epoch
	t.conn = conn
	t.lib.setConnected(t, conn.generation)
	return true
}

// disconnect ends the use of the connection and closes its login session and its idle sessions.
func (t *Token) disconnect(ctx context.Context) {
	generation, err := t.lib.enter(ctx)
	if err != nil {
		return
	}
	defer t.lib.leave()
	if t.connecting.lock(ctx) != nil {
		return
	}
	defer t.connecting.unlock()
	t.lib.setDisconnected(t)
	t.mu.Lock()
	conn := t.conn
	t.conn = nil
	var idle []p11.SessionHandle
	if conn != nil && conn.generation == generation {
		idle, conn.idle = conn.idle, nil
	} else {
		conn = nil // its sessions are closed already
	}
	t.mu.Unlock()
	t.closeConnection(conn, idle)
}

// closeConnection closes sessions of the current generation. conn may be nil. A token that is closed gives up its share of
// the login, and the last one logs out.
func (t *Token) closeConnection(conn *connection, idle []p11.SessionHandle) {
	for _, session := range idle {
		_ = t.lib.c.CloseSession(session)
	}
	last := t.isClosed() && t.lib.logins.remove(t)
	if conn == nil {
		return
	}
	if last {
		_ = t.lib.c.Logout(conn.session)
	}
	_ = t.lib.c.CloseSession(conn.session)
}

// acquireSession takes an idle session from the pool or opens one. If the token has fewer sessions than MaxSessions, it waits for
// another operation to release one.
func (t *Token) acquireSession(ctx context.Context, conn *connection) (*Session, error) {
	s := &Session{token: t, c: t.lib.c, ctx: ctx, conn: conn}
	for {
		if s.takeIdle() {
			return s, nil
		}
		err := s.open()
		if err == nil {
			return s, nil
		}
		t.mu.Lock()
		conn.busy--
		others := conn.busy > 0 || len(conn.idle) > 0
		t.mu.Unlock()
		if !HasCode(err, p11.CKR_SESSION_COUNT) || !others {
			t.signalReleased() // another one may wait for this
			return nil, err
		}
		select {
		case <-t.released:
		case <-ctx.Done():
			return nil, timeoutError(ctx.Err())
		}
	}
}

// takeIdle takes a session from the pool and returns true, or counts one that is to be opened.
func (s *Session) takeIdle() bool {
	s.token.mu.Lock()
	defer s.token.mu.Unlock()
	s.epoch = s.conn.epoch
	s.conn.busy++
	n := len(s.conn.idle)
	if n == 0 {
		return false
	}
	s.handle, s.conn.idle = s.conn.idle[n-1], s.conn.idle[:n-1]
	return true
}

// release returns the session to the pool. It closes a session that saw an error, whose state is unknown, one whose caller
// gave up, and one of an earlier epoch.
func (s *Session) release() {
	s.destroyTemporary()
	t := s.token
	t.mu.Lock()
	keep := !s.failed && s.ctx.Err() == nil && !t.closed && t.conn == s.conn && s.conn.epoch == s.epoch
	if keep {
		s.conn.idle = append(s.conn.idle, s.handle)
	}
	s.conn.busy--
	t.mu.Unlock()
	if !keep {
		_ = s.c.CloseSession(s.handle) // which destroys its session objects
	}
	t.signalReleased()
}

// signalReleased has an operation that waits for a session look again.
func (t *Token) signalReleased() {
	select {
	case t.released <- struct{}{}:
	default: // as many as can wait will look again
	}
}

// cached returns the cached handle of a token object.
func (s *Session) cached(name ObjectName) (p11.ObjectHandle, bool) {
	t := s.token
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := s.conn.handles[name]
	return h, ok && s.conn.epoch == s.epoch
}

// Remember caches the handle of a token object for LookUp. A full cache drops some other handle.
func (s *Session) Remember(name ObjectName, h p11.ObjectHandle) {
	t := s.token
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.conn.epoch != s.epoch {
		return
	}
	s.conn.drop(name)
	if len(s.conn.handles) >= maxHandles {
		for other := range s.conn.handles {
			s.conn.drop(other)
			break
		}
	}
	s.conn.handles[name] = h
	s.conn.objects[h] = struct{}{}
}

// drop drops the cached handle of a token object. Token.mu must be locked.
func (c *connection) drop(name ObjectName) {
	if h, ok := c.handles[name]; ok {
		delete(c.handles, name)
		delete(c.objects, h)
	}
}

// isTokenObject returns whether a handle is that of a token object in the cache.
func (s *Session) isTokenObject(h p11.ObjectHandle) bool {
	s.token.mu.Lock()
	defer s.token.mu.Unlock()
	_, ok := s.conn.objects[h]
	return ok
}

// Forget drops the cached handles of token objects.
func (s *Session) Forget(names ...ObjectName) { s.token.forget(s.conn, names...) }

func (t *Token) forget(conn *connection, names ...ObjectName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		conn.drop(name)
	}
}
