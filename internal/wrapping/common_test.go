package wrapping_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// One key of each type serves all tests: making RSA keys is slow.
var (
	rsaKey      = sync.OnceValue(func() *wrapping.PrivateKey { return mustGenerate(wrapping.RSA2048) })
	otherRSAKey = sync.OnceValue(func() *wrapping.PrivateKey { return mustGenerate(wrapping.RSA2048) })
	sm2Key      = sync.OnceValue(func() *wrapping.PrivateKey { return mustGenerate(wrapping.ECSM2) })
	otherSM2Key = sync.OnceValue(func() *wrapping.PrivateKey { return mustGenerate(wrapping.ECSM2) })
)

func mustGenerate(spec wrapping.KeySpec) *wrapping.PrivateKey {
	key, err := wrapping.GeneratePrivateKey(rand.Reader, spec)
	if err != nil {
		panic(err)
	}
	return key
}

func pkcs8(t testing.TB, key *wrapping.PrivateKey) []byte {
	t.Helper()
	der, err := key.PKCS8()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// shell is a directory in which openssl runs, and what it is told to read and to write.
type shell struct {
	t   testing.TB
	dir string
}

func newShell(t testing.TB) shell { return shell{t, t.TempDir()} }

func (sh shell) write(name string, data []byte) {
	sh.t.Helper()
	if err := os.WriteFile(filepath.Join(sh.dir, name), data, 0o600); err != nil {
		sh.t.Fatal(err)
	}
}

func (sh shell) read(name string) []byte {
	sh.t.Helper()
	data, err := os.ReadFile(filepath.Join(sh.dir, name))
	if err != nil {
		sh.t.Fatal(err)
	}
	return data
}

// openssl runs the command line and returns what it prints. A missing openssl fails the test.
func (sh shell) openssl(args ...string) []byte {
	sh.t.Helper()
	out, err := sh.try(args...)
	if err != nil {
		sh.t.Fatalf("openssl %q: %v", args, err)
	}
	return out
}

func (sh shell) try(args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("openssl", args...)
	cmd.Dir, cmd.Stderr = sh.dir, &stderr
	out, err := cmd.Output()
	if err != nil && stderr.Len() > 0 {
		sh.t.Logf("openssl says: %s", stderr.Bytes())
	}
	return out, err
}
