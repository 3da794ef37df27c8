//go:build cgo

package token

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"sync"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
)

// pinDigest identifies the PIN of a login without a second copy of it. Its key is random and known to this process only.
type pinDigest [sha256.Size]byte

var pinDigestKey = sync.OnceValue(func() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails (Go 1.24)
	return key
})

func digestPIN(pin []byte) (d pinDigest) {
	mac := hmac.New(sha256.New, pinDigestKey())
	mac.Write(pin)
	mac.Sum(d[:0])
	return d
}

// logins are the logins of a library. C_Login applies to all sessions of a process with a token (PKCS #11 v2.40 base,
// section 5.6), so every Token of a slot shares the login of the first.
type logins struct {
	busy mutex // held during C_Login

	mu     sync.Mutex
	bySlot map[uint]*login
}

type login struct {
	digest pinDigest
	users  map[*Token]struct{}
}

func newLogins() logins { return logins{busy: newMutex(), bySlot: map[uint]*login{}} }

// reset forgets all logins: C_Initialize ends them.
func (l *logins) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.bySlot)
}

func (l *logins) get(slotID uint) *login {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bySlot[slotID]
}

func (l *logins) add(slotID uint, digest pinDigest, t *Token) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bySlot[slotID] == nil {
		l.bySlot[slotID] = &login{digest: digest, users: map[*Token]struct{}{}}
	}
	l.bySlot[slotID].users[t] = struct{}{}
}

// remove removes t from the users of all logins, and returns whether it was the last user of one.
func (l *logins) remove(t *Token) (last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for slotID, login := range l.bySlot {
		if _, uses := login.users[t]; !uses {
			continue
		}
		if delete(login.users, t); len(login.users) == 0 {
			delete(l.bySlot, slotID)
			last = true
		}
	}
	return last
}

var (
	errPINRejected = hsm.Errorf(hsm.Locked,
		"the token rejected this PIN, and the operator does not try it again, because failed attempts can lock a token: update the Secret; if you changed the PIN of the token to the one in the Secret, delete the Secret and create it again")
	errPINInterrupted = hsm.Errorf(hsm.PINUntried,
		"the process of the library ended while the token checked this PIN for the first time, so the token may have counted a failed attempt, which can lock it: check the PIN, then delete the Secret and create it again, and the operator tries it once more")
	errPINLocked = hsm.Errorf(hsm.PINUntried,
		"the token's PIN is locked: unlock it with the token's own tools")
	errPINFinalTry = hsm.Errorf(hsm.PINUntried,
		"the token locks its PIN after one more wrong attempt, so the operator does not try this one: unlock or reset the PIN with the token's own tools")
	errPINCountLow = hsm.Errorf(hsm.PINUntried,
		"the token counts wrong PINs and has rejected one since the last login, so the operator tries only a PIN that the token accepted before: log in once with the token's own tools, which resets the count")
	errPINDiffers = hsm.Errorf(hsm.PINUntried,
		"another key store is logged in to this token with another PIN: use the same PIN in every key store of this token")
	errPINsExhausted = hsm.Errorf(hsm.PINUntried,
		"key stores of this namespace have presented too many wrong PINs to this token: the operator tries another PIN within ten minutes")
	errPINRecord  = "the operator cannot read or write its record of wrong PINs, and tries no PIN without it"
	errPINMissing = hsm.Errorf(hsm.Misconfigured, "the token requires a PIN: configure one")
)

// login logs in to the token, once for all Tokens of a slot. Package pins decides which PIN may be tried.
func (t *Token) login(ctx context.Context, conn *connection) error {
	if conn.info.Flags&p11.CKF_LOGIN_REQUIRED == 0 {
		return nil
	}
	pin := t.copyPIN()
	defer clear(pin)
	if len(pin) == 0 {
		return errPINMissing
	}
	digest := digestPIN(pin)
	all := &t.lib.logins
	if err := all.busy.lock(ctx); err != nil {
		return timeoutError(err)
	}
	defer all.busy.unlock()
	existing := all.get(conn.slotID)
	if existing != nil {
		// A token that is logged in accepts any PIN (CKR_USER_ALREADY_LOGGED_IN), so compare the PINs here.
		if err := t.comparePIN(ctx, conn, existing.digest, digest, pin); err != nil {
			return err
		}
		if t.isLoggedIn(conn.session) {
			all.add(conn.slotID, digest, t)
			return nil
		}
	}
	if err := t.tryPIN(ctx, conn, pin, existing != nil); err != nil {
		return err
	}
	all.add(conn.slotID, digest, t)
	return nil
}

