package wrapping

import (
	"bytes"
	"encoding/pem"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

// maxInputLen bounds what is looked at; a chain of certificates stays far below it.
const maxInputLen = 64 << 10

// input is a key as DER, taken out of whatever it was packed in.
type input struct {
	der   []byte
	shape shape
	owned bool // der is our copy, not the caller's bytes
}

// wipe overwrites what unpacking copied: it may be a private key.
func (in input) wipe() {
	if in.owned {
		clear(in.der)
	}
}

// inputRules is where the reading of public and of private keys differs.
type inputRules struct {
	empty, tooLong, form *KeyError
	// use says which types of PEM block are taken; of several the first.
	use func(pemType string) bool
	// refuse looks at a whole PEM text before any block is taken; nil means go on.
	refuse func(text []byte) *KeyError
	// none explains a PEM text without a block to take.
	none func(text []byte) *KeyError
}

// read unpacks DER, PEM, or Base64 of either. Base64 is taken off once only: what is Base64 still was
// encoded by mistake, and saying so is better than guessing on.
func (r inputRules) read(data []byte) (input, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return input{}, r.empty
	case len(data) > maxInputLen:
		return input{}, r.tooLong
	}
	if shape := shapeOf(data); shape != shapeNone {
		return input{der: data, shape: shape}, nil
	}
	if isPEM(data) {
		return r.readPEM(data)
	}
	raw, err := b64.Decode(string(data))
	if err != nil {
		return input{}, r.form
	}
	if isPEM(raw) {
		defer clear(raw)
		return r.readPEM(raw)
	}
	return input{der: raw, shape: shapeOf(raw), owned: true}, nil
}

func isPEM(text []byte) bool { return bytes.Contains(text, []byte("-----BEGIN ")) }

func (r inputRules) readPEM(text []byte) (input, error) {
	if err := r.refuse(text); err != nil {
		return input{}, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if r.use(block.Type) {
			return input{der: block.Bytes, shape: shapeOf(block.Bytes), owned: true}, nil
		}
		clear(block.Bytes)
	}
	return input{}, r.none(text)
}

// shape is what a DER value looks like from outside. It is told by the tags of the first elements
// alone, so that a key in the wrong place gets an error that names it.
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
