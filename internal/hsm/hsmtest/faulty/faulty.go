//go:build cgo

// Package faulty has a PKCS#11 library, in C, that forwards every call to another library and fails on demand: it crashes,
// hangs, returns errors or returns garbage. A Control says which calls fail, also in other processes, and counts calls.
package faulty

// #include "library/control.h"
//
// #define FAULTY_NAME(name, parameters, arguments, output) #name,
// static const char *names[] = {FAULTY_FUNCTIONS(FAULTY_NAME)};
// static const char *nameOf(int i) { return names[i]; }
import "C"

import (
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

//go:embed library
var source embed.FS

// Build compiles the library in a directory and returns its path. The go command must find the module of package
// github.com/miekg/pkcs11, which has the header of the standard, from the working directory.
func Build(ctx context.Context, dir string) (path string, err error) {
	headers, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		return "", fmt.Errorf("find the PKCS#11 header: %w", err)
	}
	if err := os.CopyFS(filepath.Join(dir, "faulty"), source); err != nil {
		return "", err
	}
	path = filepath.Join(dir, "faulty.so")
	out, err := exec.CommandContext(ctx, "gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-I", strings.TrimSpace(string(headers)),
		"-o", path, filepath.Join(dir, "faulty", "library", "faulty.c"), "-ldl").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile the faulty library: %w\n%s", err, out)
	}
	return path, nil
}

// Kind is what happens to a call.
type Kind int

// The kinds of faults.
const (
	Segv    Kind = C.FAULTY_SEGV // a segmentation fault
	Kill    Kind = C.FAULTY_KILL // SIGKILL to the process
	Exit    Kind = C.FAULTY_EXIT // exit(3)
	Hang    Kind = C.FAULTY_HANG // the call returns when the fault ends
	Code    Kind = C.FAULTY_CODE // the call returns Fault.Parameter
	Garbage Kind = C.FAULTY_GARBAGE
	// OtherKey: CKR_OK, and the new secret key has another value.
	OtherKey Kind = C.FAULTY_OTHER
	// Leak: C_CloseSession closes nothing, and C_OpenSession fails if Fault.Parameter sessions are open; 0 means no limit.
	Leak Kind = C.FAULTY_LEAK
	// Limit: C_OpenSession fails if Fault.Parameter sessions are open.
	Limit Kind = C.FAULTY_LIMIT
)

// Fault is what happens to which calls. A call that only asks for the length of a result counts as a call, except for Garbage
// and OtherKey.
type Fault struct {
	Kind Kind
	// Functions are the functions that fail, for example C_WrapKey.
	Functions []string
	// Inside lets the fault happen when the real call has taken effect. Garbage has a changed bit in each result then; otherwise
	// the call has no effect, and its results are random, empty lists, or, instead of random bytes, zeros.
	Inside bool
	// Counted are the functions whose calls are numbered from 1 for the next two fields; nil means Functions.
	Counted []string
	First   int // the first call that fails; 0 means 1
	Every   int // of so many calls, one fails; 0 means 1
	// Times is how often the fault happens, in all processes together; 0 means always.
	Times     int
	Parameter uint
}

// Functions returns the names of the functions that can fail: all that Keyconvoy calls.
func Functions() []string { return slices.Clone(functions()) }

var functions = sync.OnceValue(func() []string {
	names := make([]string, C.FAULTY_COUNT)
	for i := range names {
		names[i] = C.GoString(C.nameOf(C.int(i)))
	}
	return names
})

// Control controls the library in all processes that have its environment. It is safe for concurrent use.
type Control struct {
	path string
	mu   sync.Mutex // held while the faults are written
	c    *C.struct_faulty_control
}

