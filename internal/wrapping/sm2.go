package wrapping

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

const (
	coordinateLen = 32
	pointLen      = 1 + 2*coordinateLen
	sm3Len        = 32
	uncompressed  = 0x04 // SEC 1, section 2.3.3
	derSequence   = 0x30
)

// sm2Ciphertext is an SM2 ciphertext in its parts (GB/T 32918.4, section 6.1).
type sm2Ciphertext struct {
	c1 []byte // a point of the curve, uncompressed: 0x04 ‖ x ‖ y, 65 bytes
	c3 []byte // the SM3 hash, 32 bytes
	c2 []byte // the masked key, as long as the key
}

// parseSM2Ciphertext reads a ciphertext in the given format; empty means C1C3C2 or ASN1, depending on the first byte.
// It fails with ErrSM2Format or ErrUnwrap. The parts may share memory with the input.
func parseSM2Ciphertext(format SM2Format, in []byte) (sm2Ciphertext, error) {
	if format == "" {
		format = C1C3C2
		if len(in) > 0 && in[0] == derSequence {
			format = ASN1
		}
	}
	var c sm2Ciphertext
	switch {
	case !format.Valid():
		return sm2Ciphertext{}, ErrSM2Format
	case format == ASN1:
		var ok bool
		if c, ok = parseSM2ASN1(in); !ok {
			return sm2Ciphertext{}, ErrUnwrap
		}
	case len(in) <= pointLen+sm3Len:
		return sm2Ciphertext{}, ErrUnwrap
	case format == C1C3C2:
		c = sm2Ciphertext{c1: in[:pointLen], c3: in[pointLen : pointLen+sm3Len], c2: in[pointLen+sm3Len:]}
	default:
		end := len(in) - sm3Len
		c = sm2Ciphertext{c1: in[:pointLen], c3: in[end:], c2: in[pointLen:end]}
	}
	if !onCurve(c.c1) {
		return sm2Ciphertext{}, ErrUnwrap
	}
	return c, nil
}

// parseSM2ASN1 reads SEQUENCE{x INTEGER, y INTEGER, C3 OCTET STRING, C2 OCTET STRING} (GM/T 0009,
// section 7.2) in strict DER. DER drops the leading zeros of an integer and adds one before a high
// bit; here coordinates have 32 bytes again.
func parseSM2ASN1(in []byte) (c sm2Ciphertext, ok bool) {
	der := cryptobyte.String(in)
	var seq, c3, c2 cryptobyte.String
	var x, y big.Int
	if !der.ReadASN1(&seq, asn1.SEQUENCE) || !der.Empty() ||
		!seq.ReadASN1Integer(&x) || !seq.ReadASN1Integer(&y) ||
		!seq.ReadASN1(&c3, asn1.OCTET_STRING) || len(c3) != sm3Len ||
		!seq.ReadASN1(&c2, asn1.OCTET_STRING) || len(c2) == 0 || !seq.Empty() {
		return sm2Ciphertext{}, false
	}
	c1, ok := pointBytes(&x, &y)
	return sm2Ciphertext{c1: c1, c3: c3, c2: c2}, ok
}

// encode is the inverse of parseSM2Ciphertext; empty means C1C3C2.
func (c sm2Ciphertext) encode(format SM2Format) ([]byte, error) {
	switch format {
	case C1C3C2, "":
		return concat(c.c1, c.c3, c.c2), nil
	case C1C2C3:
		return concat(c.c1, c.c2, c.c3), nil
	case ASN1:
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(new(big.Int).SetBytes(c.c1[1 : 1+coordinateLen]))
			b.AddASN1BigInt(new(big.Int).SetBytes(c.c1[1+coordinateLen:]))
			b.AddASN1OctetString(c.c3)
			b.AddASN1OctetString(c.c2)
		})
		return b.Bytes()
	}
	return nil, ErrSM2Format
}

// ConvertSM2 converts an SM2 ciphertext from one format to another without decrypting it. An empty from has the same
// meaning as in Unwrap; an empty to means C1C3C2. It fails with ErrSM2Format, or with ErrUnwrap for an invalid
// ciphertext: too short, a point off the curve, or not strict DER.
func ConvertSM2(ciphertext []byte, from, to SM2Format) ([]byte, error) {
	parts, err := parseSM2Ciphertext(from, ciphertext)
	if err != nil {
		return nil, err
	}
	return parts.encode(to)
}

func concat(a, b, c []byte) []byte {
	out := make([]byte, 0, len(a)+len(b)+len(c))
	return append(append(append(out, a...), b...), c...)
}

// onCurve reports whether a point in uncompressed form is on the curve; the point at infinity is not.
func onCurve(point []byte) bool {
	if len(point) != pointLen || point[0] != uncompressed {
		return false
	}
	_, err := sm2.NewPublicKey(point)
	return err == nil
}

// pointBytes returns a point in uncompressed form, or false for a coordinate that is negative or
// longer than 32 bytes.
func pointBytes(x, y *big.Int) ([]byte, bool) {
	if x.Sign() < 0 || y.Sign() < 0 || x.BitLen() > 8*coordinateLen || y.BitLen() > 8*coordinateLen {
		return nil, false
	}
	point := make([]byte, pointLen)
	point[0] = uncompressed
	x.FillBytes(point[1 : 1+coordinateLen])
	y.FillBytes(point[1+coordinateLen:])
	return point, true
}

// maxSM2Tries limits the attempts of wrapSM2. One fails with probability 2^-8n for a key of n bytes.
const maxSM2Tries = 100

// wrapSM2 encrypts under an SM2 key (GB/T 32918.4, section 6.1).
//
// According to the standard, encryption starts again with a new ephemeral scalar if the mask is all zeros, which
// happens for one in 256 keys of one byte. gmsm 0.44.0 does start again, but with a public key that the first attempt
// has overwritten, and returns a ciphertext that cannot be decrypted. So gmsm gets the randomness of one attempt, and
// the retry is here.
func wrapSM2(random io.Reader, key *ecdsa.PublicKey, format SM2Format, plaintext []byte) ([]byte, error) {
	if format != "" && !format.Valid() {
		return nil, ErrSM2Format
	}
	var raw []byte
	err := io.EOF
	for try := 0; try < maxSM2Tries && errors.Is(err, io.EOF); try++ {
		raw, err = sm2.Encrypt(io.LimitReader(random, coordinateLen), key, plaintext, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt with %s: %w", SM2PKE, err)
	}
	return ConvertSM2(raw, C1C3C2, format)
}

// unwrapSM2 decrypts with an SM2 key (GB/T 32918.4, section 7.1).
func unwrapSM2(key *sm2.PrivateKey, format SM2Format, ciphertext []byte) (redact.Bytes, error) {
	raw, err := ConvertSM2(ciphertext, format, C1C3C2)
	if err != nil {
		return nil, err
	}
	plaintext, err := sm2.Decrypt(key, raw)
	if err != nil {
		return nil, ErrUnwrap
	}
	return plaintext, nil
}
