// Package ciphertext is the format of a CiphertextBlob, a data key encrypted under a master key:
//
//	Base64(keyVersionID as 36 ASCII characters ‖ one scheme byte ‖ payload)
//
// The blob names its key, as the seeds' service does it. A blob of every scheme ever written stays
// readable; testdata keeps known answers for each.
package ciphertext

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

// Scheme is how the payload of a blob is encrypted.
type Scheme byte

// The schemes.
const (
	// DerivedKeyWrap: a key-encryption key derived from the master key (CKM_AES_ECB_ENCRYPT_DATA
	// over Derivation) wraps the data key by RFC 3394. A module does it wholly inside; the master
	// key is good for nothing but derivation, so nothing it wrapped can be decrypted with it.
	DerivedKeyWrap Scheme = 1
	// DerivedGCM: AES-256-GCM with a key derived in the same way, a random 96-bit IV in front and
	// the binding as additional data. For lengths that RFC 3394 cannot wrap.
	DerivedGCM Scheme = 2
	// DirectGCM: GCM directly under the master key (AES or SM4), laid out as DerivedGCM. For
	// modules and ciphers that cannot derive.
	DirectGCM Scheme = 3
)

// String returns the scheme's name, as capabilities show it.
func (s Scheme) String() string {
	switch s {
	case DerivedKeyWrap:
		return "DERIVED_KEY_WRAP"
	case DerivedGCM:
		return "DERIVED_GCM"
	case DirectGCM:
		return "DIRECT_GCM"
	}
	return fmt.Sprintf("SCHEME_%d", byte(s))
}

const (
	idLen = 36
	// MaxLen bounds the Base64 text of a blob: the longest data key is 1024 bytes.
	MaxLen = 2048

	// keyWrapOverhead is by how much RFC 3394 lengthens a key; gcmOverhead is IV and tag of the other
	// schemes.
	keyWrapOverhead = 8
	gcmOverhead     = 12 + 16
)

// Blob is a data key encrypted under the master key that it names.
type Blob struct {
	KeyVersionID uuid.UUID
	Scheme       Scheme
	Payload      []byte
}

// Bytes returns the blob's binary form.
func (b Blob) Bytes() []byte {
	out := make([]byte, 0, idLen+1+len(b.Payload))
	out = append(out, b.KeyVersionID.String()...)
	out = append(out, byte(b.Scheme))
	return append(out, b.Payload...)
}

// String returns the blob in Base64, as the API shows it.
func (b Blob) String() string { return base64.StdEncoding.EncodeToString(b.Bytes()) }

// DataKeyLen is the length of the data key in a blob, which shows without opening it; 0 where no data key gives
// such a payload.
func (b Blob) DataKeyLen() int {
	switch b.Scheme {
	case DerivedKeyWrap:
		if n := len(b.Payload) - keyWrapOverhead; n >= 16 && n%8 == 0 {
			return n
		}
	case DerivedGCM, DirectGCM:
		return max(0, len(b.Payload)-gcmOverhead)
	}
	return 0
}

// ErrMalformed is returned for text that is no blob.
var ErrMalformed = errors.New("not a CiphertextBlob")

// Parse reads a blob from standard Base64. ASCII white space is ignored, as tools add it.
func Parse(text string) (Blob, error) {
	if len(text) > 2*MaxLen { // white space may double it, no more
		return Blob{}, fmt.Errorf("%w: longer than any blob", ErrMalformed)
	}
	raw, err := b64.Decode(text)
	if err != nil {
		return Blob{}, fmt.Errorf("%w: not standard Base64", ErrMalformed)
	}
	return FromBytes(raw)
}

// FromBytes reads a blob from its binary form. Only the canonical spelling of the key version (lower
// case, with hyphens) is taken, so that Bytes returns what was read.
func FromBytes(raw []byte) (Blob, error) {
	if len(raw) < idLen+1 {
		return Blob{}, fmt.Errorf("%w: too short to name a key version", ErrMalformed)
	}
	name := string(raw[:idLen])
	id, err := uuid.Parse(name)
	if err != nil || id.String() != name {
		return Blob{}, fmt.Errorf("%w: does not begin with a key version", ErrMalformed)
	}
	return Blob{KeyVersionID: id, Scheme: Scheme(raw[idLen]), Payload: raw[idLen+1:]}, nil
}
