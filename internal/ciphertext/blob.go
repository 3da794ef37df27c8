// Package ciphertext is the format of a CiphertextBlob, a data key encrypted under a master key:
//
//	Base64(keyVersionID as 36 ASCII characters ‖ one scheme byte ‖ payload)
//
// The blob contains the version of its key, as in the documented API. Blobs of all schemes must remain readable;
// testdata contains known answers for each.
package ciphertext

import (
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/b64"
)

// Scheme is the encryption scheme of the payload of a blob.
type Scheme byte

// The schemes.
const (
	// DerivedKeyWrap: a key-encryption key derived from the master key (CKM_AES_ECB_ENCRYPT_DATA over Derivation)
	// wraps the data key by RFC 3394. A module does this completely inside. The master key can only be used for
	// derivation, so it cannot decrypt what its derived keys have wrapped.
	DerivedKeyWrap Scheme = 1
	// DerivedGCM: AES-256-GCM with a key derived in the same way, a random 96-bit IV in front and
	// the binding as additional data. For lengths that RFC 3394 cannot wrap.
	DerivedGCM Scheme = 2
	// DirectGCM: GCM directly under the master key (AES or SM4), laid out as DerivedGCM. For
	// modules and ciphers that cannot derive.
	DirectGCM Scheme = 3
	// KDFKeyWrap: as DerivedKeyWrap, but the key-encryption key is derived by an SP 800-108 KDF with AES-CMAC (KDFInput).
	// For modules that do not support CKM_AES_ECB_ENCRYPT_DATA.
	KDFKeyWrap Scheme = 4
	// KDFGCM: as DerivedGCM, but the key is derived as that of KDFKeyWrap. For lengths that RFC 3394 cannot wrap.
	KDFGCM Scheme = 5
)

// Schemes lists every scheme.
func Schemes() []Scheme { return []Scheme{DerivedKeyWrap, DerivedGCM, DirectGCM, KDFKeyWrap, KDFGCM} }

// WrapsKeys returns whether the scheme wraps data keys by RFC 3394, so that a module can do so inside.
func (s Scheme) WrapsKeys() bool { return s == DerivedKeyWrap || s == KDFKeyWrap }

// String returns the scheme's name, as capabilities show it.
func (s Scheme) String() string {
	switch s {
	case DerivedKeyWrap:
		return "DERIVED_KEY_WRAP"
	case DerivedGCM:
		return "DERIVED_GCM"
	case DirectGCM:
		return "DIRECT_GCM"
	case KDFKeyWrap:
		return "KDF_KEY_WRAP"
	case KDFGCM:
		return "KDF_GCM"
	}
	return fmt.Sprintf("SCHEME_%d", byte(s))
}

const (
	idLen = 36
	// MaxLen is the maximum length of the Base64 text of a blob: the longest data key has 1024 bytes.
	MaxLen = 2048

	// keyWrapOverhead is the number of bytes that RFC 3394 adds to a key; gcmOverhead is that of IV and tag in the
	// other schemes.
	keyWrapOverhead = 8
	gcmOverhead     = 12 + 16
)

// Blob is a data key encrypted under a master key, with the version of that key.
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

// DataKeyLen is the length of the data key in a blob, which is known without decryption; 0 if no data key results in
// such a payload.
func (b Blob) DataKeyLen() int {
	switch b.Scheme {
	case DerivedKeyWrap, KDFKeyWrap:
		if n := len(b.Payload) - keyWrapOverhead; n >= 16 && n%8 == 0 {
			return n
		}
	case DerivedGCM, DirectGCM, KDFGCM:
		return max(0, len(b.Payload)-gcmOverhead)
	}
	return 0
}

// ErrMalformed is returned for text that is not a blob.
var ErrMalformed = errors.New("not a CiphertextBlob")

// Parse reads a blob from standard Base64. It ignores ASCII white space, which tools add.
func Parse(text string) (Blob, error) {
	if len(text) > 2*MaxLen { // at most as much white space as text
		return Blob{}, fmt.Errorf("%w: longer than any blob", ErrMalformed)
	}
	raw, err := b64.Decode(text)
	if err != nil {
		return Blob{}, fmt.Errorf("%w: not standard Base64", ErrMalformed)
	}
	return FromBytes(raw)
}

// FromBytes reads a blob from its binary form. Only the canonical spelling of the key version (lower case, with
// hyphens) is accepted, so that Bytes returns the input.
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
