package cli_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestWrap_warnsOfWhatIsLikelyAMistakeAndDoesAsItIsTold(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		material []byte
		mode     os.FileMode
		change   func(*v1alpha1.ImportedKey)
		says     string
	}{
		"32 hexadecimal digits as a key of 32 bytes": {
			material: []byte("0123456789abcdef0f1e2d3c4b5a6978"), mode: 0o600, says: "warning: the material consists of hexadecimal digits only",
		},
		"32 characters of Base64": {
			material: []byte("q83vASNFZ4mrze8BI0VniavN7wEjRWeJ"), mode: 0o600, says: "warning: the material consists of Base64 characters only",
		},
		"a password": {
			material: []byte("correct horse: battery, staple!\n"), mode: 0o600, says: "warning: the material is printable text",
		},
		"zeros": {
			material: make([]byte, 32), mode: 0o600, says: "warning: the material is one byte repeated",
		},
		"one character": {
			material: bytes.Repeat([]byte("a"), 32), mode: 0o600, says: "warning: the material is one byte repeated",
		},
		"one half twice": {
			material: bytes.Repeat(canary[:16], 2), mode: 0o600, says: "warning: the material is the same 16 bytes repeated",
		},
		"one quarter four times": {
			material: bytes.Repeat(canary[:8], 4), mode: 0o600, says: "warning: the material is the same 8 bytes repeated",
		},
		"bytes that count": {
			material: func() (b []byte) {
				for i := range 32 {
					b = append(b, byte(240+i))
				}
				return b
			}(), mode: 0o600, says: "warning: the material is a sequence of evenly spaced bytes",
		},
		"a file that all may read": {material: canary, mode: 0o644, says: "warning: every user of this machine can read"},
		"a key that refers to a ConfigMap": {
			material: canary, mode: 0o600, says: "note: the patch replaces the key's reference",
			change: func(key *v1alpha1.ImportedKey) {
				from := &v1alpha1.EntrySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: "m", Key: "k"}}
				key.Spec.Material = &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: from, ImportToken: importToken}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			material := file(t, "material", test.material)
			if err := os.Chmod(material, test.mode); err != nil {
				t.Fatal(err)
			}
			args := []string{"wrap", "--parameters", importedKeyFile(t, test.change), "--in", material}
			got := call{args: args, secrets: [][]byte{test.material}}.run(t).succeeds(t)
			if !strings.Contains(got.errOut, test.says) {
				t.Errorf("standard error has %q", got.errOut)
			}
			readPatch(t, got.out)
		})
	}
}

// Text that is named as such is no mistake; weak material is, however it was written.
func TestWrap_warnsOfWeakMaterialInEveryEncoding_andOfNoOther(t *testing.T) {
	t.Parallel()
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	for name, test := range map[string]struct {
		text  string
		flag  string
		warns string
	}{
		"random, hexadecimal":   {hex.EncodeToString(random), "--hex", ""},
		"random, Base64":        {base64.StdEncoding.EncodeToString(random), "--base64", ""},
		"zeros, hexadecimal":    {strings.Repeat("00", 32), "--hex", "is one byte repeated"},
		"a password, in Base64": {base64.StdEncoding.EncodeToString([]byte("correct horse: battery, staple!!")), "--base64", "is printable text"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := keyconvoy(t, "wrap", "--parameters", importedKeyFile(t, nil), "--in", file(t, "m", []byte(test.text)), test.flag).succeeds(t)
			if (test.warns == "") != (got.errOut == "") || !strings.Contains(got.errOut, test.warns) {
				t.Errorf("standard error has %q", got.errOut)
			}
		})
	}
}
