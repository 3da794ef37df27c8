package wrapping_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"testing"

	"github.com/emmansun/gmsm/sm2"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// The example of GB/T 32918.5-2017, annex C (GM/T 0003.5-2012, annex C): encryption on the recommended
// curve.
const (
	standardKey       = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8"
	standardPlaintext = "encryption standard"
	standardK         = "59276e27d506861a16680f3ad9c02dccef3cc1fa3cdbe4ce6d54b80deac1bc21"
	standardC1        = "0404ebfc718e8d1798620432268e77feb6415e2ede0e073c0f4f640ecd2e149a73" +
		"e858f9d81e5430a57b36daab8f950a3c64e6ee6a63094d99283aff767e124df0"
	standardC3 = "59983c18f809e262923c53aec295d30383b54e39d609d160afcb1908d0bd8766"
	standardC2 = "21886ca989ca9c7d58087307ca93092d651efa"
)

func standardPrivate(t testing.TB) *wrapping.PrivateKey {
	t.Helper()
	key, err := wrapping.ParsePrivateKey(sm2Private(sec1(unhex(t, standardKey))))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// standardCiphertexts is the example's ciphertext in each format. The DER is put together by
// encoding/asn1 from GM/T 0009-2012, section 7.2.
func standardCiphertexts(t testing.TB) map[wrapping.SM2Format][]byte {
	t.Helper()
	c1 := unhex(t, standardC1)
	der, err := asn1.Marshal(derCiphertext{
		new(big.Int).SetBytes(c1[1:33]), new(big.Int).SetBytes(c1[33:]), unhex(t, standardC3), unhex(t, standardC2),
	})
	if err != nil {
		t.Fatal(err)
	}
	return map[wrapping.SM2Format][]byte{
		wrapping.C1C3C2: unhex(t, standardC1+standardC3+standardC2),
		wrapping.C1C2C3: unhex(t, standardC1+standardC2+standardC3),
		wrapping.ASN1:   der,
	}
}

type derCiphertext struct {
	X, Y   *big.Int
	C3, C2 []byte
}

func TestSM2_reproducesTheExampleOfTheStandard(t *testing.T) {
	t.Parallel()
	key := standardPrivate(t)
	for format, want := range standardCiphertexts(t) {
		got, err := wrapping.Wrap(bytes.NewReader(unhex(t, standardK)), key.Public(), wrapping.SM2PKE, format, []byte(standardPlaintext))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: Wrap = %x, %v; want %x", format, got, err, want)
		}
		plaintext, err := key.Unwrap(wrapping.SM2PKE, format, want)
		if err != nil || string([]byte(plaintext)) != standardPlaintext {
			t.Errorf("%s: Unwrap: %v", format, err)
		}
	}
}

func TestSM2_detectsRawAndDERButNotTheOlderOrder(t *testing.T) {
	t.Parallel()
	key, ciphertexts := standardPrivate(t), standardCiphertexts(t)
	for format, want := range map[wrapping.SM2Format]error{
		wrapping.C1C3C2: nil, wrapping.ASN1: nil, wrapping.C1C2C3: wrapping.ErrUnwrap,
	} {
		if _, err := key.Unwrap(wrapping.SM2PKE, "", ciphertexts[format]); !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", format, err, want)
		}
	}
	for said := range ciphertexts {
		for is, ciphertext := range ciphertexts {
			if _, err := key.Unwrap(wrapping.SM2PKE, said, ciphertext); (err == nil) != (said == is) {
				t.Errorf("%s said to be %s: %v", is, said, err)
			}
		}
	}
	if _, err := key.Unwrap(wrapping.SM2PKE, "DER", ciphertexts[wrapping.ASN1]); !errors.Is(err, wrapping.ErrSM2Format) {
		t.Errorf("unknown format: %v", err)
	}
}

