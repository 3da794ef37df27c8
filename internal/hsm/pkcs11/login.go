//go:build cgo

package pkcs11

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// pinDigest stands for a PIN at one token, so that a PIN is remembered by nobody: it is keyed with
// randomness of this process.
type pinDigest [sha256.Size]byte

var pinDigestKey = sync.OnceValue(func() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails (Go 1.24)
	return key
})

// digestPIN computes the digest; the parts are length-prefixed, so no two tokens and PINs share one.
func digestPIN(library string, id tokenID, pin []byte) (d pinDigest) {
	mac := hmac.New(sha256.New, pinDigestKey())
	for _, part := range [][]byte{[]byte(library), []byte(id.label), []byte(id.serial), []byte(id.model), pin} {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		mac.Write(size[:])
		mac.Write(part)
	}
	mac.Sum(d[:0])
	return d
}

// refusedPINs holds the digests of PINs that a token refused in this process. Tries lock tokens (some
// after three), so none of them is ever tried again: the Secret must change first.
var refusedPINs sync.Map // of pinDigest

// logins says who is logged in where. C_Login is once per token and process (PKCS #11 v2.40 base,
// section 5.6): every Module of a token shares the login of the first.
type logins struct {
	busy patientMutex // held over C_Login

	mu     sync.Mutex
	bySlot map[uint]*login
}

type login struct {
	digest pinDigest
	users  map[*Module]struct{}

	// The token counts no tries here, so they are counted: whoever may make key stores could else find
	// the PIN by trying. Only the holder of logins.busy looks at these.
	other   map[pinDigest]struct{} // PINs that were shown and are others
	guesses *allowance
}

// accepts says whether a PIN is the one of this login. After too many different ones it takes none for a
// while, not even the right one: the answer would tell.
func (l *login) accepts(digest pinDigest) bool {
	if _, known := l.other[digest]; known {
		return false
	}
	if !l.guesses.has(time.Now()) {
		return false
	}
	if subtle.ConstantTimeCompare(l.digest[:], digest[:]) == 1 {
		return true
	}
	l.guesses.take(time.Now())
	l.other[digest] = struct{}{}
	return false
}

// newGuesses allows five wrong PINs at once, and another every ten minutes.
func newGuesses() *allowance { return newAllowance(5, 10*time.Minute) }

func newLogins() logins { return logins{busy: newPatientMutex(), bySlot: map[uint]*login{}} }

// forgetAll is for a new generation.
func (l *logins) forgetAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.bySlot)
}

func (l *logins) get(slot uint) *login {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bySlot[slot]
}

func (l *logins) add(slot uint, digest pinDigest, m *Module) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bySlot[slot] == nil {
		l.bySlot[slot] = &login{digest: digest, users: map[*Module]struct{}{}, other: map[pinDigest]struct{}{}, guesses: newGuesses()}
	}
	l.bySlot[slot].users[m] = struct{}{}
}

// leave takes m from the users and says whether it was the last one of a login.
func (l *logins) leave(m *Module) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := false
	for slot, at := range l.bySlot {
		if _, there := at.users[m]; !there {
			continue
		}
		if delete(at.users, m); len(at.users) == 0 {
			delete(l.bySlot, slot)
			last = true
		}
	}
	return last
}

var (
	errPINRefused = hsm.Errorf(hsm.Locked,
		"the token refused this PIN, and it is not tried again, because tries lock the token: put the right PIN into the Secret; if it was the token's PIN that was changed, touch the Secret (an annotation will do) and restart Keyconvoy")
	errPINLocked = hsm.Errorf(hsm.PINUntried,
		"the token's PIN is locked: unlock it with the token's own tools")
	errPINFinalTry = hsm.Errorf(hsm.PINUntried,
		"one try is left before the token locks its PIN, so it is not tried: unlock or reset the PIN with the token's own tools")
	errPINOther = hsm.Errorf(hsm.PINUntried,
		"another key store is logged in to this token with another PIN: give every key store of a token the same PIN")
	errPINMissing = hsm.Errorf(hsm.Misconfigured, "the token needs a PIN, and none is configured")
)

// login logs m in to the token, once for all modules of a token, and guards the PIN's counter.
func (m *Module) login(ctx context.Context, at *attachment, loginSession p11.SessionHandle) error {
	if at.info.Flags&p11.CKF_LOGIN_REQUIRED == 0 {
		return nil
	}
	pin := m.pinCopy()
	defer clear(pin)
	if len(pin) == 0 {
		return errPINMissing
	}
	digest := digestPIN(m.lib.path, at.id, pin)
	if _, refused := refusedPINs.Load(digest); refused {
		return errPINRefused
	}
	all := &m.lib.logins
	if err := all.busy.lock(ctx); err != nil {
		return errWaiting(err)
	}
	defer all.busy.unlock()
	if there := all.get(at.slot); there != nil {
		// A token that is logged in takes any PIN for right (CKR_USER_ALREADY_LOGGED_IN), so the
		// second module must show the PIN of the first.
		if !there.accepts(digest) {
			return errPINOther
		}
		if m.loggedIn(loginSession) {
			all.add(at.slot, digest, m)
			return nil
		}
	}
	if err := m.tryPIN(at, loginSession, digest, pin); err != nil {
		return err
	}
	all.add(at.slot, digest, m)
	return nil
}

// tryPIN calls C_Login where the counter permits.
func (m *Module) tryPIN(at *attachment, s p11.SessionHandle, digest pinDigest, pin []byte) error {
	// Again, since another caller may just have had this one refused, and the flags may be old.
	if _, refused := refusedPINs.Load(digest); refused {
		return errPINRefused
	}
	info, err := m.lib.c.GetTokenInfo(at.slot)
	if err != nil {
		return called("C_GetTokenInfo", err)
	}
	switch {
	case info.Flags&p11.CKF_USER_PIN_LOCKED != 0:
		return errPINLocked
	case info.Flags&p11.CKF_USER_PIN_FINAL_TRY != 0:
		return errPINFinalTry
	}
	// With CKF_USER_PIN_COUNT_LOW some PIN was refused; not this one, so it has its one try.
	//
	// The string is a copy of the PIN that nobody can wipe: miekg/pkcs11 takes no other type. It
	// lives until the next collection.
	err = m.lib.c.Login(s, p11.CKU_USER, string(pin))
	switch {
	case err == nil, isCode(err, p11.CKR_USER_ALREADY_LOGGED_IN):
		return nil
	case isCode(err, p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED):
		refusedPINs.Store(digest, struct{}{})
		return hsm.Wrap(hsm.Locked, called("C_Login", err), errPINRefused.Detail)
	case isCode(err, p11.CKR_PIN_LOCKED):
		return hsm.Wrap(hsm.Locked, called("C_Login", err), errPINLocked.Detail)
	case isCode(err, p11.CKR_USER_PIN_NOT_INITIALIZED):
		return hsm.Wrap(hsm.Misconfigured, called("C_Login", err), "the token has no user PIN yet: initialise it with the token's own tools")
	}
	return called("C_Login", err)
}

// loggedIn says whether a session is a user's (PKCS #11 v2.40 base, section 5.6, table of states).
func (m *Module) loggedIn(s p11.SessionHandle) bool {
	info, err := m.lib.c.GetSessionInfo(s)
	return err == nil && (info.State == p11.CKS_RW_USER_FUNCTIONS || info.State == p11.CKS_RO_USER_FUNCTIONS)
}
