//go:build cgo

package token

import (
	"cmp"
	"context"
	"path/filepath"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/namelock"
)

// initializeWait bounds how long C_Initialize waits for calls in progress. It is longer than a slow token takes to generate
// an RSA-4096 key pair. A call that takes longer hangs.
const initializeWait = 15 * time.Second

// maxOpening bounds the calls of Open with one selector at a time, including those that hang in the library after their callers
// gave up. Key stores are opened again and again, and each Open that hangs holds a thread of the operating system.
const maxOpening = 4

// Libraries are the PKCS#11 libraries that a process has loaded, by file. C_Initialize is allowed once per process and library
// (PKCS #11 v2.40 base, section 5.4), so a process opens all tokens through one Libraries. The zero value is ready for use.
type Libraries struct {
	// Load loads a shared library; nil means LoadLibrary.
	Load func(path string) (Cryptoki, error)
	// ReinitializeInterval is the least time between two C_Initialize calls that reconnect tokens of one library; 0 means
	// five seconds, a negative value no limit.
	ReinitializeInterval time.Duration
	// Now is the clock for ReinitializeInterval and for the delay between two attempts to reconnect; nil means time.Now.
	Now func() time.Time

	mu     sync.Mutex
	byFile map[string]*library
}

func (l *Libraries) now() time.Time {
	if l.Now != nil {
		return l.Now()
	}
	return time.Now()
}

// library is a shared library, which is initialized while it has users.
type library struct {
	libraries *Libraries
	path      string
	file      string // path without symbolic links
	calls     mutex  // read-locked by operations, locked by C_Initialize and C_Finalize

	admin             mutex // guards the fields up to the blank line
	users             int
	parameters        string
	reinitializations *rate.Limiter

	mu          sync.Mutex // guards the fields up to the blank line; not held during calls that may hang in the library
	c           Cryptoki
	initialized bool
	generation  uint64              // counts C_Initialize calls
	connected   map[*Token]struct{} // tokens that are connected in this generation

	logins  logins
	opening byKey[selector, *semaphore.Weighted] // calls of Open
	names   namelock.Locks                       // objects being created or destroyed, by token and CKA_ID

	// Searches for token objects read-lock the mutex of their token, changes lock it. SoftHSM 2.6 reads its directory again
	// during a search if an object was added or destroyed. If another thread is adding an object meanwhile, that sometimes
	// fails (CKR_GENERAL_ERROR, CKR_TEMPLATE_INCONSISTENT, wrong attribute values) and leaves half an object behind. Searches
	// are rare, because handles are cached, and operations on session objects need no lock.
	objects byKey[identity, mutex]
}

// get returns the library at path. Paths that lead to the same file are one library, as for the dynamic linker.
func (l *Libraries) get(path string) *library {
	file := path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		file = real
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byFile == nil {
		l.byFile = map[string]*library{}
	}
	lib := l.byFile[file]
	if lib == nil {
		lib = &library{
			libraries: l, path: path, file: file, calls: newMutex(), admin: newMutex(), connected: map[*Token]struct{}{},
			logins:            newLogins(),
			reinitializations: rate.NewLimiter(rate.Every(cmp.Or(l.ReinitializeInterval, 5*time.Second)), 1),
		}
		l.byFile[file] = lib
	}
	return lib
}

// acquire makes the caller a user of its library. The first user initializes the library, and initialized is true for it. Each
// successful acquire needs one release.
func (l *Libraries) acquire(ctx context.Context, cfg *Config) (lib *library, initialized bool, err error) {
	lib = l.get(cfg.Path)
	if err := lib.admin.lock(ctx); err != nil {
		return nil, false, timeoutError(err)
	}
	defer lib.admin.unlock()
	if lib.users > 0 && lib.parameters != cfg.Parameters {
		return nil, false, hsm.Errorf(hsm.Misconfigured,
			"another key store uses the library with other parameters, and a process can initialize a library only once: use the same parameters in every key store of this library")
	}
	if err := lib.load(cfg.Watch); err != nil {
		return nil, false, err
	}
	if _, ok := lib.currentGeneration(); !ok {
		lib.parameters = cfg.Parameters
		if err := lib.initialize(ctx); err != nil {
			return nil, false, err
		}
		initialized = true
	}
	lib.users++
	return lib, initialized, nil
}

// release ends the use of a library. The last user finalizes it, unless a call hangs in it.
func (l *library) release(ctx context.Context) {
	if l.admin.lock(ctx) != nil {
		return // C_Initialize or C_Finalize hangs, and the library cannot be used again
	}
	defer l.admin.unlock()
	l.users--
	if _, ok := l.currentGeneration(); l.users > 0 || !ok {
		return
	}
	if l.calls.lock(ctx) != nil {
		return
	}
	defer l.calls.unlock()
	_ = l.c.Finalize()
	l.setInitialized(false)
}