func TestSM2_refusesDERThatIsNotStrictOrNotACiphertext(t *testing.T) {
	t.Parallel()
	key, good := standardPrivate(t), standardCiphertexts(t)[wrapping.ASN1]
	c1, c3, c2 := unhex(t, standardC1), unhex(t, standardC3), unhex(t, standardC2)
	x, y := new(big.Int).SetBytes(c1[1:33]), new(big.Int).SetBytes(c1[33:])
	der := func(v any) []byte {
		out, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	p := sm2.P256().Params().P
	ciphertexts := map[string][]byte{
		"a byte after it":            append(bytes.Clone(good), 0),
		"a byte inside, after it":    append([]byte{0x30, good[1] + 1}, append(bytes.Clone(good[2:]), 0)...),
		"a length in two bytes":      append([]byte{0x30, 0x81, good[1]}, good[2:]...),
		"an indefinite length":       append(append([]byte{0x30, 0x80}, good[2:]...), 0, 0),
		"an integer with a zero":     append([]byte{0x30, good[1] + 1, 0x02, 0x21, 0x00}, good[4:]...),
		"a set":                      append([]byte{0x31}, good[1:]...),
		"x negative":                 der(derCiphertext{new(big.Int).Neg(x), y, c3, c2}),
		"y negative":                 der(derCiphertext{x, new(big.Int).Neg(y), c3, c2}),
		"y of the high bit unpadded": der(derCiphertext{x, new(big.Int).Sub(y, new(big.Int).Lsh(big.NewInt(1), 256)), c3, c2}),
		"x of 33 bytes":              der(derCiphertext{new(big.Int).Lsh(x, 8), y, c3, c2}),
		"x not reduced":              der(derCiphertext{new(big.Int).Add(x, p), y, c3, c2}),
		"the other point off":        der(derCiphertext{y, x, c3, c2}),
		"zero":                       der(derCiphertext{new(big.Int), new(big.Int), c3, c2}),
		"C3 too short":               der(derCiphertext{x, y, c3[:31], c2}),
		"C3 too long":                der(derCiphertext{x, y, append(bytes.Clone(c3), 0), c2}),
		"C3 missing":                 der(struct{ X, Y *big.Int }{x, y}),
		"C2 empty":                   der(derCiphertext{x, y, c3, nil}),
		"C2 before C3":               der(derCiphertext{x, y, c2, c3}),
	}
	for n := range good {
		ciphertexts["cut after byte "+string(rune('0'+n/100))+string(rune('0'+n/10%10))+string(rune('0'+n%10))] = good[:n]
	}
	for sentence, ciphertext := range ciphertexts {
		for _, format := range []wrapping.SM2Format{"", wrapping.ASN1} {
			if got, err := key.Unwrap(wrapping.SM2PKE, format, ciphertext); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, format %q: %v", sentence, format, err)
			}
			if got, err := wrapping.ConvertSM2(ciphertext, wrapping.ASN1, wrapping.C1C3C2); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s converts to %x, %v", sentence, got, err)
			}
		}
	}
}

func TestSM2_refusesEveryChangedByteInEveryFormat(t *testing.T) {
	t.Parallel()
	key := standardPrivate(t)
	for format, good := range standardCiphertexts(t) {
		for at := range good {
			bad := bytes.Clone(good)
			bad[at] ^= 0x80
			if got, err := key.Unwrap(wrapping.SM2PKE, format, bad); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, byte %d changed: %v", format, at, err)
			}
		}
	}
}

func TestSM2_refusesPointsInOtherForms(t *testing.T) {
	t.Parallel()
	key, good := standardPrivate(t), standardCiphertexts(t)[wrapping.C1C3C2]
	compressed := append([]byte{0x02}, good[1:33]...) // y is even
	hybrid := append([]byte{0x06}, good[1:]...)
	for sentence, ciphertext := range map[string][]byte{
		"compressed":  append(compressed, good[65:]...),
		"hybrid":      hybrid,
		"at infinity": append([]byte{0}, good[65:]...),
		"no key":      good[:97],
		"a bare hash": good[:96],
	} {
		for _, format := range []wrapping.SM2Format{"", wrapping.C1C3C2, wrapping.C1C2C3} {
			if got, err := key.Unwrap(wrapping.SM2PKE, format, ciphertext); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, format %q: %v", sentence, format, err)
			}
			if got, err := wrapping.ConvertSM2(ciphertext, format, wrapping.ASN1); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, format %q, converts to %x, %v", sentence, format, got, err)
			}
		}
	}
}

