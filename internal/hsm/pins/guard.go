// Package pins decides which PIN may be tried at which token.
//
// Everyone who may write a key store and a Secret can present PINs. Some tokens count wrong PINs and lock after three of them,
// which affects all users. Others do not count, and their PIN can be guessed. These are the rules:
//
//  1. The PIN that a token accepted last is the right one. A namespace that has presented it is trusted: it may present it again
//     at any time, however many wrong PINs others presented.
//  2. Any other presentation is a guess. Each namespace has five guesses per token, and gets another one every ten minutes. A
//     guess is recorded before the token is asked. The right PIN returns it.
//  3. A namespace that has no guess left and is not trusted gets the same answer for every PIN, including the right one.
//     Otherwise the answer would reveal the right one.
//  4. A PIN that the token rejected is not tried again until its Secret is deleted and created again. The same is true for a PIN whose
//     check the process did not survive, because the token may have counted a failed attempt.
//  5. A token that counts wrong PINs reports a low count after the first one; some tokens that do not count report it, too. From
//     then on, if the right PIN is known, only that one is tried, so that no tenant can bring the token to its last attempt. A
//     wrong PIN is only compared, and uses up a guess. If the right PIN is not known, a namespace has two attempts: a PIN and its
//     correction. PINs of administrators are always tried.
//
// The record has no PINs, only digests under a random key that is stored beside them. It survives restarts of the operator and
// C_Initialize.
package pins

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Token identifies a token, in whatever slot.
type Token struct {
	Library      string `json:"library"` // its file, without symbolic links
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Serial       string `json:"serial"`
}

// Origin is where a PIN comes from.
type Origin struct {
	// Namespace is the namespace of the Secret with the PIN. Its guesses are counted.
	Namespace string
	// Source is the UID of the Secret.
	Source string
	// Administrator is set if only administrators can write the Secret: in the operator's namespace.
	Administrator bool
}

// Presented is a PIN that a key store presents to a token.
type Presented struct {
	Token
	Origin
	PIN redact.Bytes
}

// Asked is how the PIN will be checked.
type Asked struct {
	// LoggedIn: the token is logged in, so the caller compares PINs and does not call C_Login.
	LoggedIn bool
	// CountLow: the token reports that it rejected a PIN since the last login (CKF_USER_PIN_COUNT_LOW).
	CountLow bool
}

// The reasons why a PIN may not be tried.
var (
	ErrRefused     = errors.New("the token rejected this PIN before")
	ErrInterrupted = errors.New("the process ended while the token checked this PIN")
	ErrOther       = errors.New("the token is logged in with another PIN")
	ErrUsedUp      = errors.New("the namespace has presented too many wrong PINs")
	ErrCountLow    = errors.New("the token counts wrong PINs, and rejected one since the last login")
)

// Storage stores the record. Each version of the record has a name; "" is that of a record that does not exist.
type Storage interface {
	Load(ctx context.Context) (content []byte, version string, err error)
	// Save replaces the record. It fails if the stored version is another one.
	Save(ctx context.Context, content []byte, version string) (newVersion string, err error)
}

// Authority decides which PIN may be tried. A Guard decides in this process.
type Authority interface {
	// Begin decides whether a PIN may be tried, and records the guess. It fails with one of the errors above, or because the
	// record cannot be read or written.
	Begin(ctx context.Context, p Presented, asked Asked) (Attempt, error)
}

// Attempt is a PIN that may be tried.
type Attempt interface {
	// End records the outcome. The caller must call it once. If its process ends before, the PIN is not tried again.
	End(ctx context.Context, outcome Outcome)
}

// Outcome is the outcome of an attempt.
type Outcome string

// The outcomes.
const (
	// Accepted: the PIN is right.
	Accepted Outcome = "Accepted"
	// Refused: the token rejected the PIN.
	Refused Outcome = "Refused"
	// Other: the token is logged in with another PIN. The PIN may be right later, so it does not count as rejected.
	Other Outcome = "Other"
	// Undecided: the token did not check the PIN.
	Undecided Outcome = "Undecided"
)

// Guard applies the rules. It is safe for concurrent use.
type Guard struct {
	storage Storage
	now     func() time.Time

	mu      *semaphore.Weighted // held during calls of the storage, which may take long
	current bool                // the record is the same as in the storage
	version string
	record  record
	unsaved []func() // settle attempts whose outcome could not be saved
}

// New returns a guard. If storage is nil, the record is in memory only.
func New(storage Storage, now func() time.Time) *Guard {
	g := &Guard{storage: storage, now: now, mu: semaphore.NewWeighted(1), record: newRecord()}
	g.current = storage == nil
	return g
}

// attempt implements Attempt.
type attempt struct {
	guard   *Guard
	of      Presented // without the PIN
	digest  digest
	charged bool
	trying  bool // the record says so
}

