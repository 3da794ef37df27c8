package wrapping

import (
	"bytes"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

// maxInputLen is the maximum length of an input, much longer than a chain of certificates.
const maxInputLen = 64 << 10

// inputErrors are the errors for a text without a key of the required kind.
type inputErrors struct{ empty, tooLong, form *KeyError }

// unpack returns the blocks of a PEM text, or DER as a single block without a label; the text may be Base64 of either.
// Base64 is decoded only once: if the result is Base64 again, an error is better than further guesses.
// The caller must wipe the blocks, which are copies. Errors are *KeyError.
func unpack(data []byte, says inputErrors, refusePEM func(text []byte) *KeyError) ([]block, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, says.empty
	case len(data) > maxInputLen:
		return nil, says.tooLong
	case shapeOf(data) != shapeNone:
		return []block{{der: bytes.Clone(data)}}, nil
	}
	if err := foreign(data); err != nil {
		return nil, err
	}
	if !isPEM(data) {
		raw, err := b64.Decode(string(data))
		if err != nil {
			return nil, says.form
		}
		if !isPEM(raw) || shapeOf(raw) != shapeNone {
			return []block{{der: raw}}, nil
		}
		defer clear(raw)
		data = raw
	}
	if err := refusePEM(data); err != nil {
		return nil, err
	}
	return readPEM(data)
}

// shape is the probable type of a DER value, from the tags of its first elements, so that the error for a wrong kind
// of key can name it.
type shape int

const (
	shapeNone           shape = iota // nothing below
	shapeTrailing                    // one of those below, with bytes after it
	shapeSPKI                        // RFC 5280, section 4.1.2.7: SEQ{SEQ, BIT STRING}
	shapeCertificate                 // RFC 5280, section 4.1: SEQ{SEQ, SEQ, BIT STRING}; a request (RFC 2986) too
	shapePKCS1Public                 // RFC 8017, appendix A.1.1: SEQ{INTEGER, INTEGER}
	shapePKCS1Private                // RFC 8017, appendix A.1.2: SEQ{INTEGER, INTEGER, …}
	shapePKCS8                       // RFC 5958, section 2: SEQ{INTEGER, SEQ, OCTET STRING, …}
	shapeEncryptedPKCS8              // RFC 5958, section 3: SEQ{SEQ, OCTET STRING}
	shapeSEC1                        // RFC 5915, section 3: SEQ{INTEGER, OCTET STRING, …}
	shapePKCS7                       // RFC 5652, section 3: SEQ{OBJECT IDENTIFIER, [0]}
	shapePKCS12                      // RFC 7292, section 4: SEQ{INTEGER, SEQ{OBJECT IDENTIFIER, …}, SEQ?}
)

func shapeOf(der []byte) shape {
	outer := cryptobyte.String(der)
	var seq cryptobyte.String
	if !outer.ReadASN1(&seq, asn1.SEQUENCE) {
		return shapeNone
	}
	inner := shapeOfTags(firstTags(seq))
	if inner != shapeNone && !outer.Empty() {
		return shapeTrailing
	}
	return inner
}

func shapeOfTags(tags [4]asn1.Tag) shape {
	switch tags {
	case [4]asn1.Tag{asn1.SEQUENCE, asn1.BIT_STRING}:
		return shapeSPKI
	case [4]asn1.Tag{asn1.SEQUENCE, asn1.SEQUENCE, asn1.BIT_STRING}:
		return shapeCertificate
	case [4]asn1.Tag{asn1.SEQUENCE, asn1.OCTET_STRING}:
		return shapeEncryptedPKCS8
	case [4]asn1.Tag{asn1.INTEGER, asn1.INTEGER}:
		return shapePKCS1Public
	case [4]asn1.Tag{asn1.OBJECT_IDENTIFIER, tagContext0}:
		return shapePKCS7
	case [4]asn1.Tag{asn1.INTEGER, asn1.SEQUENCE}, [4]asn1.Tag{asn1.INTEGER, asn1.SEQUENCE, asn1.SEQUENCE}:
		return shapePKCS12
	}
	switch [2]asn1.Tag(tags[:2]) {
	case [2]asn1.Tag{asn1.INTEGER, asn1.INTEGER}:
		return shapePKCS1Private
	case [2]asn1.Tag{asn1.INTEGER, asn1.OCTET_STRING}:
		return shapeSEC1
	}
	if [3]asn1.Tag(tags[:3]) == [3]asn1.Tag{asn1.INTEGER, asn1.SEQUENCE, asn1.OCTET_STRING} {
		return shapePKCS8
	}
	return shapeNone
}

// firstTags returns the tags of a sequence's first four elements; 0 stands for one that is missing
// or does not parse.
func firstTags(seq cryptobyte.String) (tags [4]asn1.Tag) {
	for i := range tags {
		var element cryptobyte.String
		if !seq.ReadAnyASN1(&element, &tags[i]) {
			tags[i] = 0
			break
		}
	}
	return tags
}
