//go:build cgo

// Package tokens makes real PKCS#11 tokens for tests: SoftHSM 2 and NSS softokn, as Debian installs
// them. A library that is missing fails the test; it does not skip.
package tokens

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Token is where a token is and what opens it.
type Token struct {
	Path       string   // of the library
	Parameters string   // the reserved string of CK_C_INITIALIZE_ARGS, or ""
	Label      string   // the token's
	PIN        string   // the user PIN
	Env        []string // what a child process needs in its environment to see the token
}

// pin is every token's user PIN and security officer's PIN.
const pin = "12345678"

// find returns the first of paths that exists.
func find(t testing.TB, paths ...string) string {
	t.Helper()
	for _, pattern := range paths {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("none of %s is there: apt-get install softhsm2 libnss3", strings.Join(paths, ", "))
	return ""
}

// directory makes a directory for tokens, in memory where there is such a thing: each change of a token
// object waits for the disk otherwise.
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
