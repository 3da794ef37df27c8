package ciphertext_test

import (
	"bytes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

var fill = flag.Bool("fill", false, "complete testdata/known_answers.json where binding and blob are missing")

const knownAnswersFile = "testdata/known_answers.json"

// knownAnswer is an entry of testdata/known_answers.json; testdata/README.md says how it is made.
type knownAnswer struct {
	Name              string            `json:"name"`
	Scheme            ciphertext.Scheme `json:"scheme"`
	Cipher            string            `json:"cipher"` // aes-128, aes-192, aes-256 or sm4
	Master            string            `json:"master"`
	KeyVersionID      uuid.UUID         `json:"keyVersionID"`
	EncryptionContext map[string]string `json:"encryptionContext"`
	IV                string            `json:"iv,omitempty"`
	DataKey           string            `json:"dataKey"`
	Binding           string            `json:"binding"`
	Blob              string            `json:"blob"`
}

func knownAnswers(t testing.TB) []knownAnswer {
	t.Helper()
	text, err := os.ReadFile(knownAnswersFile)
	if err != nil {
		t.Fatal(err)
	}
	var answers []knownAnswer
	if err := json.Unmarshal(text, &answers); err != nil {
		t.Fatal(err)
	}
	return answers
}

func (a knownAnswer) block(t testing.TB) cipher.Block {
	t.Helper()
	if a.Cipher == "sm4" {
		return sm4Block(t, unhex(t, a.Master))
	}
	return aesBlock(t, unhex(t, a.Master))
}

func TestKnownAnswers_areWhatOpensslComputes(t *testing.T) {
	answers := knownAnswers(t)
	for i := range answers {
		a := &answers[i]
		binding := opensslBinding(t, *a)
		blob := opensslBlob(t, *a, binding)
		if *fill && a.Binding == "" && a.Blob == "" {
			a.Binding, a.Blob = hex.EncodeToString(binding), blob
		}
		if a.Binding != hex.EncodeToString(binding) {
			t.Errorf("%s: openssl has the binding %x", a.Name, binding)
		}
		if a.Blob != blob {
			t.Errorf("%s: openssl has the blob %s", a.Name, blob)
		}
	}
	if *fill {
		text, err := json.MarshalIndent(answers, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(knownAnswersFile, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKnownAnswers_sealAndOpen(t *testing.T) {
	t.Parallel()
	seen := map[ciphertext.Scheme]int{}
	for _, a := range knownAnswers(t) {
		seen[a.Scheme]++
		binding := ciphertext.Bind(a.KeyVersionID, a.EncryptionContext)
		if hex.EncodeToString(binding[:]) != a.Binding {
			t.Errorf("%s: the binding is %x; want %s", a.Name, binding, a.Binding)
		}
		sealed, err := ciphertext.Seal(bytes.NewReader(unhex(t, a.IV)), a.Scheme, a.KeyVersionID, a.block(t), binding, unhex(t, a.DataKey))
		if err != nil || sealed.String() != a.Blob {
			t.Errorf("%s: Seal = %s, %v; want %s", a.Name, sealed, err, a.Blob)
		}
		blob, err := ciphertext.Parse(a.Blob)
		if err != nil {
			t.Fatalf("%s: %v", a.Name, err)
		}
		if blob.KeyVersionID != a.KeyVersionID || blob.Scheme != a.Scheme {
			t.Errorf("%s: the blob names %s and scheme %s", a.Name, blob.KeyVersionID, blob.Scheme)
		}
		dataKey, err := ciphertext.Open(blob, a.block(t), binding)
		if err != nil || hex.EncodeToString(dataKey) != a.DataKey {
			t.Errorf("%s: Open = %x, %v; want %s", a.Name, dataKey, err, a.DataKey)
		}
	}
	for _, scheme := range ciphertext.Schemes() {
		if seen[scheme] < 2 {
			t.Errorf("%s has %d known answers; want two", scheme, seen[scheme])
		}
	}
}

// opensslBinding follows the description in testdata/README.md.
func opensslBinding(t *testing.T, a knownAnswer) []byte {
	t.Helper()
	parts := []string{"keyconvoy.io/binding/1", string(unhex(t, strings.ReplaceAll(a.KeyVersionID.String(), "-", "")))}
	var keys []string
	for key := range a.EncryptionContext {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		parts = append(parts, key, a.EncryptionContext[key])
	}
	var message []byte
	for _, part := range parts {
		message = append(message, 0, 0, byte(len(part)>>8), byte(len(part)))
		message = append(message, part...)
	}
	return openssl(t, message, "dgst", "-sha256", "-binary")
}

func opensslBlob(t *testing.T, a knownAnswer, binding []byte) string {
	t.Helper()
	enc := func(mode, key string, in []byte, options ...string) []byte {
		return openssl(t, in, append([]string{"enc", "-" + mode, "-K", key}, options...)...)
	}
	derive := func(data []byte) string {
		return hex.EncodeToString(enc(a.Cipher+"-ecb", a.Master, data, "-nopad"))
	}
	dataKey := unhex(t, a.DataKey)
	var payload []byte
	name, key := "aes-256", a.Master
	switch a.Scheme {
	case ciphertext.DerivedKeyWrap:
		key = derive(binding)
	case ciphertext.DerivedGCM:
		key = derive(openssl(t, append([]byte("keyconvoy.io/derived-gcm/1"), binding...), "dgst", "-sha256", "-binary"))
	case ciphertext.KDFKeyWrap:
		key = opensslKDF(t, a, "keyconvoy.io/kdf-key-wrap/1", binding)
	case ciphertext.KDFGCM:
		key = opensslKDF(t, a, "keyconvoy.io/kdf-gcm/1", binding)
	default:
		name = a.Cipher
	}
	if a.Scheme.WrapsKeys() {
		payload = enc("id-aes256-wrap", key, dataKey, "-iv", "A6A6A6A6A6A6A6A6")
	} else {
		masked := enc(name+"-ctr", key, dataKey, "-iv", a.IV+"00000002")
		h := enc(name+"-ecb", key, make([]byte, 16), "-nopad")
		tag := ghash(h, binding, masked)
		for i, b := range enc(name+"-ecb", key, unhex(t, a.IV+"00000001"), "-nopad") {
			tag[i] ^= b
		}
		payload = slices.Concat(unhex(t, a.IV), masked, tag)
	}
	raw := slices.Concat([]byte(a.KeyVersionID.String()), []byte{byte(a.Scheme)}, payload)
	return base64.StdEncoding.EncodeToString(raw)
}

// opensslKDF returns the key of a scheme with a KDF in hexadecimal digits.
func opensslKDF(t *testing.T, a knownAnswer, label string, binding []byte) string {
	t.Helper()
	return hex.EncodeToString(openssl(t, nil, "kdf", "-keylen", "32", "-binary", "-kdfopt", "mac:CMAC", "-kdfopt", "cipher:"+a.Cipher+"-cbc",
		"-kdfopt", "hexkey:"+a.Master, "-kdfopt", "hexsalt:"+hex.EncodeToString([]byte(label)), "-kdfopt", "hexinfo:"+hex.EncodeToString(binding), "KBKDF"))
}

// ghash is GHASH over additional data and ciphertext (NIST SP 800-38D, sections 6.3, 6.4 and 7.1), a
// bit at a time.
func ghash(h, additional, masked []byte) []byte {
	var in []byte
	for _, part := range [][]byte{additional, masked} {
		in = append(in, part...)
		in = append(in, make([]byte, -len(part)&15)...)
	}
	in = binary.BigEndian.AppendUint64(in, uint64(8*len(additional)))
	in = binary.BigEndian.AppendUint64(in, uint64(8*len(masked)))
	y := make([]byte, 16)
	for ; len(in) > 0; in = in[16:] {
		for i := range y {
			y[i] ^= in[i]
		}
		y = multiply(y, h)
	}
	return y
}

func multiply(x, y []byte) []byte {
	z, v := make([]byte, 16), bytes.Clone(y)
	for i := range 128 {
		if x[i/8]>>(7-i%8)&1 == 1 {
			for j := range z {
				z[j] ^= v[j]
			}
		}
		last := v[15] & 1
		for j := 15; j > 0; j-- {
			v[j] = v[j]>>1 | v[j-1]<<7
		}
		v[0] = v[0]>>1 ^ last*0xe1
	}
	return z
}
