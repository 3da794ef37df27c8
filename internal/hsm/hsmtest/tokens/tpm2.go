//go:build cgo

package tokens

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/miekg/pkcs11" //nolint:depguard // the product makes no tokens
)

// tpm2 is held by the test that uses tpm2-pkcs11, because its configuration is in the environment of the process.
var tpm2 sync.Mutex

// TPM2 makes a new token of tpm2-pkcs11 on a TPM in software (swtpm). A test can have one such token, and tests with one run one
// after the other.
func TPM2(t testing.TB) Token {
	t.Helper()
	library := find(t, "/usr/lib/*/libtpm2_pkcs11.so.1")
	if !tpm2.TryLock() {
		t.Fatal("another test of this process uses tpm2-pkcs11: run them one after the other")
	}
	t.Cleanup(tpm2.Unlock)
	dir, err := directory("tpm2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	service := &Service{Socket: filepath.Join(dir, "tpm")}
	control := service.Socket + ".ctrl" // where the library expects it
	service.args = []string{
		lookPath(t, "swtpm", "swtpm"), "socket", "--tpm2", "--tpmstate", "dir=" + dir, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path=" + service.Socket, "--ctrl", "type=unixio,path=" + control,
	}
	service.ready = func() bool { return accepts(service.Socket) && accepts(control) }
	t.Cleanup(func() { service.Kill(t) })
	service.Start(t)
	for name, value := range map[string]string{
		"TPM2_PKCS11_STORE": dir, "TPM2_PKCS11_TCTI": "swtpm:path=" + service.Socket, "TPM2_PKCS11_LOG_LEVEL": "0",
	} {
		if err := os.Setenv(name, value); err != nil { // with cgo, this also sets the variable of C
			t.Fatal(err)
		}
	}
	token := Token{Path: library, Label: "keyconvoy-test", PIN: pin}
	if err := initializeTPM2(token); err != nil {
		t.Fatalf("make a token of tpm2-pkcs11: %v", err)
	}
	return token
}

// initializeTPM2 makes a token in the first slot, which has none yet.
func initializeTPM2(token Token) (err error) {
	lib := pkcs11.New(token.Path)
	if lib == nil {
		return fmt.Errorf("%s does not load", token.Path)
	}
	if err := lib.Initialize(); err != nil {
		return fmt.Errorf("C_Initialize: %w", err)
	}
	defer func() {
		if finalErr := lib.Finalize(); err == nil {
			err = finalErr
		}
	}()
	slots, err := lib.GetSlotList(true)
	if err != nil || len(slots) == 0 {
		return fmt.Errorf("C_GetSlotList: %v, %w", slots, err)
	}
	if err := lib.InitToken(slots[0], token.PIN, token.Label); err != nil {
		return fmt.Errorf("C_InitToken: %w", err)
	}
	session, err := lib.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	if err := lib.Login(session, pkcs11.CKU_SO, token.PIN); err != nil {
		return fmt.Errorf("C_Login: %w", err)
	}
	if err := lib.InitPIN(session, token.PIN); err != nil {
		return fmt.Errorf("C_InitPIN: %w", err)
	}
	return nil
}
