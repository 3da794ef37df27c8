package wrapping_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// hashes of the OAEP algorithms.
func hashes() map[wrapping.Algorithm]crypto.Hash {
	return map[wrapping.Algorithm]crypto.Hash{wrapping.RSAESOAEPSHA256: crypto.SHA256, wrapping.RSAESOAEPSHA1: crypto.SHA1}
}

// mgf1 is RFC 8017, appendix B.2.1, written once more.
func mgf1(h crypto.Hash, seed []byte, length int) []byte {
	var out []byte
	for i := uint32(0); len(out) < length; i++ {
		d := h.New()
		d.Write(seed)
		_ = binary.Write(d, binary.BigEndian, i)
		out = d.Sum(out)
	}
	return out[:length]
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// encodeOAEP masks a data block under a seed (RFC 8017, section 7.1.1, steps 2e to 2i); whatever is
// wrong with the block stays wrong.
func encodeOAEP(h crypto.Hash, first byte, seed, db []byte) []byte {
	maskedDB := xor(db, mgf1(h, seed, len(db)))
	maskedSeed := xor(seed, mgf1(h, maskedDB, len(seed)))
	return append(append([]byte{first}, maskedSeed...), maskedDB...)
}

// decodeOAEP is RFC 8017, section 7.1.2, step 3, in the words of the standard and in variable time.
func decodeOAEP(h crypto.Hash, em []byte) ([]byte, bool) {
	if len(em) < 2*h.Size()+2 {
		return nil, false
	}
	seed := xor(em[1:1+h.Size()], mgf1(h, em[1+h.Size():], h.Size()))
	db := xor(em[1+h.Size():], mgf1(h, seed, len(em)-1-h.Size()))
	if em[0] != 0 || !bytes.HasPrefix(db, h.New().Sum(nil)) {
		return nil, false
	}
	rest := bytes.TrimLeft(db[h.Size():], "\x00")
	if len(rest) == 0 || rest[0] != 1 {
		return nil, false
	}
	return rest[1:], true
}

func TestRemoveOAEP_refusesEverythingInOneWay(t *testing.T) {
	t.Parallel()
	for algorithm, h := range hashes() {
		const k = 256
		seed := make([]byte, h.Size())
		_, _ = rand.Read(seed)
		lHash := h.New().Sum(nil)
		dbLen := k - 1 - h.Size()
		block := func(prefix []byte, rest ...byte) []byte {
			db := append(bytes.Clone(prefix), make([]byte, dbLen-len(prefix)-len(rest))...)
			return append(db, rest...)
		}
		otherLabel := h.New()
		otherLabel.Write([]byte("label"))
		changed := bytes.Clone(lHash)
		changed[len(changed)-1] ^= 1
		good := encodeOAEP(h, 0, seed, block(lHash, 1, 'k', 'e', 'y'))
		for sentence, encoded := range map[string][]byte{
			"the first byte is one":             encodeOAEP(h, 1, seed, block(lHash, 1, 'k', 'e', 'y')),
			"the first byte has its high bit":   encodeOAEP(h, 0x80, seed, block(lHash, 1, 'k', 'e', 'y')),
			"the hash is that of another label": encodeOAEP(h, 0, seed, block(otherLabel.Sum(nil), 1, 'k', 'e', 'y')),
			"the hash differs in one bit":       encodeOAEP(h, 0, seed, block(changed, 1, 'k', 'e', 'y')),
			"there are zeros only":              encodeOAEP(h, 0, seed, block(lHash)),
			"the zeros end in two":              encodeOAEP(h, 0, seed, block(lHash, 2, 1, 'k', 'e', 'y')),
			"the zeros end in 0xff":             encodeOAEP(h, 0, seed, block(lHash, 0xff, 1, 'k')),
			"there are no zeros and no one":     encodeOAEP(h, 0, seed, block(append(bytes.Clone(lHash), bytes.Repeat([]byte{3}, dbLen-h.Size())...))),
			"it is for the other hash":          encodeOAEP(otherHash(h), 0, make([]byte, otherHash(h).Size()), make([]byte, k-1-otherHash(h).Size())),
			"it lost its leading zero":          good[1:],
			"it is cut at the end":              good[:k-1],
			"all is zero":                       make([]byte, k),
		} {
			if got, err := wrapping.RemoveOAEP(algorithm, encoded); got != nil || err != wrapping.ErrUnwrap { //nolint:errorlint // nothing may be wrapped around it
				t.Errorf("%s, %s: %q, %v", algorithm, sentence, got, err)
			}
		}
		for n := range 2*h.Size() + 2 {
			if got, err := wrapping.RemoveOAEP(algorithm, make([]byte, n)); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, %d bytes: %q, %v", algorithm, n, got, err)
			}
		}
		for at := range good {
			bad := bytes.Clone(good)
			bad[at] ^= 0x20
			if got, err := wrapping.RemoveOAEP(algorithm, bad); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%s, byte %d changed: %q, %v", algorithm, at, got, err)
			}
		}
		for _, other := range []wrapping.Algorithm{"", wrapping.RSAESPKCS1V15, wrapping.SM2PKE} {
			if got, err := wrapping.RemoveOAEP(other, good); got != nil || !errors.Is(err, wrapping.ErrUnwrap) {
				t.Errorf("%q: %q, %v", other, got, err)
			}
		}
	}
}

func otherHash(h crypto.Hash) crypto.Hash {
	if h == crypto.SHA1 {
		return crypto.SHA256
	}
	return crypto.SHA1
}

func TestRemoveOAEP_returnsTheMessageAndLeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	for algorithm, h := range hashes() {
		for _, k := range []int{2*h.Size() + 2, 256, 384, 512} {
			longest := k - 2*h.Size() - 2
			for _, length := range []int{0, min(1, longest), longest / 2, longest} {
				message := bytes.Repeat([]byte{1}, length) // looks like the separator
				db := append(h.New().Sum(nil), make([]byte, longest-length)...)
				db = append(append(db, 1), message...)
				seed := bytes.Repeat([]byte{0xa5}, h.Size())
				encoded := encodeOAEP(h, 0, seed, db)
				before := bytes.Clone(encoded)
				got, err := wrapping.RemoveOAEP(algorithm, encoded)
				if err != nil || !bytes.Equal(got, message) {
					t.Errorf("%s, %d of %d bytes: %x, %v", algorithm, length, k, got, err)
				}
				if !bytes.Equal(encoded, before) {
					t.Errorf("%s: the input was changed", algorithm)
				}
			}
		}
	}
}
