//go:build cgo

package token

import (
	"context"
	"errors"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// retry runs op until it succeeds or the cause of its failure is known.
//
// A return code that only a lost device, login or session gives leads to a reconnect, and op runs once more. A code that an
// invalid input may give, too, does so only if a health check fails: an invalid blob of one tenant must not close the sessions
// of others. If an object handle is stale, op runs again with a new search.
func (t *Token) retry(ctx context.Context, op func(*Session) error) error {
	var searchedAgain, repeated, reconnected bool
	for {
		seen, err := t.run(ctx, op)
		if err == nil {
			return nil
		}
		if final := finalError(err); final != nil {
			return final
		}
		if !t.opened && isMissing(err) {
			return err // Open reports that its configuration matches no token
		}
		if ClassOf(err) == StaleHandle && !searchedAgain {
			searchedAgain = true
			continue
		}
		if !repeated && mayBeTransient(err) {
			repeated = true
			continue
		}
		if final := t.diagnose(ctx, err); final != nil {
			return final
		}
		if reconnected {
			return unavailableError(err)
		}
		reconnected = true
		if err := t.reconnect(ctx, seen, err); err != nil {
			return err
		}
	}
}

// mayBeTransient returns whether op may succeed without a reconnect if it runs again.
func mayBeTransient(err error) bool {
	switch ClassOf(err) {
	case ConnectionLost, StaleHandle:
		return false
	case InvalidInput:
		return !InputBlamed(err)
	}
	return !isMissing(err)
}

// diagnose returns the error of an operation that failed although the token works, or nil if the token needs a reconnect.
func (t *Token) diagnose(ctx context.Context, err error) *hsm.Error {
	var input *inputError
	class := ClassOf(err)
	inputBlamed := errors.As(err, &input) && class != Exhausted
	if isMissing(err) || class == ConnectionLost || class == StaleHandle {
		return nil
	}
	if inputBlamed && class == InvalidInput {
		return input.decide()
	}
	if !inputBlamed && class != Ambiguous && class != Exhausted {
		return hsm.Wrap(hsm.Internal, err, "the cryptographic module rejected an operation")
	}
	if _, unhealthy := t.run(ctx, (*Session).HealthCheck); unhealthy != nil {
		if ctx.Err() != nil {
			return timeoutError(ctx.Err())
		}
		return nil
	}
	if inputBlamed {
		return input.decide()
	}
	return unavailableError(err)
}

// reconnect repairs the connection with the smallest step that helps: new sessions, a new login, C_Initialize. A health check
// decides after each step. It returns nil if another attempt at the operation makes sense, also if another operation has
// reconnected since seen.
func (t *Token) reconnect(ctx context.Context, seen connectionID, cause error) error {
	if err := t.reconnecting.lock(ctx); err != nil {
		return timeoutError(err)
	}
	defer t.reconnecting.unlock()
	if t.connectionID() != seen {
		return nil
	}
	if !t.mayReconnect() {
		return unavailableError(cause)
	}
	for _, step := range []func(context.Context, connectionID, error) error{t.renewSessions, t.logInAgain, t.initializeAgain} {
		err := step(ctx, seen, cause)
		if err == nil {
			_, err = t.run(ctx, (*Session).HealthCheck)
		}
		if err == nil {
			t.setReconnected(true)
			return nil
		}
		if ctx.Err() != nil {
			return timeoutError(ctx.Err())
		}
		if final := finalError(err); final != nil && (final.Kind == hsm.Locked || final.Kind == hsm.PINUntried) {
			return final
		}
		cause = err
	}
	t.setReconnected(false)
	return unavailableError(cause)
}

// renewSessions closes the idle sessions and drops the cached handles. It fails if the session of the login is lost, too.
func (t *Token) renewSessions(ctx context.Context, _ connectionID, _ error) error {
	if _, err := t.lib.enter(ctx); err != nil {
		return err
	}
	defer t.lib.leave()
	t.mu.Lock()
	conn := t.conn
	if conn == nil {
		t.mu.Unlock()
		return errors.New("the token is not connected")
	}
	idle := conn.idle
	conn.idle = nil
	clear(conn.handles)
	clear(conn.objects)
	t.epoch++
	conn.epoch = t.epoch
	t.mu.Unlock()
	for _, session := range idle {
		_ = t.lib.c.CloseSession(session)
	}
	_, err := t.lib.c.GetSessionInfo(conn.session)
	return callError("C_GetSessionInfo", err)
}

// logInAgain disconnects, so that the health check finds the token and logs in again.
func (t *Token) logInAgain(ctx context.Context, _ connectionID, _ error) error {
	t.disconnect(ctx)
	return nil
}

// initializeAgain initializes the library again. If the token is missing while the library shows others, those must not be
// disturbed. If the library shows none at all, no token is in use, and the library itself may be the cause: NSS, for example,
// shows none after another part of the process called C_Finalize.
func (t *Token) initializeAgain(ctx context.Context, seen connectionID, cause error) error {
	var missing *missingError
	if errors.As(cause, &missing) && missing.decision.Kind != hsm.Unavailable {
		_, err := t.lib.rescan(ctx, t, seen.generation)
		return err
	}
	return t.lib.reinitialize(ctx, seen.generation)
}

// backoff delays the next attempt to reconnect, longer after each failure.
type backoff struct {
	delay time.Duration
	until time.Time
}

const (
	minBackoff = time.Second
	maxBackoff = 30 * time.Second
)

// mayReconnect returns whether the backoff has ended and the token is not closed.
func (t *Token) mayReconnect() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.closed && !t.libraries.now().Before(t.backoff.until)
}

// setReconnected records the result of an attempt to reconnect.
func (t *Token) setReconnected(healthy bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if healthy {
		t.backoff = backoff{}
		return
	}
	t.backoff.delay = min(max(2*t.backoff.delay, minBackoff), maxBackoff)
	t.backoff.until = t.libraries.now().Add(t.backoff.delay)
}
