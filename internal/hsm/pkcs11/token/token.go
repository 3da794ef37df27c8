//go:build cgo

package token

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sync/semaphore"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// closeWait bounds how long Close waits for operations in progress.
const closeWait = 5 * time.Second

// defaultMaxSessions is Config.MaxSessions if it is 0.
const defaultMaxSessions = 8

// Config identifies a token and how to use it.
type Config struct {
	// Path is the path of the shared library, or its name for the dynamic linker.
	Path string
	// Parameters is the reserved string of CK_C_INITIALIZE_ARGS, which NSS requires; or "".
	Parameters string
	// Selector selects the token after each C_Initialize, which may change slot numbers.
	Selector hsm.TokenSelector
	// PIN is the user PIN; nil for tokens without login. Open copies it.
	PIN redact.WireBytes
	// PINOrigin identifies the namespace and the Secret of the PIN.
	PINOrigin pins.Origin
	// PINs decides whether the PIN may be tried; nil means a guard in memory, which the process shares.
	PINs pins.Authority
	// MaxSessions bounds the operations at a time; 0 means 8.
	MaxSessions int
	// ReadOnly makes all sessions read-only.
	ReadOnly bool
	// Watch, if not nil, is called before each call into the library, with the name of the function ("dlopen" while the library
	// is loaded), and what it returns after the call. It applies if this token is the first to use the library. It must end the
	// process if the call hangs.
	Watch func(function string) (end func())
}

// sessionFlags are the flags of C_OpenSession.
func (cfg *Config) sessionFlags() uint {
	if cfg.ReadOnly {
		return p11.CKF_SERIAL_SESSION
	}
	return p11.CKF_SERIAL_SESSION | p11.CKF_RW_SESSION
}

// Token is a connection to one token. It is safe for concurrent use.
type Token struct {
	cfg       Config // without the PIN
	selector  selector
	libraries *Libraries
	lib       *library // nil before the library is acquired
	info      hsm.Info
	opened    bool // Open succeeded

	operations   *semaphore.Weighted // one of MaxSessions for each operation, including those that hang
	connecting   mutex               // held while the token is found and the user is logged in
	reconnecting mutex               // held while one operation reconnects; the others wait
	proof        atomic.Int32        // the Proof of health checks
	released     chan struct{}       // gets one for each operation that released its session

	mu      sync.Mutex // guards the fields below; not held during calls into the library
	pin     redact.Bytes
	closed  bool
	conn    *connection // nil while the token is not connected
	epoch   uint64      // counts connections, and renewals of the sessions of a connection
	backoff backoff
}

// Open finds a token, logs in and runs test in a session, as Token.Do does. If test fails, the token is closed again. The
// Token lives longer than ctx. Every error is an *hsm.Error.
//
// Kinds of error: Misconfigured (the library does not load, no token or two match, no PIN), Locked, PINUntried, Unavailable,
// and those of test.
func (l *Libraries) Open(ctx context.Context, cfg Config, test func(*Session) error) (*Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, timeoutError(err)
	}
	t := l.newToken(cfg)
	if t.selector.Label == "" {
		return nil, hsm.Errorf(hsm.Misconfigured, "a token label is required")
	}
	opening := l.get(cfg.Path).opening.get(t.selector, func() *semaphore.Weighted { return semaphore.NewWeighted(maxOpening) })
	if err := opening.Acquire(ctx, 1); err != nil {
		return nil, timeoutError(err)
	}
	// A C call that hangs does so in this goroutine, which cleans up if the call ever returns. It releases the semaphore only
	// then, so no more than maxOpening goroutines hang.
	done := make(chan error) // without a buffer: what is sent was received
	go func() {
		defer opening.Release(1)
		err := t.open(ctx, test)
		if err != nil {
			_ = t.Close(context.WithoutCancel(ctx))
		}
		select {
		case done <- err:
		case <-ctx.Done():
			if err == nil { // the caller may have given up
				_ = t.Close(context.WithoutCancel(ctx))
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			return nil, asError(err)
		}
		return t, nil
	case <-ctx.Done():
		return nil, timeoutError(ctx.Err())
	}
}

// inMemoryPINs is the guard of tokens that are opened without one.
var inMemoryPINs = sync.OnceValue(func() *pins.Guard { return pins.New(nil, time.Now) })

