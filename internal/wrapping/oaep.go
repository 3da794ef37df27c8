package wrapping

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 requires it; OAEP does not depend on collision resistance
	_ "crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
)

// hash is the hash of an OAEP algorithm, for the label and for MGF1; 0 for the other algorithms.
func (a Algorithm) hash() crypto.Hash {
	switch a {
	case RSAESOAEPSHA256:
		return crypto.SHA256
	case RSAESOAEPSHA1:
		return crypto.SHA1
	}
	return 0
}

// RemoveOAEP returns the message in an encoded message EM = 0x00 ‖ maskedSeed ‖ maskedDB, with an
// empty label: EME-OAEP decoding, RFC 8017, section 7.1.2, step 3. It is for a module that can do the
// raw RSA operation (CKM_RSA_X_509) but not OAEP with this hash. encoded is the whole result of that
// operation, as long as the modulus; a module that drops leading zeros must have them put back.
//
// Every failure is ErrUnwrap, including an algorithm other than OAEP. All failures take the same time (J. Manger,
// CRYPTO 2001): the code does not branch on the bytes until the decision at the end. The caller must wipe encoded,
// which is not modified, and the result, which may be empty.
func RemoveOAEP(algorithm Algorithm, encoded []byte) ([]byte, error) {
	h := algorithm.hash()
	if h == 0 || len(encoded) < 2*h.Size()+2 {
		return nil, ErrUnwrap
	}
	work := bytes.Clone(encoded)
	defer clear(work)
	first, seed, db := work[0], work[1:1+h.Size()], work[1+h.Size():]
	hasher := h.New()
	xorMGF1(hasher, seed, db)
	xorMGF1(hasher, db, seed)

	// DB = lHash ‖ PS ‖ 0x01 ‖ M, where PS is zeros.
	hasher.Reset()
	lHash := hasher.Sum(nil)
	good := subtle.ConstantTimeByteEq(first, 0)
	good &= subtle.ConstantTimeCompare(db[:h.Size()], lHash)
	rest := db[h.Size():]
	separator, found := findSeparator(rest)
	if good&found != 1 {
		return nil, ErrUnwrap
	}
	return bytes.Clone(rest[separator+1:]), nil
}

// findSeparator returns where the zeros at the start of b end in 0x01, and 1; if they do not, 0 for
// found. It reads every byte and branches on none.
func findSeparator(b []byte) (at, found int) {
	looking, bad := 1, 0
	for i, c := range b {
		isZero := subtle.ConstantTimeByteEq(c, 0)
		isOne := subtle.ConstantTimeByteEq(c, 1)
		at = subtle.ConstantTimeSelect(looking&isOne, i, at)
		bad |= looking & (1 ^ isZero) & (1 ^ isOne)
		looking &= isZero
	}
	return at, (1 ^ looking) & (1 ^ bad)
}

// xorMGF1 XORs dst with MGF1(seed) (RFC 8017, appendix B.2.1).
func xorMGF1(h hash.Hash, dst, seed []byte) {
	mask := make([]byte, 0, h.Size())
	defer func() { clear(mask[:cap(mask)]) }()
	for counter := uint32(0); len(dst) > 0; counter++ {
		h.Reset()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		mask = h.Sum(mask[:0])
		dst = dst[subtle.XORBytes(dst, dst, mask):]
	}
}
