package wrapping_test

import (
	"bytes"
	"crypto"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// What is taken as a public key has one canonical form, which reads back as the same key.
func FuzzParsePublicKey(f *testing.F) {
	for _, key := range []*wrapping.PublicKey{rsaKey().Public(), sm2Key().Public()} {
		f.Add(key.SPKI())
		f.Add(toB64(key.SPKI()))
		f.Add(toPEM("PUBLIC KEY", key.SPKI()))
		f.Add(toPEM("CERTIFICATE", certificateAround(key.SPKI())))
	}
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"))
	f.Add([]byte{0x30, 0x80, 0x30, 0x80})
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n MIIB\n-----END CERTIFICATE-----\n" + string(toPEM("PUBLIC KEY", sm2Key().Public().SPKI()))))
	f.Add([]byte("04" + strings.Repeat("7f", 64)))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		key, err := wrapping.ParsePublicKey(data)
		if !bytes.Equal(data, before) {
			t.Fatal("the input was changed")
		}
		for _, spoilt := range besideDamaged(data) {
			if other, err := wrapping.ParsePublicKey(spoilt); err == nil {
				t.Fatalf("%q gives %s although one of its blocks cannot be read", spoilt, other.Fingerprint())
			}
		}
		if err != nil {
			if key != nil || len(err.Error()) > 250 {
				t.Fatalf("key %v with error %v", key, err)
			}
			return
		}
		again, err := wrapping.ParsePublicKey(key.SPKI())
		if err != nil || !again.Equal(key) || again.Fingerprint() != key.Fingerprint() || !key.Spec().Valid() {
			t.Fatalf("%x reads back as %v, %v", key.SPKI(), again, err)
		}
		if made := madeAnew(t, key); !made.Equal(key) {
			t.Fatalf("%x is kept for a key whose form is %x", key.SPKI(), made.SPKI())
		}
	})
}

// madeAnew is the key of the same numbers, whose SubjectPublicKeyInfo is not that which was read.
func madeAnew(t *testing.T, key *wrapping.PublicKey) *wrapping.PublicKey {
	t.Helper()
	var made *wrapping.PublicKey
	var err error
	if key.Spec() == wrapping.ECSM2 {
		made, err = wrapping.FromSM2(key.SM2())
	} else {
		made, err = wrapping.FromRSA(key.RSA())
	}
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// besideDamaged returns data with a block before or after it that cannot be read.
func besideDamaged(data []byte) [][]byte {
	return [][]byte{
		append([]byte("-----BEGIN KEY-----\nAAAA\n"), data...),
		append([]byte("-----BEGIN CERTIFICATE----\n"), data...),
		append(bytes.Clone(data), "\n-----BEGIN PUBLIC KEY-----\nAAAA"...),
		append(bytes.Clone(data), "\n-----END PUBLIC KEY-----"...),
		append(bytes.Clone(data), "\n-----BEGIN PRIVATE KEY-----\n\n-----END PUBLIC KEY-----\n"...),
	}
}

// certificateAround is the skeleton of a certificate: what is read of one, and nothing else.
func certificateAround(spki []byte) []byte {
	sequence := func(parts ...[]byte) []byte {
		body := bytes.Join(parts, nil)
		return append([]byte{0x30, 0x82, byte(len(body) >> 8), byte(len(body))}, body...)
	}
	empty := []byte{0x30, 0x00}
	tbs := sequence([]byte{0xa0, 0x03, 0x02, 0x01, 0x02}, []byte{0x02, 0x01, 0x01}, empty, empty, empty, empty, spki)
	return sequence(tbs, empty, []byte{0x03, 0x01, 0x00})
}

// What is taken as a private key reads back from its PKCS#8 as the same key.
func FuzzParsePrivateKey(f *testing.F) {
	for _, key := range []*wrapping.PrivateKey{rsaKey(), sm2Key()} {
		der := pkcs8(f, key)
		f.Add(der)
		f.Add(toB64(der))
		f.Add(toPEM("PRIVATE KEY", der))
	}
	f.Add(sm2Private(sec1(make([]byte, 32))))
	f.Add(sec1(make([]byte, 32), 0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x81, 0x1c, 0xcf, 0x55, 0x01, 0x82, 0x2d))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		key, err := wrapping.ParsePrivateKey(data)
		if !bytes.Equal(data, before) {
			t.Fatal("the input was changed")
		}
		for _, spoilt := range besideDamaged(data) {
			if _, err := wrapping.ParsePrivateKey(spoilt); err == nil {
				t.Fatal("a key is read although one of the blocks beside it cannot be read")
			}
		}
		if err != nil {
			if key != nil || len(err.Error()) > 250 {
				t.Fatalf("key %v with error %v", key, err)
			}
			return
		}
		again, err := wrapping.ParsePrivateKey(pkcs8(t, key))
		if err != nil || !again.Public().Equal(key.Public()) {
			t.Fatalf("reads back as %v, %v", again, err)
		}
	})
}

// A ciphertext that is taken in one format is the same again after a way through every other.
func FuzzConvertSM2(f *testing.F) {
	for _, ciphertext := range standardCiphertexts(f) {
		f.Add(ciphertext)
	}
	f.Add([]byte{0x30, 0x06, 0x02, 0x01, 0xff, 0x02, 0x01, 0x00})
	key := standardPrivate(f)
	f.Fuzz(func(t *testing.T, ciphertext []byte) {
		for _, from := range append(wrapping.SM2Formats(), "") {
			_, _ = key.Unwrap(wrapping.SM2PKE, from, ciphertext)
			raw, err := wrapping.ConvertSM2(ciphertext, from, wrapping.C1C3C2)
			if err != nil {
				continue
			}
			for _, to := range wrapping.SM2Formats() {
				there, err := wrapping.ConvertSM2(raw, wrapping.C1C3C2, to)
				if err != nil {
					t.Fatal(err)
				}
				if to == from && !bytes.Equal(there, ciphertext) {
					t.Fatalf("%s: %x becomes %x", from, ciphertext, there)
				}
				if back, err := wrapping.ConvertSM2(there, to, wrapping.C1C3C2); err != nil || !bytes.Equal(back, raw) {
					t.Fatalf("by way of %s: %x becomes %x, %v", to, raw, back, err)
				}
			}
		}
	})
}

// The decoder agrees with one written from the standard's words.
func FuzzRemoveOAEP(f *testing.F) {
	for _, h := range hashes() {
		seed := make([]byte, h.Size())
		f.Add(encodeOAEP(h, 0, seed, append(h.New().Sum(nil), 0, 0, 1, 'k')))
		f.Add(encodeOAEP(h, 0, seed, append(h.New().Sum(nil), 0, 2, 1)))
		f.Add(encodeOAEP(h, 0, seed, append(h.New().Sum(nil), 0)))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		for algorithm, h := range hashes() {
			for _, em := range [][]byte{encoded, masked(h, encoded)} {
				want, ok := decodeOAEP(h, em)
				got, err := wrapping.RemoveOAEP(algorithm, em)
				if (err == nil) != ok || !bytes.Equal(got, want) {
					t.Fatalf("%s of %x: %x, %v; want %x, %v", algorithm, em, got, err, want, ok)
				}
			}
		}
	})
}

// masked takes the bytes for a data block under the right hash, so that the fuzzer gets behind the
// mask.
func masked(h crypto.Hash, db []byte) []byte {
	return encodeOAEP(h, 0, make([]byte, h.Size()), append(h.New().Sum(nil), db...))
}
