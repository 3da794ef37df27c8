package ciphertext

import (
	"crypto/aes"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// SealWithKey is Seal for the derived schemes, where a module derived the scheme's key (DeriveKey).
func SealWithKey(random io.Reader, scheme Scheme, keyVersionID uuid.UUID, derived []byte, binding Binding, dataKey []byte) (Blob, error) {
	block, err := aes.NewCipher(derived)
	if err != nil {
		return Blob{}, err
	}
	var payload []byte
	switch scheme {
	case DerivedKeyWrap:
		payload, err = wrapKey(derived, dataKey)
	case DerivedGCM: // under its key, it is what DirectGCM is under the master key
		payload, err = seal(random, DirectGCM, block, binding, dataKey)
	default:
		err = fmt.Errorf("scheme %d has no derived key", scheme)
	}
	if err != nil {
		return Blob{}, err
	}
	return Blob{KeyVersionID: keyVersionID, Scheme: scheme, Payload: payload}, nil
}

// OpenWithKey is Open for the derived schemes, where a module derived the scheme's key. The caller
// wipes the result.
func OpenWithKey(blob Blob, derived []byte, binding Binding) ([]byte, error) {
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	switch blob.Scheme {
	case DerivedKeyWrap:
		return unwrapKey(derived, blob.Payload)
	case DerivedGCM:
		blob.Scheme = DirectGCM
		return openGCM(blob, block, binding)
	}
	return nil, ErrOpen
}
