package ciphertext

import (
	"crypto/aes"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// SealWithKey is Seal for the derived schemes, with the scheme's key that a module derived (DeriveKey).
func SealWithKey(random io.Reader, scheme Scheme, keyVersionID uuid.UUID, derived []byte, binding Binding, dataKey []byte) (Blob, error) {
	block, err := aes.NewCipher(derived)
	if err != nil {
		return Blob{}, err
	}
	var payload []byte
	switch scheme {
	case DerivedKeyWrap, KDFKeyWrap:
		payload, err = wrapKey(derived, dataKey)
	case DerivedGCM, KDFGCM: // the same as DirectGCM, but under the derived key
		payload, err = seal(random, DirectGCM, block, binding, dataKey)
	default:
		err = fmt.Errorf("scheme %d has no derived key", scheme)
	}
	if err != nil {
		return Blob{}, err
	}
	return Blob{KeyVersionID: keyVersionID, Scheme: scheme, Payload: payload}, nil
}

// OpenWithKey is Open for the derived schemes, with the scheme's key that a module derived. The caller must wipe the
// result.
func OpenWithKey(blob Blob, derived []byte, binding Binding) ([]byte, error) {
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	switch blob.Scheme {
	case DerivedKeyWrap, KDFKeyWrap:
		return unwrapKey(derived, blob.Payload)
	case DerivedGCM, KDFGCM:
		blob.Scheme = DirectGCM
		return openGCM(blob, block, binding)
	}
	return nil, ErrOpen
}
