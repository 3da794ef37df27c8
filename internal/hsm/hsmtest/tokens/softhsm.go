//go:build cgo

package tokens

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// softHSMConf is the environment variable with the path of SoftHSM's configuration. The library reads it in C_Initialize, so all
// tests of a process have the same configuration.
const softHSMConf = "SOFTHSM2_CONF"

// softHSM is the directory of the tokens of this process, which exists while tests use it.
var softHSM struct {
	sync.Mutex
	dir   string
	users int
}

// SoftHSM makes a new token with a unique label.
//
// The library finds the new token only in its next C_Initialize. Package pkcs11 calls C_Initialize again if a token is missing
// and no other one is connected.
func SoftHSM(t testing.TB) Token {
	t.Helper()
	var random [6]byte
	_, _ = rand.Read(random[:]) // it never fails (Go 1.24)
	return SoftHSMLabelled(t, "keyconvoy-"+hex.EncodeToString(random[:]))
}

// SoftHSMLabelled makes a new token with that label, even if another token has the same one.
func SoftHSMLabelled(t testing.TB, label string) Token {
	t.Helper()
	path := find(t, "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so")
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		t.Fatal("softhsm2-util is not installed: apt-get install softhsm2")
	}
	env := useSoftHSM(t)
	cmd := exec.Command(util, "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", pin)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make a SoftHSM token: %v\n%s", err, out)
	}
	return Token{Path: path, Label: label, PIN: pin, Env: []string{env}, Dir: filepath.Dir(strings.TrimPrefix(env, softHSMConf+"="))}
}

// useSoftHSM creates the directory if needed. The end of the last test that uses it removes it.
func useSoftHSM(t testing.TB) (env string) {
	t.Helper()
	softHSM.Lock()
	defer softHSM.Unlock()
	if softHSM.users == 0 {
		dir, err := newSoftHSMDirectory()
		if err != nil {
			t.Fatal(err)
		}
		softHSM.dir = dir
		conf := filepath.Join(dir, "softhsm2.conf")
		if err := os.Setenv(softHSMConf, conf); err != nil { // with cgo, this also sets the variable of C
			t.Fatal(err)
		}
	}
	softHSM.users++
	t.Cleanup(func() {
		softHSM.Lock()
		defer softHSM.Unlock()
		if softHSM.users--; softHSM.users == 0 {
			_ = os.RemoveAll(softHSM.dir)
		}
	})
	return softHSMConf + "=" + filepath.Join(softHSM.dir, "softhsm2.conf")
}

func newSoftHSMDirectory() (string, error) {
	dir, err := directory("softhsm")
	if err != nil {
		return "", err
	}
	tokenDir := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokenDir, 0o700); err != nil {
		return "", err
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", tokenDir)
	return dir, os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600)
}

// Reinitialise replaces a SoftHSM token by an empty one with the same label and PIN, as a security officer does while processes
// use it. SoftHSM stops in the middle if another process removes a file of an object at the same time, or ended before it wrote
// both files of an object; the next attempt removes the rest.
func Reinitialise(t testing.TB, token Token) {
	t.Helper()
	const attempts = 5
	var failures []string
	for range attempts {
		out, err := exec.Command("softhsm2-util", "--init-token", "--token", token.Label, "--label", token.Label,
			"--pin", token.PIN, "--so-pin", token.PIN).CombinedOutput()
		if err == nil {
			return
		}
		failures = append(failures, fmt.Sprintf("%v\n%s", err, out))
	}
	t.Fatalf("reinitialize the SoftHSM token: %v", failures)
}

// Replace removes a SoftHSM token that no process uses, and makes an empty one with the same label and PIN. Unlike Reinitialise,
// it does not read what is in the token, so it does not matter how the last process that wrote there ended.
func Replace(t testing.TB, token Token) {
	t.Helper()
	for _, arguments := range [][]string{
		{"--delete-token", "--token", token.Label},
		{"--init-token", "--free", "--label", token.Label, "--pin", token.PIN, "--so-pin", token.PIN},
	} {
		if out, err := exec.Command("softhsm2-util", arguments...).CombinedOutput(); err != nil {
			t.Fatalf("replace the SoftHSM token: %v\n%s", err, out)
		}
	}
}
