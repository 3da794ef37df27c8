//go:build cgo

// Package tokens makes real PKCS#11 tokens for tests: SoftHSM 2 and NSS softokn, as Debian installs them. A test fails if a
// library is missing. A Spy counts calls into a library and injects faults.
package tokens

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Token has what opens a token.
type Token struct {
	Path       string   // of the library
	Parameters string   // the reserved string of CK_C_INITIALIZE_ARGS, or ""
	Label      string   // the token's
	PIN        string   // the user PIN
	Env        []string // the environment with which a child process finds the token
	Dir        string   // what the library reads and writes
}

// pin is the user PIN and the security officer's PIN of every token: the longest that openCryptoki accepts, and nothing that is in a
// memory by chance.
const pin = "vQ4-7pZk"

// find returns the first of paths that exists.
func find(t testing.TB, paths ...string) string {
	t.Helper()
	for _, pattern := range paths {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("none of %s exists: apt-get install softhsm2 libnss3", strings.Join(paths, ", "))
	return ""
}

// directory makes a directory for tokens, in /dev/shm if possible: otherwise each change of a token object waits for the disk.
func directory(name string) (string, error) {
	in := "/dev/shm"
	if info, err := os.Stat(in); err != nil || !info.IsDir() {
		in = ""
	}
	dir, err := os.MkdirTemp(in, "keyconvoy-"+name+"-")
	if err != nil {
		dir, err = os.MkdirTemp("", "keyconvoy-"+name+"-")
	}
	if err != nil {
		return "", fmt.Errorf("make a directory for tokens: %w", err)
	}
	return dir, nil
}

// Kinds are the modules that tests of behaviour run on.
var Kinds = map[string]func(testing.TB) Token{"SoftHSM": SoftHSM, "NSS": NSS}

// OnEach runs a test on each module, one after the other, because the modules' spies and NSS's token are shared.
func OnEach(t *testing.T, test func(*testing.T, Token)) {
	t.Helper()
	for kind, newToken := range Kinds {
		t.Run(kind, func(t *testing.T) { test(t, newToken(t)) })
	}
}
