package wrapping_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// pairings are the algorithms with the key that goes with each.
func pairings() map[wrapping.Algorithm]*wrapping.PrivateKey {
	return map[wrapping.Algorithm]*wrapping.PrivateKey{
		wrapping.RSAESOAEPSHA256: rsaKey(),
		wrapping.RSAESOAEPSHA1:   rsaKey(),
		wrapping.RSAESPKCS1V15:   rsaKey(),
		wrapping.SM2PKE:          sm2Key(),
	}
}

func wrap(t testing.TB, key *wrapping.PublicKey, algorithm wrapping.Algorithm, format wrapping.SM2Format, plaintext []byte) []byte {
	t.Helper()
	wrapped, err := wrapping.Wrap(rand.Reader, key, algorithm, format, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func TestCheckFit(t *testing.T) {
	t.Parallel()
	for _, spec := range wrapping.KeySpecs() {
		for _, algorithm := range wrapping.Algorithms() {
			want := (spec == wrapping.ECSM2) == (algorithm == wrapping.SM2PKE)
			if err := wrapping.CheckFit(spec, algorithm); (err == nil) != want {
				t.Errorf("%s with %s: %v", spec, algorithm, err)
			}
		}
	}
	for sentence, tc := range map[string]struct {
		spec      wrapping.KeySpec
		algorithm wrapping.Algorithm
		says      string
	}{
		"RSA under SM2":        {wrapping.RSA3072, wrapping.SM2PKE, "RSA_3072 requires RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"},
		"SM2 under OAEP":       {wrapping.ECSM2, wrapping.RSAESOAEPSHA1, "EC_SM2 requires SM2PKE"},
		"SM2 under PKCS#1":     {wrapping.ECSM2, wrapping.RSAESPKCS1V15, "EC_SM2 requires SM2PKE"},
		"an unknown type":      {"RSA_1024", wrapping.SM2PKE, "supported: RSA_2048, RSA_3072, RSA_4096, EC_SM2"},
		"no type":              {"", wrapping.SM2PKE, "unknown wrapping key type"},
		"an unknown algorithm": {wrapping.RSA2048, "RSA/ECB", "supported: RSAES_OAEP_SHA_256, RSAES_OAEP_SHA_1, RSAES_PKCS1_V1_5, SM2PKE"},
		"no algorithm":         {wrapping.RSA2048, "", "unknown wrapping algorithm"},
	} {
		err := wrapping.CheckFit(tc.spec, tc.algorithm)
		var fit *wrapping.FitError
		if !errors.As(err, &fit) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want %q", sentence, err, tc.says)
			continue
		}
		if strings.Contains(err.Error(), "1024") || strings.Contains(err.Error(), "ECB") {
			t.Errorf("%s: repeats what it does not know: %v", sentence, err)
		}
	}
}

func TestMaxLen(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		spec      wrapping.KeySpec
		algorithm wrapping.Algorithm
		want      int
	}{
		{wrapping.RSA2048, wrapping.RSAESOAEPSHA256, 190},
		{wrapping.RSA3072, wrapping.RSAESOAEPSHA256, 318},
		{wrapping.RSA4096, wrapping.RSAESOAEPSHA256, 446},
		{wrapping.RSA2048, wrapping.RSAESOAEPSHA1, 214},
		{wrapping.RSA3072, wrapping.RSAESOAEPSHA1, 342},
		{wrapping.RSA4096, wrapping.RSAESOAEPSHA1, 470},
		{wrapping.RSA2048, wrapping.RSAESPKCS1V15, 245},
		{wrapping.ECSM2, wrapping.SM2PKE, math.MaxInt},
		{wrapping.ECSM2, wrapping.RSAESOAEPSHA256, 0},
		{wrapping.RSA2048, wrapping.SM2PKE, 0},
		{"", "", 0},
	} {
		if got := wrapping.MaxLen(tc.spec, tc.algorithm); got != tc.want {
			t.Errorf("MaxLen(%q, %q) = %d; want %d", tc.spec, tc.algorithm, got, tc.want)
		}
	}
}

