package ciphertext_test

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/c2sp/wycheproof"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

var testContext = encryptionContext{"app": "payments"}

// open is what a reader of blobs does: the blob names the key version, the rest is known.
func open(raw []byte, master cipher.Block, context encryptionContext) ([]byte, error) {
	blob, err := ciphertext.FromBytes(raw)
	if err != nil {
		return nil, err
	}
	return ciphertext.Open(blob, master, ciphertext.Bind(blob.KeyVersionID, context))
}

func sealed(t testing.TB, s sealing, dataKey []byte) []byte {
	t.Helper()
	blob, err := ciphertext.Seal(rand.Reader, s.scheme, versionA, s.master, ciphertext.Bind(versionA, testContext), dataKey)
	if err != nil {
		t.Fatal(err)
	}
	return blob.Bytes()
}

func TestOpen_refusesEverythingElseInOneWay(t *testing.T) {
	t.Parallel()
	for name, s := range sealings(t) {
		good := sealed(t, s, bytes.Repeat([]byte{0x42}, s.length))
		refused := func(sentence string, raw []byte, master cipher.Block, context encryptionContext) {
			t.Helper()
			got, err := open(raw, master, context)
			if got != nil || err != ciphertext.ErrOpen && !errors.Is(err, ciphertext.ErrMalformed) { //nolint:errorlint // nothing may be wrapped around it
				t.Errorf("%s, %s: %x, %v", name, sentence, got, err)
			}
		}
		refused("another master key", good, s.other, testContext)
		refused("no context", good, s.master, nil)
		refused("another context", good, s.master, encryptionContext{"app": "payment"})
		refused("a context with more in it", good, s.master, encryptionContext{"app": "payments", "": ""})
		refused("another key version", append([]byte(versionB.String()), good[36:]...), s.master, testContext)
		for at := range good {
			for _, bit := range []byte{0x01, 0x80} {
				bad := bytes.Clone(good)
				bad[at] ^= bit
				refused("a bit changed", bad, s.master, testContext)
			}
			refused("cut short", good[:at], s.master, testContext)
		}
		for n := range 33 {
			refused("bytes after it", append(bytes.Clone(good), make([]byte, n+1)...), s.master, testContext)
		}
		for scheme := range 256 {
			if bad := bytes.Clone(good); byte(scheme) != good[36] {
				bad[36] = byte(scheme)
				refused("another scheme", bad, s.master, testContext)
			}
		}
		if got, err := open(good, s.master, testContext); err != nil || len(got) != s.length {
			t.Errorf("%s does not open at all: %v", name, err)
		}
	}
}

func TestSeal_refuses(t *testing.T) {
	t.Parallel()
	master := aesBlock(t, make([]byte, 32))
	for sentence, tc := range map[string]struct {
		scheme ciphertext.Scheme
		length int
	}{
		"no bytes for RFC 3394":           {ciphertext.DerivedKeyWrap, 0},
		"one block for RFC 3394":          {ciphertext.DerivedKeyWrap, 8},
		"a broken block for RFC 3394":     {ciphertext.DerivedKeyWrap, 17},
		"no bytes for GCM, derived":       {ciphertext.DerivedGCM, 0},
		"no bytes for GCM":                {ciphertext.DirectGCM, 0},
		"a scheme that does not exist, 0": {0, 32},
		"a scheme that does not exist, 6": {6, 32},
		"no bytes for RFC 3394, KDF":      {ciphertext.KDFKeyWrap, 0},
		"no bytes for GCM, KDF":           {ciphertext.KDFGCM, 0},
	} {
		blob, err := ciphertext.Seal(rand.Reader, tc.scheme, versionA, master, ciphertext.Binding{}, make([]byte, tc.length))
		if err == nil || blob.Payload != nil {
			t.Errorf("%s: sealed", sentence)
		}
	}
	broken := iotest.ErrReader(errors.New("no randomness"))
	for _, scheme := range []ciphertext.Scheme{ciphertext.DerivedGCM, ciphertext.DirectGCM, ciphertext.KDFGCM} {
		if _, err := ciphertext.Seal(broken, scheme, versionA, master, ciphertext.Binding{}, make([]byte, 32)); err == nil {
			t.Errorf("%s: sealed without an IV", scheme)
		}
		if _, err := ciphertext.Seal(strings.NewReader("11 bytes..."), scheme, versionA, master, ciphertext.Binding{}, make([]byte, 32)); err == nil {
			t.Errorf("%s: sealed with a short IV", scheme)
		}
	}
}

