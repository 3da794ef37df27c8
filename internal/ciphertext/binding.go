package ciphertext

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/google/uuid"
)

// Binding ties a data key to its master key and EncryptionContext: SHA-256 over a domain label, the key version and
// the context in an injective encoding (each part is preceded by its length, pairs are sorted by key). A nil context
// and an empty one are equal.
type Binding [sha256.Size]byte

const (
	bindingLabel    = "keyconvoy.io/binding/1"
	derivedGCMLabel = "keyconvoy.io/derived-gcm/1"
)

// Bind computes the binding of a data key.
func Bind(keyVersionID uuid.UUID, encryptionContext map[string]string) Binding {
	keys := make([]string, 0, len(encryptionContext))
	n := len(bindingLabel) + len(keyVersionID) + 4*(2+2*len(encryptionContext))
	for key, value := range encryptionContext {
		keys = append(keys, key)
		n += len(key) + len(value)
	}
	slices.Sort(keys)
	buf := make([]byte, 0, n)
	part := func(s string) {
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(s))) //nolint:gosec // API fields are bounded far below 4 GiB
		buf = append(buf, s...)
	}
	part(bindingLabel)
	part(string(keyVersionID[:]))
	for _, key := range keys {
		part(key)
		part(encryptionContext[key])
	}
	return sha256.Sum256(buf)
}

// Derivation is the data over which the key of DerivedKeyWrap or DerivedGCM is derived from the master key: 32 bytes, two
// cipher blocks. Each scheme has its own, so that no key is used with two algorithms.
func (b Binding) Derivation(scheme Scheme) [32]byte {
	if scheme == DerivedKeyWrap {
		return b
	}
	return sha256.Sum256(append([]byte(derivedGCMLabel), b[:]...))
}
