//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// mark is where a module stood when something failed: who recovers later sees whether somebody did.
type mark struct{ generation, epoch uint64 }

func (m *Module) mark() mark {
	generation, _ := m.lib.current()
	m.mu.Lock()
	defer m.mu.Unlock()
	return mark{generation: generation, epoch: m.epoch}
}

// attempt runs op and decides what a failure means.
//
// A code that only a lost device, login or session gives leads up the ladder, and op runs once more. A
// code that a bad input gives too leads there only if the module turns out to be unwell: nobody's bad
// blob costs others their sessions. An object that moved is searched again.
func (m *Module) attempt(ctx context.Context, op func(*session) error) error {
	var searched, repeated, recovered bool
	for {
		seen, err := m.once(ctx, op)
		if err == nil {
			return nil
		}
		if d := decided(err); d != nil {
			return d
		}
		if m.can.untested() && isNoToken(err) {
			return err // at opening, this is about the configuration
		}
		if classOf(err) == staleHandle && !searched {
			searched = true
			continue
		}
		if !repeated && isDoubtful(err) {
			repeated = true
			continue
		}
		if d := m.verdict(ctx, err); d != nil {
			return d
		}
		if recovered {
			return unavailable(err)
		}
		recovered = true
		if err := m.climb(ctx, seen, err); err != nil {
			return err
		}
	}
}

// isDoubtful says whether a failure may be one of a moment.
func isDoubtful(err error) bool {
	switch classOf(err) {
	case lost, staleHandle:
		return false
	case badInput:
		var input *inputError
		return !errors.As(err, &input)
	}
	return !isNoToken(err)
}

// verdict decides what a failure means where the module is well, and returns nil where it is not.
func (m *Module) verdict(ctx context.Context, err error) *hsm.Error {
	var input *inputError
	blamed := errors.As(err, &input)
	c := classOf(err)
	if isNoToken(err) || c == lost || c == staleHandle {
		return nil
	}
	if blamed && c == badInput {
		return input.decide()
	}
	if !blamed && c != ambiguous {
		return hsm.Wrap(hsm.Internal, err, "the cryptographic module refused an operation")
	}
	if _, unwell := m.once(ctx, (*session).health); unwell != nil {
		if ctx.Err() != nil {
			return errWaiting(ctx.Err())
		}
		return nil
	}
	if blamed {
		return input.decide()
	}
	return unavailable(err)
}

// climb tries to get a module back that is unwell: a new session, a new login, a new initialisation
// of the library. A real operation judges each rung. It returns nil if another try makes sense.
func (m *Module) climb(ctx context.Context, seen mark, cause error) error {
	if err := m.ladder.lock(ctx); err != nil {
		return errWaiting(err)
	}
	defer m.ladder.unlock()
	if m.mark() != seen {
		return nil // somebody was here
	}
	if !m.mayClimb() {
		return unavailable(cause)
	}
	for _, rung := range []func(context.Context, mark) error{m.renewSessions, m.loginAgain, m.initialiseAgain} {
		err := rung(ctx, seen)
		if err == nil {
			_, err = m.once(ctx, (*session).health)
		}
		if err == nil {
			m.climbed(true)
			return nil
		}
		if ctx.Err() != nil {
			return errWaiting(ctx.Err())
		}
		if d := decided(err); d != nil && (d.Kind == hsm.Locked || d.Kind == hsm.PINUntried) {
			return d
		}
		cause = err
	}
	m.climbed(false)
	return unavailable(cause)
}

// renewSessions is the first rung: idle sessions and cached handles are dropped. It fails where the
// login's session is gone too.
func (m *Module) renewSessions(ctx context.Context, _ mark) error {
	if _, err := m.lib.enter(ctx); err != nil {
		return err
	}
	defer m.lib.leave()
	m.mu.Lock()
	at := m.at
	if at == nil {
		m.mu.Unlock()
		return errors.New("there is no attachment to renew")
	}
	idle := at.idle
	at.idle = nil
	clear(at.handles)
	m.epoch++
	at.epoch = m.epoch
	m.mu.Unlock()
	for _, h := range idle {
		_ = m.lib.c.CloseSession(h)
	}
	_, err := m.lib.c.GetSessionInfo(at.login)
	return called("C_GetSessionInfo", err)
}

// loginAgain is the second rung: the token is found and logged in to anew.
func (m *Module) loginAgain(ctx context.Context, _ mark) error {
	m.detach(ctx)
	return nil
}

// initialiseAgain is the third rung.
func (m *Module) initialiseAgain(ctx context.Context, seen mark) error {
	return m.lib.recover(ctx, seen.generation)
}

// backoff keeps a module that stays unwell from climbing for every operation.
type backoff struct {
	wait time.Duration
	next time.Time
}

const (
	firstBackoff   = time.Second
	longestBackoff = 30 * time.Second
)

func (m *Module) mayClimb() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.closed && !time.Now().Before(m.backoff.next)
}

func (m *Module) climbed(well bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if well {
		m.backoff = backoff{}
		return
	}
	m.backoff.wait = min(max(2*m.backoff.wait, firstBackoff), longestBackoff)
	m.backoff.next = time.Now().Add(m.backoff.wait)
}

func isNoToken(err error) bool {
	var e *noTokenError
	return errors.As(err, &e)
}