func TestOpen_isTheInverseOfSealForEveryLength(t *testing.T) {
	t.Parallel()
	master := aesBlock(t, bytes.Repeat([]byte{7}, 32))
	binding := ciphertext.Bind(versionA, testContext)
	for length := 1; length <= 1024; length++ {
		scheme := ciphertext.SchemeFor(length)
		if want := length >= 16 && length%8 == 0; (scheme == ciphertext.DerivedKeyWrap) != want {
			t.Errorf("%d bytes: %s", length, scheme)
		}
		dataKey := bytes.Repeat([]byte{byte(length)}, length)
		blob, err := ciphertext.Seal(rand.Reader, scheme, versionA, master, binding, dataKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ciphertext.Open(blob, master, binding); err != nil || !bytes.Equal(got, dataKey) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}

func TestSeal_drawsANewIVEachTime(t *testing.T) {
	t.Parallel()
	for name, s := range sealings(t) {
		dataKey := make([]byte, s.length)
		same := bytes.Equal(sealed(t, s, dataKey), sealed(t, s, dataKey))
		if same != s.scheme.WrapsKeys() { // RFC 3394 is deterministic
			t.Errorf("%s: sealed twice to the same: %t", name, same)
		}
	}
}

// The cipher under DirectGCM for SM4 keys: the vector of RFC 8998, appendix A.1, and the others of
// Wycheproof.
func TestSM4GCM_passesWycheproof(t *testing.T) {
	t.Parallel()
	text, err := fs.ReadFile(wycheproof.TestVectors, "sm4_gcm_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TestGroups []struct {
			IVSize, TagSize int
			Tests           []struct {
				TcID                               int
				Key, IV, AAD, Msg, Ct, Tag, Result string
			}
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	ran, rfc8998 := 0, false
	for _, group := range file.TestGroups {
		if group.IVSize != 96 || group.TagSize != 128 {
			continue // Keyconvoy has these only
		}
		for _, tc := range group.Tests {
			aead, err := cipher.NewGCM(sm4Block(t, unhex(t, tc.Key)))
			if err != nil {
				t.Fatal(err)
			}
			iv, aad, msg, ct := unhex(t, tc.IV), unhex(t, tc.AAD), unhex(t, tc.Msg), unhex(t, tc.Ct+tc.Tag)
			got, err := aead.Open(nil, iv, ct, aad)
			if valid := tc.Result == "valid"; valid != (err == nil) || valid && !bytes.Equal(got, msg) {
				t.Errorf("vector %d opens to %x, %v", tc.TcID, got, err)
			}
			if tc.Result == "valid" && !bytes.Equal(aead.Seal(nil, iv, msg, aad), ct) {
				t.Errorf("vector %d does not seal to its ciphertext", tc.TcID)
			}
			ran++
			rfc8998 = rfc8998 || tc.Tag == "83de3541e4c2b58177e065a9bf7b62ec"
		}
	}
	if ran < 60 || !rfc8998 {
		t.Errorf("%d vectors ran; that of RFC 8998 among them: %t", ran, rfc8998)
	}
}

// A data key has one byte at the least; an empty one, though authentic, is of no use.
func TestOpen_refusesAnAuthenticBlobOfNothing(t *testing.T) {
	t.Parallel()
	master := aesBlock(t, make([]byte, 32))
	aead, err := cipher.NewGCM(master)
	if err != nil {
		t.Fatal(err)
	}
	binding := ciphertext.Bind(versionA, nil)
	iv := make([]byte, 12)
	blob := ciphertext.Blob{KeyVersionID: versionA, Scheme: ciphertext.DirectGCM, Payload: aead.Seal(iv, iv, nil, binding[:])}
	if got, err := ciphertext.Open(blob, master, binding); got != nil || !errors.Is(err, ciphertext.ErrOpen) {
		t.Errorf("opens to %x, %v", got, err)
	}
}

func BenchmarkSeal(b *testing.B) {
	binding := ciphertext.Bind(versionA, testContext)
	for name, s := range sealings(b) {
		b.Run(name, func(b *testing.B) {
			dataKey := make([]byte, s.length)
			for b.Loop() {
				if _, err := ciphertext.Seal(rand.Reader, s.scheme, versionA, s.master, binding, dataKey); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for name, s := range sealings(b) {
		b.Run(name, func(b *testing.B) {
			raw := sealed(b, s, make([]byte, s.length))
			for b.Loop() {
				if _, err := open(raw, s.master, testContext); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