func (l *Libraries) newToken(cfg Config) *Token {
	if cfg.MaxSessions < 1 {
		cfg.MaxSessions = defaultMaxSessions
	}
	if cfg.PINs == nil {
		cfg.PINs = inMemoryPINs()
	}
	t := &Token{
		selector:     newSelector(cfg.Selector),
		libraries:    l,
		operations:   semaphore.NewWeighted(int64(cfg.MaxSessions)),
		connecting:   newMutex(),
		reconnecting: newMutex(),
		released:     make(chan struct{}, cfg.MaxSessions),
		pin:          bytes.Clone(cfg.PIN),
	}
	cfg.PIN = nil
	t.cfg = cfg
	return t
}

func (t *Token) open(ctx context.Context, test func(*Session) error) error {
	lib, initialized, err := t.libraries.acquire(ctx, &t.cfg)
	if err != nil {
		return err
	}
	t.lib = lib
	if err := t.find(ctx, initialized); err != nil {
		return err
	}
	if err := t.retry(ctx, test); err != nil {
		return err
	}
	t.opened = true
	return nil
}

// find connects to the token for the first time. If the token is missing and the library was initialized earlier, find
// rescans the tokens.
func (t *Token) find(ctx context.Context, initialized bool) error {
	generation, _ := t.lib.currentGeneration()
	connect := func(s *Session) error {
		t.info = infoOf(s.conn.info)
		return nil
	}
	err := t.retry(ctx, connect)
	if initialized || !isMissing(err) {
		return err
	}
	rescanned, rescanErr := t.lib.rescan(ctx, t, generation)
	if rescanErr != nil || !rescanned {
		return addDetail(err, "a new token may be missing from this list until no other key store uses the library, or until the operator restarts")
	}
	return t.retry(ctx, connect)
}

func infoOf(info p11.TokenInfo) hsm.Info {
	return hsm.Info{
		Manufacturer: trim(info.ManufacturerID),
		Model:        trim(info.Model),
		Serial:       trim(info.SerialNumber),
		Firmware:     versionOf(info.FirmwareVersion),
	}
}

// Info returns what the token reported when it was opened, without Library. It makes no call into the library.
func (t *Token) Info() hsm.Info { return t.info }

// Err returns Unavailable if ctx is done or the token is closed, and nil otherwise. It makes no call into the library.
func (t *Token) Err(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return timeoutError(err)
	}
	if t.isClosed() {
		return errClosed
	}
	return nil
}

// Do runs op in a session. It reconnects and runs op again if the connection is lost, so op must be safe to repeat. If ctx is
// done first, Do returns Unavailable; op continues, because a C call cannot be canceled, and still counts towards
// MaxSessions. So at most MaxSessions operations hang. With Config.Watch, Do waits for op: to run it in another goroutine would
// take longer than many calls do. Every error is an *hsm.Error.
//
// The caller must not read what op wrote unless Do returned nil.
func (t *Token) Do(ctx context.Context, op func(*Session) error) error {
	if err := t.Err(ctx); err != nil {
		return err
	}
	if err := t.operations.Acquire(ctx, 1); err != nil {
		return timeoutError(err)
	}
	if t.isClosed() {
		t.operations.Release(1)
		return errClosed
	}
	run := func() error {
		defer t.operations.Release(1) // before the caller continues, so that its next operation need not wait
		return t.retry(ctx, op)
	}
	if t.cfg.Watch != nil {
		return asError(run())
	}
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return asError(err)
	case <-ctx.Done():
	}
	select {
	case err := <-done: // an operation that ended at the same time counts
		return asError(err)
	default:
		return timeoutError(ctx.Err())
	}
}

// Close closes the sessions and releases the library. It waits for operations in progress, for at most five seconds. The
// library stays initialized if an operation hangs. Operations after Close fail with Unavailable.
func (t *Token) Close(ctx context.Context) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	_ = acquire(ctx, t.operations, int64(t.cfg.MaxSessions))
	if t.lib != nil {
		t.disconnect(ctx)
		t.lib.setDisconnected(t)
		t.lib.release(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pin.Wipe()
	return nil
}

// copyPIN returns a copy of the PIN, which the caller wipes.
func (t *Token) copyPIN() redact.Bytes {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.pin)
}

func (t *Token) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}