// NewControl creates a control file without a fault. It stays mapped until the process ends, because the library may use it.
func NewControl(path string) (*Control, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	size := int(unsafe.Sizeof(C.struct_faulty_control{}))
	if err := file.Truncate(int64(size)); err != nil {
		return nil, err
	}
	shared, err := syscall.Mmap(int(file.Fd()), 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &Control{path: path, c: (*C.struct_faulty_control)(unsafe.Pointer(unsafe.SliceData(shared)))}, nil
}

// Env returns the environment with which the library finds the control file and the real library.
func (c *Control) Env(library string) []string {
	return []string{"FAULTY_CONTROL=" + c.path, "FAULTY_LIBRARY=" + library}
}

// Path returns the path of the control file, which processes that use the library write.
func (c *Control) Path() string { return c.path }

// Process returns the process that loaded the library last.
func (c *Control) Process() int { return c.load(&c.c.process) }

// Inject begins faults and ends all others. Of those that apply to a call, the first one happens. There are at most two.
func (c *Control) Inject(faults ...Fault) {
	var all [C.FAULTY_FAULTS]C.struct_faulty_fault
	for i, f := range faults {
		all[i] = f.encode()
	}
	c.set(all, true)
}

func (f *Fault) encode() C.struct_faulty_fault {
	counted := f.Counted
	if counted == nil {
		counted = f.Functions
	}
	inside := 0
	if f.Inside {
		inside = 1
	}
	return C.struct_faulty_fault{
		kind: C.uint64_t(f.Kind), inside: C.uint64_t(inside), functions: maskOf(f.Functions), counted: maskOf(counted),
		first: C.uint64_t(max(f.First, 1)), every: C.uint64_t(f.Every), times: C.uint64_t(f.Times), parameter: C.uint64_t(f.Parameter),
	}
}

// End ends all faults. Calls that hang return.
func (c *Control) End() { c.set([C.FAULTY_FAULTS]C.struct_faulty_fault{}, false) }

func (c *Control) set(faults [C.FAULTY_FAULTS]C.struct_faulty_fault, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(&c.c.version)
	c.c.faults = faults
	for i := range faults {
		c.store(&c.c.numbered[i], 0)
		if reset {
			c.store(&c.c.fired[i], 0)
		}
	}
	c.add(&c.c.version)
}

func maskOf(functions []string) (mask C.uint64_t) {
	for _, function := range functions {
		mask |= 1 << indexOf(function)
	}
	return mask
}

func indexOf(function string) int {
	i := slices.Index(functions(), function)
	if i < 0 {
		panic("the faulty library has no function " + function)
	}
	return i
}

// Fired returns how often the first of the last faults happened.
func (c *Control) Fired() int { return c.load(&c.c.fired[0]) }

// Calls returns the number of calls of these functions since the last Reset, without those that only ask for the length of a
// result.
func (c *Control) Calls(functions ...string) (n int) {
	for _, function := range functions {
		n += c.load(&c.c.calls[indexOf(function)])
	}
	return n
}

// Logins are the calls of C_Login that reached the real library.
type Logins struct {
	Right, Wrong int // with the PIN of Reset, and with another one
	Refused      int // those that the library answered with a code about the PIN
}

// Logins returns the counts since the last Reset.
func (c *Control) Logins() Logins {
	return Logins{Right: c.load(&c.c.rightPINs), Wrong: c.load(&c.c.wrongPINs), Refused: c.load(&c.c.refusedPINs)}
}

// Reset ends the fault, sets the counts to zero, and tells the library the right PIN. No process may use the library meanwhile.
func (c *Control) Reset(pin string) {
	c.End()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.c.calls {
		c.store(&c.c.calls[i], 0)
	}
	for _, counter := range []*C.uint64_t{&c.c.fired[0], &c.c.fired[1], &c.c.rightPINs, &c.c.wrongPINs, &c.c.refusedPINs} {
		c.store(counter, 0)
	}
	c.c.pinLength = C.uint64_t(min(len(pin), len(c.c.pin)))
	for i := range min(len(pin), len(c.c.pin)) {
		c.c.pin[i] = C.uint8_t(pin[i])
	}
}

func (c *Control) load(from *C.uint64_t) int {
	return int(atomic.LoadUint64((*uint64)(from)))
}

func (c *Control) store(to *C.uint64_t, n uint64) { atomic.StoreUint64((*uint64)(to), n) }

func (c *Control) add(to *C.uint64_t) { atomic.AddUint64((*uint64)(to), 1) }