// Begin implements Authority.
func (g *Guard) Begin(ctx context.Context, p Presented, asked Asked) (Attempt, error) {
	if err := g.mu.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer g.mu.Release(1)
	loadErr := g.load(ctx)
	a := &attempt{guard: g, of: p, digest: g.record.digest(p)}
	a.of.PIN = nil
	t := g.record.token(p.Token)
	known := t.isRight(a.digest)
	n := t.namespaces[p.Namespace]
	if known && n != nil && n.Trusted {
		return a, nil // even if the record cannot be read: a key store that worked must be able to reconnect
	}
	if loadErr != nil {
		return nil, fmt.Errorf("read the record of PINs: %w", loadErr)
	}
	now := g.now()
	left := t.mayGuess(p.Namespace, now)
	// If the right PIN is known, it is compared, and any other PIN is not tried.
	low := asked.CountLow && !p.Administrator
	compare := asked.LoggedIn || (low && t.Right != nil)
	switch {
	case known && left: // even if the token rejected it before its PIN was changed
		return a, nil
	case n.has(n.refused(), a.refusal()):
		return nil, ErrRefused
	case n.has(n.trying(), a.refusal()):
		return nil, ErrInterrupted
	case compare && n.has(n.compared(), a.digest):
		return nil, asked.other()
	case !left:
		return nil, ErrUsedUp
	case low && t.Right == nil && len(n.refused()) >= triesWhenLow:
		return nil, ErrCountLow
	}
	n = t.namespace(p.Namespace, now)
	n.guess(now)
	a.charged = true
	if low && compare {
		n.Compared = remember(n.Compared, a.digest)
	}
	if !compare { // otherwise the token is not asked
		n.Trying, a.trying = remember(n.Trying, a.refusal()), true
	}
	if err := g.save(ctx); err != nil {
		return nil, fmt.Errorf("record a guess: %w", err)
	}
	if low && compare {
		return nil, ErrCountLow
	}
	return a, nil
}

// other returns why a PIN that is not the right one is not tried.
func (a Asked) other() error {
	if a.LoggedIn {
		return ErrOther
	}
	return ErrCountLow
}

// End implements Attempt.
func (a *attempt) End(ctx context.Context, outcome Outcome) {
	end := map[Outcome]func(*token, *namespace) (changed bool){
		Accepted: a.accepted, Refused: a.refused, Other: a.other, Undecided: a.undecided,
	}[outcome]
	if end != nil {
		a.settle(ctx, end)
	}
}

func (a *attempt) accepted(t *token, n *namespace) bool {
	if t.isRight(a.digest) && n.Trusted && !a.charged {
		return false
	}
	if !t.isRight(a.digest) {
		t.forgetRight()
		t.Right = a.digest
	}
	n.Trusted = true
	n.returnGuess(a.charged)
	return true
}

func (a *attempt) refused(t *token, n *namespace) bool {
	if t.isRight(a.digest) { // the PIN of the token was changed
		t.forgetRight()
	}
	n.Refused = remember(n.Refused, a.refusal())
	return true
}

func (a *attempt) other(_ *token, n *namespace) bool {
	n.Compared = remember(n.Compared, a.digest)
	return true
}

// undecided returns the guess.
func (a *attempt) undecided(_ *token, n *namespace) bool {
	n.returnGuess(a.charged)
	return a.charged
}

// settleTime bounds how long it takes to record the result. The result is recorded even if the caller's context is done.
const settleTime = 10 * time.Second

// settle changes the record and saves it if change returns true. If that fails, the guess that Begin recorded still counts.
func (a *attempt) settle(ctx context.Context, change func(*token, *namespace) bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	g := a.guard
	if g.mu.Acquire(ctx, 1) != nil {
		return
	}
	defer g.mu.Release(1)
	t := g.record.token(a.of.Token)
	n := t.namespace(a.of.Namespace, g.now())
	if a.trying {
		n.forgetTrying(a.refusal())
	}
	if (change(t, n) || a.trying) && g.save(ctx) != nil && a.trying {
		g.unsaved = append(g.unsaved, func() { a.settleAgain(change) })
	}
}

// settleAgain makes a change that could not be saved in the record that was loaded since, unless it was saved despite the error.
func (a *attempt) settleAgain(change func(*token, *namespace) bool) {
	t := a.guard.record.token(a.of.Token)
	n := t.namespace(a.of.Namespace, a.guard.now())
	if n.has(n.Trying, a.refusal()) {
		n.forgetTrying(a.refusal())
		change(t, n)
	}
}

// load reads the record if the one in memory may not be current.
func (g *Guard) load(ctx context.Context) error {
	if g.current {
		return nil
	}
	content, version, err := g.storage.Load(ctx)
	if err != nil {
		return err
	}
	r, err := parse(content)
	if err != nil {
		return err
	}
	g.record, g.version, g.current = r, version, true
	for _, settle := range g.unsaved {
		settle()
	}
	return nil
}

func (g *Guard) save(ctx context.Context) error {
	if g.storage == nil {
		return nil
	}
	content, err := g.record.marshal(g.now())
	if err != nil {
		return err
	}
	version, err := g.storage.Save(ctx, content, g.version)
	if err != nil {
		g.current = false // another process may have written it, or this call despite the error
		return err
	}
	g.version, g.current, g.unsaved = version, true, nil
	return nil
}

// digest identifies a PIN of a token.
type digest []byte

func (r *record) digest(p Presented) digest {
	return mac(r.Key, []byte(p.Library), []byte(p.Manufacturer), []byte(p.Model), []byte(p.Serial), p.PIN)
}

// refusal identifies a PIN of a token from one Secret.
func (a *attempt) refusal() digest {
	return mac(a.guard.record.Key, a.digest, []byte(a.of.Source))[:16]
}

// mac returns the HMAC of the parts, each with its length, so that different lists have different HMACs. The message has whole
// blocks: SHA-256 keeps the rest of another one in a buffer that cannot be wiped.
func mac(key []byte, parts ...[]byte) digest {
	const lengthSize = 8
	size := 0
	for _, part := range parts {
		size += lengthSize + len(part)
	}
	size += (sha256.BlockSize - size%sha256.BlockSize) % sha256.BlockSize
	message := make([]byte, 0, size)
	for _, part := range parts {
		message = binary.BigEndian.AppendUint64(message, uint64(len(part)))
		message = append(message, part...)
	}
	message = message[:size]
	defer clear(message)
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

func newKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // it never fails (Go 1.24)
	return key
}

func equal(a, b digest) bool { return subtle.ConstantTimeCompare(a, b) == 1 }