// presented returns the PIN as package pins needs it.
func (t *Token) presented(conn *connection, pin []byte) pins.Presented {
	return pins.Presented{Origin: t.cfg.PINOrigin, PIN: pin, Token: pins.Token{
		Library: t.lib.file, Manufacturer: trim(conn.info.ManufacturerID), Model: conn.model, Serial: conn.serial,
	}}
}

// comparePIN fails if the PIN is not that of an existing login.
func (t *Token) comparePIN(ctx context.Context, conn *connection, login, digest pinDigest, pin []byte) error {
	attempt, err := t.cfg.PINs.Begin(ctx, t.presented(conn, pin), pins.Asked{LoggedIn: true})
	if err != nil {
		return untriedError(err)
	}
	if subtle.ConstantTimeCompare(login[:], digest[:]) == 1 {
		attempt.End(ctx, pins.Accepted)
		return nil
	}
	attempt.End(ctx, pins.Other)
	return errPINDiffers
}

// tryPIN calls C_Login if the token's PIN counter and package pins allow it. knownPIN means that the PIN is that of an
// existing login.
func (t *Token) tryPIN(ctx context.Context, conn *connection, pin []byte, knownPIN bool) error {
	info, err := t.lib.c.GetTokenInfo(conn.slotID) // again: the flags may have changed
	if err != nil {
		return callError("C_GetTokenInfo", err)
	}
	switch {
	case info.Flags&p11.CKF_USER_PIN_LOCKED != 0:
		return errPINLocked
	case info.Flags&p11.CKF_USER_PIN_FINAL_TRY != 0:
		return errPINFinalTry
	}
	attempt, err := t.cfg.PINs.Begin(ctx, t.presented(conn, pin), pins.Asked{CountLow: info.Flags&p11.CKF_USER_PIN_COUNT_LOW != 0})
	if err != nil {
		return untriedError(err)
	}
	err = t.callLogin(conn.session, pin)
	if HasCode(err, p11.CKR_USER_ALREADY_LOGGED_IN) && !knownPIN {
		// Another part of the process has logged in, which proves nothing about this PIN.
		_ = t.lib.c.Logout(conn.session)
		err = t.callLogin(conn.session, pin)
	}
	switch {
	case err == nil:
		attempt.End(ctx, pins.Accepted)
		return nil
	case HasCode(err, p11.CKR_USER_ALREADY_LOGGED_IN):
		attempt.End(ctx, pins.Undecided)
		if knownPIN { // some devices answer this after they were lost
			return nil
		}
	case HasCode(err, p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED):
		attempt.End(ctx, pins.Refused)
		return hsm.Wrap(hsm.Locked, callError("C_Login", err), errPINRejected.Detail)
	case HasCode(err, p11.CKR_PIN_LOCKED):
		attempt.End(ctx, pins.Undecided)
		return hsm.Wrap(hsm.PINUntried, callError("C_Login", err), errPINLocked.Detail)
	case HasCode(err, p11.CKR_USER_PIN_NOT_INITIALIZED):
		attempt.End(ctx, pins.Undecided)
		return hsm.Wrap(hsm.Misconfigured, callError("C_Login", err), "the token has no user PIN yet: set one with the token's own tools")
	default:
		attempt.End(ctx, pins.Undecided)
	}
	return callError("C_Login", err)
}

// callLogin passes the PIN as a string, which cannot be wiped, because miekg/pkcs11 accepts no other type. The string stays in
// memory until the next garbage collection.
func (t *Token) callLogin(session p11.SessionHandle, pin []byte) error {
	return t.lib.c.Login(session, p11.CKU_USER, string(pin))
}

// untriedError returns why package pins does not allow a PIN to be tried.
func untriedError(err error) error {
	switch {
	case errors.Is(err, pins.ErrRefused):
		return errPINRejected
	case errors.Is(err, pins.ErrInterrupted):
		return errPINInterrupted
	case errors.Is(err, pins.ErrOther):
		return errPINDiffers
	case errors.Is(err, pins.ErrUsedUp):
		return errPINsExhausted
	case errors.Is(err, pins.ErrCountLow):
		return errPINCountLow
	}
	return hsm.Wrap(hsm.Unavailable, err, errPINRecord)
}

// isLoggedIn returns whether the session is in a user state (PKCS #11 v2.40 base, section 5.6).
func (t *Token) isLoggedIn(session p11.SessionHandle) bool {
	info, err := t.lib.c.GetSessionInfo(session)
	return err == nil && (info.State == p11.CKS_RW_USER_FUNCTIONS || info.State == p11.CKS_RO_USER_FUNCTIONS)
}