// ephemeral finds the smallest scalar whose point fulfils the condition: always the same one.
func ephemeral(t *testing.T, condition func(x, y *big.Int) bool) []byte {
	t.Helper()
	for i := uint64(1); i < 10_000; i++ {
		k := make([]byte, 32)
		binary.BigEndian.PutUint64(k[24:], i)
		x, y := sm2.P256().ScalarBaseMult(k)
		if condition(x, y) {
			return k
		}
	}
	t.Fatal("no such point")
	return nil
}

func TestSM2_keepsShortCoordinates(t *testing.T) {
	t.Parallel()
	key := sm2Key()
	sh := newShell(t)
	sh.write("key.der", pkcs8(t, key))
	for sentence, condition := range map[string]func(x, y *big.Int) bool{
		"x begins with a zero byte":        func(x, _ *big.Int) bool { return x.BitLen() <= 248 },
		"y begins with a zero byte":        func(_, y *big.Int) bool { return y.BitLen() <= 248 },
		"x: a zero byte, then a high bit":  func(x, _ *big.Int) bool { return x.BitLen() == 248 },
		"y: a zero byte, then a high bit":  func(_, y *big.Int) bool { return y.BitLen() == 248 },
		"both begin with a high bit":       func(x, y *big.Int) bool { return x.BitLen() == 256 && y.BitLen() == 256 },
		"neither has anything out of line": func(x, y *big.Int) bool { return x.BitLen() == 255 && y.BitLen() == 255 },
	} {
		k := ephemeral(t, condition)
		raw, err := wrapping.Wrap(bytes.NewReader(k), key.Public(), wrapping.SM2PKE, "", []byte("short coordinates"))
		if err != nil {
			t.Fatal(err)
		}
		if !condition(new(big.Int).SetBytes(raw[1:33]), new(big.Int).SetBytes(raw[33:65])) {
			t.Fatalf("%s: not what was asked: %x", sentence, raw)
		}
		for _, format := range wrapping.SM2Formats() {
			converted, err := wrapping.ConvertSM2(raw, wrapping.C1C3C2, format)
			if err != nil {
				t.Fatal(err)
			}
			back, err := wrapping.ConvertSM2(converted, format, "")
			if err != nil || !bytes.Equal(back, raw) {
				t.Errorf("%s: by way of %s it is %x, %v; was %x", sentence, format, back, err, raw)
			}
			if got, err := key.Unwrap(wrapping.SM2PKE, format, converted); err != nil || string([]byte(got)) != "short coordinates" {
				t.Errorf("%s, %s: %v", sentence, format, err)
			}
		}
		der, err := wrapping.ConvertSM2(raw, wrapping.C1C3C2, wrapping.ASN1)
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := sm2.PlainCiphertext2ASN1(raw, sm2.C1C3C2); err != nil || !bytes.Equal(theirs, der) {
			t.Errorf("%s: gmsm has %x, %v; we %x", sentence, theirs, err, der)
		}
		sh.write("wrapped.der", der)
		if got := sh.openssl("pkeyutl", "-decrypt", "-keyform", "DER", "-inkey", "key.der", "-in", "wrapped.der"); string(got) != "short coordinates" {
			t.Errorf("%s: openssl opens it to %q", sentence, got)
		}
	}
}

// A mask of zeros would leave the key in the clear; the standard draws again (GB/T 32918.4, section
// 6.1, step A5). One key of one byte in 256 meets it.
func TestSM2_drawsAgainWhenTheMaskIsZero(t *testing.T) {
	t.Parallel()
	key := standardPrivate(t)
	plaintext := []byte{0x42}
	good := unhex(t, standardK)
	var found int
	for i := uint64(1); i < 2000 && found < 3; i++ {
		bad := make([]byte, 32)
		binary.BigEndian.PutUint64(bad[24:], i)
		if _, err := wrapping.Wrap(bytes.NewReader(bad), key.Public(), wrapping.SM2PKE, "", plaintext); err == nil {
			continue
		}
		found++
		random := io.MultiReader(bytes.NewReader(bad), bytes.NewReader(good))
		wrapped, err := wrapping.Wrap(random, key.Public(), wrapping.SM2PKE, "", plaintext)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := key.Unwrap(wrapping.SM2PKE, "", wrapped); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("scalar %d: %v", i, err)
		}
	}
	if found == 0 {
		t.Error("no scalar has a mask of zero; the test tests nothing")
	}
}
