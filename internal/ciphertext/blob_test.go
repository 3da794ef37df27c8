package ciphertext_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

func TestParse_refusesWhatIsNoBlob(t *testing.T) {
	t.Parallel()
	id := versionA.String()
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for sentence, text := range map[string]string{
		"nothing":                        "",
		"white space":                    " \n",
		"no Base64":                      "not Base64!",
		"Base64 for URLs":                "_-_-",
		"a key version alone":            b64(id),
		"no key version":                 b64(strings.Repeat("x", 60)),
		"a key version in upper case":    b64(strings.ToUpper(id) + "\x01payload"),
		"a key version in braces":        b64("{" + id[:34] + "}\x01payload"),
		"a key version as URN":           b64("urn:uuid:" + id + "\x01payload"),
		"a key version without hyphens":  b64(strings.ReplaceAll(id, "-", "") + "\x01payload and more"),
		"a key version with a character": b64(id[:35] + "g\x01payload"),
		"a binary key version":           b64(string(versionA[:]) + strings.Repeat("\x01", 40)),
		"a page of text":                 strings.Repeat("QUJD", ciphertext.MaxLen),
	} {
		if blob, err := ciphertext.Parse(text); !errors.Is(err, ciphertext.ErrMalformed) || blob.Payload != nil {
			t.Errorf("%s: %v, %v", sentence, blob, err)
		}
	}
}

func TestParse_isTheInverseOfString(t *testing.T) {
	t.Parallel()
	for _, payload := range [][]byte{{}, {0}, bytes.Repeat([]byte{0xff}, 1024+28)} {
		blob := ciphertext.Blob{KeyVersionID: versionA, Scheme: ciphertext.DerivedGCM, Payload: payload}
		text := blob.String()
		if len(text) > ciphertext.MaxLen {
			t.Errorf("the longest data key makes a blob of %d characters, more than MaxLen", len(text))
		}
		for _, pasted := range []string{text, " " + text + "\r\n", strings.Join(strings.SplitAfter(text, "A"), "\n")} {
			got, err := ciphertext.Parse(pasted)
			if err != nil || got.String() != text || !bytes.Equal(got.Payload, payload) {
				t.Errorf("%q reads as %v, %v", pasted, got, err)
			}
		}
	}
}

func TestDataKeyLen_showsWithoutOpening(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		scheme        ciphertext.Scheme
		payload, want int
	}{
		"wrapped":                        {ciphertext.DerivedKeyWrap, 40, 32},
		"wrapped, the shortest":          {ciphertext.DerivedKeyWrap, 24, 16},
		"wrapped, too short":             {ciphertext.DerivedKeyWrap, 16, 0},
		"wrapped, no whole block":        {ciphertext.DerivedKeyWrap, 41, 0},
		"under a derived key":            {ciphertext.DerivedGCM, 29, 1},
		"under the master key":           {ciphertext.DirectGCM, 60, 32},
		"a KDF and RFC 3394":             {ciphertext.KDFKeyWrap, 40, 32},
		"a KDF and GCM":                  {ciphertext.KDFGCM, 29, 1},
		"IV and tag, and nothing within": {ciphertext.DerivedGCM, 28, 0},
		"nothing":                        {ciphertext.DirectGCM, 0, 0},
		"in an unknown way":              {9, 40, 0},
	} {
		blob := ciphertext.Blob{KeyVersionID: versionA, Scheme: tc.scheme, Payload: make([]byte, tc.payload)}
		if got := blob.DataKeyLen(); got != tc.want {
			t.Errorf("%s: %d bytes, want %d", sentence, got, tc.want)
		}
	}
	for _, answer := range knownAnswers(t) {
		blob, err := ciphertext.Parse(answer.Blob)
		if err != nil {
			t.Fatal(err)
		}
		if want := len(unhex(t, answer.DataKey)); blob.DataKeyLen() != want {
			t.Errorf("%s: %d bytes, want %d", answer.Blob, blob.DataKeyLen(), want)
		}
	}
}

func TestScheme_hasAName(t *testing.T) {
	t.Parallel()
	for scheme, want := range map[ciphertext.Scheme]string{
		0: "SCHEME_0", 1: "DERIVED_KEY_WRAP", 2: "DERIVED_GCM", 3: "DIRECT_GCM", 4: "KDF_KEY_WRAP", 5: "KDF_GCM", 255: "SCHEME_255",
	} {
		if scheme.String() != want {
			t.Errorf("%d is %s; want %s", scheme, scheme, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, answer := range knownAnswers(f) {
		f.Add(answer.Blob)
		f.Add(answer.Blob[:len(answer.Blob)/2] + "\n" + answer.Blob[len(answer.Blob)/2:])
	}
	f.Add(base64.StdEncoding.EncodeToString([]byte(uuid.Nil.String() + "\x00")))
	f.Fuzz(func(t *testing.T, text string) {
		blob, err := ciphertext.Parse(text)
		if err != nil {
			return
		}
		again, err := ciphertext.Parse(blob.String())
		if err != nil || again.String() != blob.String() {
			t.Fatalf("%q reads back as %v, %v", blob, again, err)
		}
	})
}

func FuzzFromBytes(f *testing.F) {
	for _, answer := range knownAnswers(f) {
		raw, err := base64.StdEncoding.DecodeString(answer.Blob)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	master := aesBlock(f, make([]byte, 32))
	f.Fuzz(func(t *testing.T, raw []byte) {
		blob, err := ciphertext.FromBytes(raw)
		if err != nil {
			if !errors.Is(err, ciphertext.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(blob.Bytes(), raw) {
			t.Fatalf("%x becomes %x", raw, blob.Bytes())
		}
		if _, err := ciphertext.Open(blob, master, ciphertext.Bind(blob.KeyVersionID, nil)); !errors.Is(err, ciphertext.ErrOpen) {
			t.Fatalf("opens under a key it was not made with: %v", err)
		}
	})
}

// Two contexts cut from the same bytes have one binding only if they are one map.
func FuzzBind(f *testing.F) {
	f.Add("a", "b", "c", "d")
	f.Add("", "", "", "\x00\x00\x00\x00")
	f.Add("ab", "c", "a", "bc")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		contexts := []encryptionContext{
			nil, {k1: v1}, {k2: v2}, {k1: v2}, {k2: v1}, {k1: v1, k2: v2}, {k1: v2, k2: v1}, {k1 + v1: v2}, {k1: v1 + k2 + v2},
		}
		for i, a := range contexts {
			for _, b := range contexts[:i] {
				same := ciphertext.Bind(versionA, a) == ciphertext.Bind(versionA, b)
				if same != equal(a, b) {
					t.Fatalf("%q and %q: one binding is %t", a, b, same)
				}
			}
		}
	})
}

func equal(a, b encryptionContext) bool {
	for key, value := range a {
		if other, found := b[key]; !found || other != value {
			return false
		}
	}
	return len(a) == len(b)
}