func TestWrap_refuses(t *testing.T) {
	t.Parallel()
	rsaPublic, sm2Public := rsaKey().Public(), sm2Key().Public()
	key := make([]byte, 32)
	broken := iotest.ErrReader(errors.New("no randomness"))
	for sentence, tc := range map[string]struct {
		random    io.Reader
		key       *wrapping.PublicKey
		algorithm wrapping.Algorithm
		format    wrapping.SM2Format
		plaintext []byte
		want      error // nil: any
	}{
		"no key":                 {rand.Reader, nil, wrapping.RSAESOAEPSHA256, "", key, nil},
		"an algorithm unfit":     {rand.Reader, rsaPublic, wrapping.SM2PKE, "", key, nil},
		"an unknown algorithm":   {rand.Reader, rsaPublic, "RSA", "", key, nil},
		"an unknown format":      {rand.Reader, sm2Public, wrapping.SM2PKE, "c1c3c2", key, wrapping.ErrSM2Format},
		"nothing, OAEP":          {rand.Reader, rsaPublic, wrapping.RSAESOAEPSHA256, "", nil, wrapping.ErrNothing},
		"nothing, SM2":           {rand.Reader, sm2Public, wrapping.SM2PKE, "", []byte{}, wrapping.ErrNothing},
		"too long for SHA-256":   {rand.Reader, rsaPublic, wrapping.RSAESOAEPSHA256, "", make([]byte, 191), wrapping.ErrTooLong},
		"too long for SHA-1":     {rand.Reader, rsaPublic, wrapping.RSAESOAEPSHA1, "", make([]byte, 215), wrapping.ErrTooLong},
		"too long for PKCS#1":    {rand.Reader, rsaPublic, wrapping.RSAESPKCS1V15, "", make([]byte, 246), wrapping.ErrTooLong},
		"broken randomness, RSA": {broken, rsaPublic, wrapping.RSAESOAEPSHA256, "", key, nil},
		"broken randomness, SM2": {broken, sm2Public, wrapping.SM2PKE, "", key, nil},
		"randomness that ends":   {strings.NewReader(""), sm2Public, wrapping.SM2PKE, "", key, io.EOF},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			wrapped, err := wrapping.Wrap(tc.random, tc.key, tc.algorithm, tc.format, tc.plaintext)
			if wrapped != nil || err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("Wrap = %d bytes, %v; want %v", len(wrapped), err, tc.want)
			}
		})
	}
}

func TestUnwrap_opensWhatWrapMade(t *testing.T) {
	t.Parallel()
	for algorithm, key := range pairings() {
		for _, length := range []int{1, 16, 32, min(1024, wrapping.MaxLen(key.Public().Spec(), algorithm))} {
			plaintext := make([]byte, length)
			_, _ = rand.Read(plaintext)
			first := wrap(t, key.Public(), algorithm, "", plaintext)
			second := wrap(t, key.Public(), algorithm, "", plaintext)
			if bytes.Equal(first, second) {
				t.Errorf("%s is not randomised", algorithm)
			}
			if want := 256; algorithm != wrapping.SM2PKE && len(first) != want {
				t.Errorf("%s: %d bytes; want %d", algorithm, len(first), want)
			}
			got, err := key.Unwrap(algorithm, "", first)
			if err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %d bytes: %v", algorithm, length, err)
			}
		}
	}
}