func (l *library) load(watch func(string) func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c != nil {
		return nil
	}
	load := l.libraries.Load
	if load == nil {
		load = LoadLibrary
	}
	if watch != nil {
		defer watch("dlopen")()
	}
	c, err := load(l.path)
	if err != nil {
		// Tenants' key stores show this text. It names files of the operator's image, which the administrator chose and which
		// are no secret. An administrator needs it to repair the library.
		return hsm.Wrap(hsm.Misconfigured, err, "the library does not load: "+printable(err.Error(), 512))
	}
	if watch != nil {
		c = Around(c, watch)
	}
	l.c = c
	return nil
}

// initialize calls C_Initialize, after C_Finalize if needed, and begins a new generation. l.admin must be locked.
func (l *library) initialize(ctx context.Context) error {
	_, err := l.initializeUnless(ctx, func() bool { return false })
	return err
}

// initializeUnless is initialize with a condition under which it does nothing, evaluated when no call is in progress.
func (l *library) initializeUnless(ctx context.Context, inUse func() bool) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, initializeWait)
	defer cancel()
	if err := l.calls.lock(ctx); err != nil {
		return false, hsm.Wrap(hsm.Unavailable, err, "a call into the library hangs, so the library cannot be initialized again: restart Keyconvoy if this persists")
	}
	defer l.calls.unlock()
	if inUse() {
		return false, nil
	}
	if _, ok := l.currentGeneration(); ok {
		_ = l.c.Finalize() // a library that lost its device may fail; C_Initialize decides
	}
	l.setInitialized(false)
	l.logins.reset()
	options, free := reservedOption(l.parameters)
	defer free()
	err = callError("C_Initialize", l.c.Initialize(options...)) // with CKF_OS_LOCKING_OK, the default of miekg/pkcs11
	switch {
	case err == nil, HasCode(err, p11.CKR_CRYPTOKI_ALREADY_INITIALIZED):
		l.setInitialized(true)
		return true, nil
	case HasCode(err, p11.CKR_ARGUMENTS_BAD):
		return false, hsm.Wrap(hsm.Misconfigured, err, "the library rejects its parameters: correct the parameters of the library, which an administrator configures")
	}
	return false, hsm.Wrap(hsm.Unavailable, err, "C_Initialize fails: check the configuration that the library's vendor requires")
}

// reinitialize initializes the library again, unless another caller did so since generation seen. It closes the sessions of
// every token of the library, so its rate is limited.
func (l *library) reinitialize(ctx context.Context, seen uint64) error {
	if err := l.admin.lock(ctx); err != nil {
		return timeoutError(err)
	}
	defer l.admin.unlock()
	if generation, ok := l.currentGeneration(); ok && generation != seen {
		return nil
	}
	if !l.reinitializations.AllowN(l.libraries.now(), 1) {
		return hsm.Errorf(hsm.Unavailable, "the library was initialized again a moment ago, and still fails")
	}
	return l.initialize(ctx)
}

// rescan initializes the library again for a token that is missing, unless another caller did so since generation seen:
// SoftHSM reads its list of tokens only in C_Initialize. It does nothing and returns false while another token is connected;
// otherwise anyone who configures a missing token could close the sessions of all others.
func (l *library) rescan(ctx context.Context, t *Token, seen uint64) (rescanned bool, err error) {
	if err := l.admin.lock(ctx); err != nil {
		return false, timeoutError(err)
	}
	defer l.admin.unlock()
	if generation, ok := l.currentGeneration(); ok && generation != seen {
		return true, nil
	}
	return l.initializeUnless(ctx, func() bool { return l.othersConnected(t) })
}

// setConnected records that a token is connected in that generation.
func (l *library) setConnected(t *Token, generation uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.initialized && l.generation == generation {
		l.connected[t] = struct{}{}
	}
}

func (l *library) setDisconnected(t *Token) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.connected, t)
}

// othersConnected returns whether a token other than t is connected.
func (l *library) othersConnected(t *Token) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, connected := l.connected[t]
	return len(l.connected) > 1 || (len(l.connected) == 1 && !connected)
}

// enter allows calls into the library until leave, and returns its generation, which stays the same until then.
func (l *library) enter(ctx context.Context) (generation uint64, err error) {
	if err := l.calls.rLock(ctx); err != nil {
		return 0, timeoutError(err)
	}
	generation, ok := l.currentGeneration()
	if !ok {
		l.calls.rUnlock()
		return generation, p11.Error(p11.CKR_CRYPTOKI_NOT_INITIALIZED)
	}
	return generation, nil
}

func (l *library) leave() { l.calls.rUnlock() }

// currentGeneration returns the generation; ok is false if the library is not initialized.
func (l *library) currentGeneration() (generation uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.generation, l.initialized
}

func (l *library) setInitialized(initialized bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.initialized = initialized
	clear(l.connected)
	if initialized {
		l.generation++
	}
}
