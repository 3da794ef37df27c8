//go:build cgo

package pkcs11

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// aloneWait bounds how long the library's initialisation waits for calls under way. It is longer than
// an RSA-4096 pair takes in a slow token; a call that is still there then hangs.
const aloneWait = 15 * time.Second

// libraries holds what this process has loaded. C_Initialize is once per process and library
// (PKCS #11 v2.40 base, section 5.4), so every Module goes through it.
var libraries = &registry{load: loadLibrary, rescan: newAllowance(16, 30*time.Second), reinit: 5 * time.Second}

// registry is the libraries of a process by path.
type registry struct {
	load   func(path string) (cryptoki, error)
	rescan *allowance    // for initialising again because a token was not found
	reinit time.Duration // the least time between two recoveries of one library

	mu     sync.Mutex
	byPath map[string]*library
}

// library is a shared library and its one initialisation.
type library struct {
	registry *registry
	path     string
	gate     *gate // who calls the library is inside

	admin        patientMutex // guards what follows up to the blank line
	users        int
	parameters   string
	lastRecovery time.Time

	mu          sync.Mutex // guards what follows; held over no call
	c           cryptoki
	initialised bool
	generation  uint64 // counts initialisations; 0 before the first

	logins logins
	names  nameLocks // of objects being made or destroyed, by token and identifier
	tokens catalogues
}

// get returns the library at path. Paths that lead to one file are one library: the dynamic linker
// loads it once, too.
func (r *registry) get(path string) *library {
	key := path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		key = real
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byPath == nil {
		r.byPath = map[string]*library{}
	}
	lib := r.byPath[key]
	if lib == nil {
		lib = &library{registry: r, path: path, gate: newGate(), admin: newPatientMutex(), logins: newLogins()}
		r.byPath[key] = lib
	}
	return lib
}

// use makes the caller a user of the library at path and initialises it for the first one. fresh says
// that it was initialised just now. Every use ends with release.
func (r *registry) use(ctx context.Context, path, parameters string) (lib *library, fresh bool, err error) {
	lib = r.get(path)
	if err := lib.admin.lock(ctx); err != nil {
		return nil, false, errWaiting(err)
	}
	defer lib.admin.unlock()
	if lib.users > 0 && lib.parameters != parameters {
		return nil, false, hsm.Errorf(hsm.Misconfigured,
			"the library is in use with other parameters, and a process can initialise it only once: give every key store of this library the same parameters")
	}
	if err := lib.loadOnce(); err != nil {
		return nil, false, err
	}
	if !lib.ready() {
		lib.parameters = parameters
		if err := lib.initialise(ctx); err != nil {
			return nil, false, err
		}
		fresh = true
	}
	lib.users++
	return lib, fresh, nil
}

// release ends a use; the last one finalises the library, unless a call in it hangs.
func (l *library) release(ctx context.Context) {
	if l.admin.lock(ctx) != nil {
		return // it hangs in C_Initialize or C_Finalize; nobody will use it again
	}
	defer l.admin.unlock()
	if l.users--; l.users > 0 || !l.ready() {
		return
	}
	if l.gate.enterAlone(ctx) != nil {
		return
	}
	defer l.gate.leaveAlone()
	_ = l.c.Finalize()
	l.setReady(false)
}

func (l *library) loadOnce() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c != nil {
		return nil
	}
	c, err := l.registry.load(l.path)
	if err != nil {
		return hsm.Wrap(hsm.Misconfigured, err,
			"the library does not load: the administrator must check its path, what it depends on and that it is built for this system")
	}
	l.c = c
	return nil
}

// initialise begins a generation, in which nothing that was found before is good. l.admin is held.
func (l *library) initialise(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, aloneWait)
	defer cancel()
	if err := l.gate.enterAlone(ctx); err != nil {
		return hsm.Wrap(hsm.Unavailable, err, "a call into the library hangs, so it cannot be initialised again; restart Keyconvoy if this stays")
	}
	defer l.gate.leaveAlone()
	if l.ready() {
		_ = l.c.Finalize() // a library that lost its device may refuse; C_Initialize will tell
	}
	l.setReady(false)
	l.logins.forgetAll()
	options, free := reserved(l.parameters)
	defer free()
	// CKF_OS_LOCKING_OK is what Initialize sets without being told.
	err := l.c.Initialize(options...)
	switch {
	case err == nil, isCode(err, p11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		l.setReady(true)
		return nil
	case isCode(err, p11.CKR_ARGUMENTS_BAD):
		return hsm.Wrap(hsm.Misconfigured, err, "the library refuses its parameters: the administrator must check them")
	}
	return hsm.Wrap(hsm.Unavailable, err, "the library does not initialise: check what its vendor's configuration needs")
}

// recover initialises the library again, unless somebody did since seen. It is the last rung of the
// ladder, and it costs every Module of the library its sessions; so not too often.
func (l *library) recover(ctx context.Context, seen uint64) error {
	if err := l.admin.lock(ctx); err != nil {
		return errWaiting(err)
	}
	defer l.admin.unlock()
	if generation, ok := l.current(); ok && generation != seen {
		return nil
	}
	if time.Since(l.lastRecovery) < l.registry.reinit {
		return hsm.Errorf(hsm.Unavailable, "the library was initialised again a moment ago, and that did not help")
	}
	l.lastRecovery = time.Now()
	return l.initialise(ctx)
}

// look initialises the library again to see tokens that came since seen, if the allowance permits:
// SoftHSM reads its list of tokens in C_Initialize only. It says whether it did.
func (l *library) look(ctx context.Context, seen uint64) (bool, error) {
	if err := l.admin.lock(ctx); err != nil {
		return false, errWaiting(err)
	}
	defer l.admin.unlock()
	if generation, ok := l.current(); ok && generation != seen {
		return true, nil
	}
	if !l.registry.rescan.take(time.Now()) {
		return false, nil
	}
	return true, l.initialise(ctx)
}

// enter lets a caller into an initialised library and returns its generation, which stays as it is
// until leave.
func (l *library) enter(ctx context.Context) (generation uint64, err error) {
	if err := l.gate.enter(ctx); err != nil {
		return 0, errWaiting(err)
	}
	generation, ok := l.current()
	if !ok {
		l.gate.leave()
		return generation, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)
	}
	return generation, nil
}

func (l *library) leave() { l.gate.leave() }

func (l *library) ready() bool {
	_, ok := l.current()
	return ok
}

func (l *library) current() (generation uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.generation, l.initialised
}

func (l *library) setReady(ready bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.initialised = ready
	if ready {
		l.generation++
	}
}

// allowance permits a burst, and one more each period.
type allowance struct {
	mu     sync.Mutex
	left   float64
	burst  float64
	period time.Duration
	last   time.Time
}

func newAllowance(burst float64, period time.Duration) *allowance {
	return &allowance{left: burst, burst: burst, period: period}
}

func (a *allowance) take(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.refilled(now) {
		return false
	}
	a.left--
	return true
}

// has says whether take would succeed.
func (a *allowance) has(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refilled(now)
}

func (a *allowance) refilled(now time.Time) bool {
	if !a.last.IsZero() {
		a.left = min(a.burst, a.left+now.Sub(a.last).Seconds()/a.period.Seconds())
	}
	a.last = now
	return a.left >= 1
}
