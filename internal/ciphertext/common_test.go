package ciphertext_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"os/exec"
	"testing"

	"github.com/emmansun/gmsm/sm4"
	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func aesBlock(t testing.TB, key []byte) cipher.Block {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

func sm4Block(t testing.TB, key []byte) cipher.Block {
	t.Helper()
	block, err := sm4.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return block
}

// openssl runs the command line over stdin. A missing openssl fails the test.
func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("openssl", args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %q: %v: %s", args, err, stderr.Bytes())
	}
	return out
}

var (
	versionA = uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	versionB = uuid.MustParse("3f333df6-90a4-4fda-8dd3-9485d27cee36")
)

// sealing is a scheme with a master key that it goes with.
type sealing struct {
	scheme ciphertext.Scheme
	master cipher.Block
	other  cipher.Block // another key of that kind
	length int          // of a data key that it takes
}

func sealings(t testing.TB) map[string]sealing {
	t.Helper()
	a, b := bytes.Repeat([]byte{0x0a}, 32), bytes.Repeat([]byte{0x0b}, 32)
	return map[string]sealing{
		"DERIVED_KEY_WRAP": {ciphertext.DerivedKeyWrap, aesBlock(t, a), aesBlock(t, b), 32},
		"DERIVED_GCM":      {ciphertext.DerivedGCM, aesBlock(t, a), aesBlock(t, b), 17},
		"KDF_KEY_WRAP":     {ciphertext.KDFKeyWrap, aesBlock(t, a), aesBlock(t, b), 32},
		"KDF_GCM":          {ciphertext.KDFGCM, aesBlock(t, a), aesBlock(t, b), 17},
		"DIRECT_GCM AES":   {ciphertext.DirectGCM, aesBlock(t, a), aesBlock(t, b), 32},
		"DIRECT_GCM SM4":   {ciphertext.DirectGCM, sm4Block(t, a[:16]), sm4Block(t, b[:16]), 16},
	}
}
