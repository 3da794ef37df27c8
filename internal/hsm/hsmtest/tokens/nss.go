//go:build cgo

package tokens

// #include <stdlib.h>
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"github.com/miekg/pkcs11" //nolint:depguard // the product makes no tokens, so this is the one other place
)

// nssLabel and nssSlot are fixed in NSS; its slot 1 is for session objects only.
const (
	nssLabel = "NSS Certificate DB"
	nssSlot  = 2
)

// nssTemplate has the files of an empty database with a PIN. A process can initialize the library for one database only, so the
// template is made once, before the library is used, and copied.
var nssTemplate = sync.OnceValues(makeNSSDatabase)

// nss is the database of this process, which exists while tests use it.
var nss struct {
	sync.Mutex
	dir   string
	users int
}

// NSS returns the NSS token of this process. All tests share it, because a process can initialize the library for one database
// only. It is replaced by an empty one when no test uses it any more.
//
// The first call in a process must precede any other C_Initialize of the library.
func NSS(t testing.TB) Token {
	t.Helper()
	nss.Lock()
	defer nss.Unlock()
	if nss.users == 0 {
		nss.dir = newNSSDatabase(t)
	}
	nss.users++
	t.Cleanup(func() {
		nss.Lock()
		defer nss.Unlock()
		if nss.users--; nss.users == 0 {
			_ = os.RemoveAll(nss.dir)
		}
	})
	return nssToken(t, nss.dir)
}

// FreshNSS returns a new database, for a child process.
func FreshNSS(t testing.TB) Token {
	t.Helper()
	dir := newNSSDatabase(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return nssToken(t, dir)
}

func nssToken(t testing.TB, dir string) Token {
	t.Helper()
	return Token{Path: nssPath(t), Parameters: nssParameters(dir), Label: nssLabel, PIN: pin, Dir: dir}
}

func nssPath(t testing.TB) string {
	t.Helper()
	return find(t, nssPaths...)
}

var nssPaths = []string{"/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so", "/usr/lib/libsoftokn3.so"}

func nssParameters(dir string) string {
	return fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' flags= ", dir)
}

func newNSSDatabase(t testing.TB) string {
	t.Helper()
	nssPath(t)
	template, err := nssTemplate()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := directory("nss")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range template {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// makeNSSDatabase creates a database as certutil -N does, with an empty PIN of the security officer, and returns its files.
func makeNSSDatabase() (map[string][]byte, error) {
	// NSS encrypts each attribute of each token object under a key derived with 10 000 rounds, so an import would take 0.1 s. The
	// database keeps the number of rounds with which it was created.
	if err := os.Setenv("NSS_MAX_MP_PBE_ITERATION_COUNT", "1"); err != nil {
		return nil, err
	}
	dir, err := directory("nss")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := ""
	for _, pattern := range nssPaths {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			path = found[0]
			break
		}
	}
	lib := pkcs11.New(path)
	if lib == nil {
		return nil, fmt.Errorf("%s does not load", path)
	}
	if err := initializeNSS(lib, nssParameters(dir)); err != nil {
		return nil, fmt.Errorf("make an NSS database: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	content := map[string][]byte{}
	for _, file := range files {
		if content[filepath.Base(file)], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	return content, nil
}

func initializeNSS(lib *pkcs11.Ctx, parameters string) (err error) {
	reserved := unsafe.Pointer(C.CString(parameters))
	defer C.free(reserved)
	if err := lib.Initialize(pkcs11.InitializeWithReserved(reserved)); err != nil {
		return fmt.Errorf("C_Initialize (call tokens.NSS first): %w", err)
	}
	defer func() {
		if finalErr := lib.Finalize(); err == nil {
			err = finalErr
		}
	}()
	session, err := lib.OpenSession(nssSlot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	if err := lib.Login(session, pkcs11.CKU_SO, ""); err != nil {
		return fmt.Errorf("C_Login: %w", err)
	}
	if err := lib.InitPIN(session, pin); err != nil {
		return fmt.Errorf("C_InitPIN: %w", err)
	}
	return nil
}