func TestUnwrap_failsInOneWayOnly(t *testing.T) {
	t.Parallel()
	plaintext := []byte("sixteen bytes ok")
	for algorithm, key := range pairings() {
		other := otherRSAKey()
		if algorithm == wrapping.SM2PKE {
			other = otherSM2Key()
		}
		good := wrap(t, key.Public(), algorithm, "", plaintext)
		size := len(good)
		high := bytes.Repeat([]byte{0xff}, size) // above the modulus, or no point
		for sentence, ciphertext := range map[string][]byte{
			"another key":       wrap(t, other.Public(), algorithm, "", plaintext),
			"nothing":           nil,
			"one byte":          {4},
			"one byte, DER":     {0x30},
			"zeros":             make([]byte, size),
			"ones":              high,
			"one byte less":     good[:size-1],
			"the first removed": good[1:],
			"one byte more":     append(bytes.Clone(good), 0),
			"a zero in front":   append([]byte{0}, good...),
		} {
			if algorithm == wrapping.RSAESPKCS1V15 && sentence == "another key" {
				continue // decrypts to rubbish once in some ten thousand times
			}
			got, err := key.Unwrap(algorithm, "", ciphertext)
			if got != nil || err != wrapping.ErrUnwrap { //nolint:errorlint // nothing may be wrapped around it
				t.Errorf("%s, %s: %d bytes, %v", algorithm, sentence, len(got), err)
			}
		}
	}
}

func TestUnwrap_refusesEveryChangedByte(t *testing.T) {
	t.Parallel()
	plaintext := []byte("sixteen bytes ok")
	for algorithm, key := range pairings() {
		step := 16
		switch algorithm {
		case wrapping.RSAESPKCS1V15:
			continue // it cannot promise that
		case wrapping.SM2PKE:
			step = 1
		}
		good := wrap(t, key.Public(), algorithm, "", plaintext)
		for at := 0; at < len(good); at += step {
			bad := bytes.Clone(good)
			bad[at] ^= 0x01
			if got, err := key.Unwrap(algorithm, "", bad); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, byte %d changed: %v", algorithm, at, err)
			}
		}
	}
}

func TestUnwrap_takesTheAlgorithmAtItsWord(t *testing.T) {
	t.Parallel()
	sha1 := wrap(t, rsaKey().Public(), wrapping.RSAESOAEPSHA1, "", []byte("key"))
	if _, err := rsaKey().Unwrap(wrapping.RSAESOAEPSHA256, "", sha1); !errors.Is(err, wrapping.ErrUnwrap) {
		t.Errorf("SHA-1 opened as SHA-256: %v", err)
	}
	var fit *wrapping.FitError
	if _, err := rsaKey().Unwrap(wrapping.SM2PKE, "", sha1); !errors.As(err, &fit) {
		t.Errorf("RSA key, SM2PKE: %v", err)
	}
	if _, err := sm2Key().Unwrap(wrapping.RSAESOAEPSHA1, "", sha1); !errors.As(err, &fit) {
		t.Errorf("SM2 key, OAEP: %v", err)
	}
}

func TestValid_knowsTheListed(t *testing.T) {
	t.Parallel()
	for _, s := range wrapping.KeySpecs() {
		if !s.Valid() {
			t.Errorf("%s", s)
		}
	}
	for _, a := range wrapping.Algorithms() {
		if !a.Valid() {
			t.Errorf("%s", a)
		}
	}
	for _, f := range wrapping.SM2Formats() {
		if !f.Valid() {
			t.Errorf("%s", f)
		}
	}
	if wrapping.KeySpec("").Valid() || wrapping.Algorithm("").Valid() || wrapping.SM2Format("").Valid() {
		t.Error("the empty value is valid")
	}
}

// RFC 8017, section 7.1.2, step 1b: a ciphertext has the length of the modulus, also when it begins
// with a zero.
func TestUnwrap_refusesARSACiphertextWithoutItsLeadingZero(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESPKCS1V15} {
		ciphertext := []byte{1}
		for ciphertext[0] != 0 {
			ciphertext = wrap(t, rsaKey().Public(), algorithm, "", []byte("key"))
		}
		if got, err := rsaKey().Unwrap(algorithm, "", ciphertext[1:]); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
			t.Errorf("%s: %v", algorithm, err)
		}
		if _, err := rsaKey().Unwrap(algorithm, "", ciphertext); err != nil {
			t.Errorf("%s, whole: %v", algorithm, err)
		}
	}
}
