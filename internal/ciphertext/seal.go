package ciphertext

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// ErrOpen is returned for every blob that cannot be decrypted, so that it does not reveal the cause.
var ErrOpen = errors.New("the blob cannot be decrypted")

// SchemeFor returns the scheme with which software encrypts a data key of a length under a master key that supports
// derivation: RFC 3394 wraps whole 64-bit blocks, at least two.
func SchemeFor(length int) Scheme {
	if length >= 16 && length%8 == 0 {
		return DerivedKeyWrap
	}
	return DerivedGCM
}

// Seal encrypts a data key on the host. The software store uses it, and the self-test of a module compares results
// with it. random is read for the IV of the GCM schemes. It fails for an unknown scheme, an empty data key, one that
// RFC 3394 cannot wrap, and if random fails.
func Seal(random io.Reader, scheme Scheme, keyVersionID uuid.UUID, master cipher.Block, binding Binding, dataKey []byte) (Blob, error) {
	payload, err := seal(random, scheme, master, binding, dataKey)
	if err != nil {
		return Blob{}, err
	}
	return Blob{KeyVersionID: keyVersionID, Scheme: scheme, Payload: payload}, nil
}

func seal(random io.Reader, scheme Scheme, master cipher.Block, binding Binding, dataKey []byte) ([]byte, error) {
	if len(dataKey) == 0 {
		return nil, errors.New("a data key must have at least one byte")
	}
	switch scheme {
	case DerivedKeyWrap, KDFKeyWrap:
		kek := DeriveKey(master, scheme, binding)
		defer clear(kek)
		return wrapKey(kek, dataKey)
	case DerivedGCM, DirectGCM, KDFGCM:
		return sealGCM(random, scheme, master, binding, dataKey)
	}
	return nil, fmt.Errorf("unknown scheme %d", scheme)
}

// Open decrypts a blob on the host. The caller must wipe the result.
func Open(blob Blob, master cipher.Block, binding Binding) ([]byte, error) {
	switch blob.Scheme {
	case DerivedKeyWrap, KDFKeyWrap:
		kek := DeriveKey(master, blob.Scheme, binding)
		defer clear(kek)
		return unwrapKey(kek, blob.Payload)
	case DerivedGCM, DirectGCM, KDFGCM:
		return openGCM(blob, master, binding)
	}
	return nil, ErrOpen
}

// DeriveKey derives a scheme's 256-bit key from the master key: for DerivedKeyWrap and DerivedGCM as CKM_AES_ECB_ENCRYPT_DATA
// does, which is the encryption of Derivation, block by block (PKCS #11 v2.40 mechanisms, section 2.14), and for KDFKeyWrap and
// KDFGCM by the KDF.
func DeriveKey(master cipher.Block, scheme Scheme, binding Binding) []byte {
	if scheme == KDFKeyWrap || scheme == KDFGCM {
		return deriveByKDF(master, scheme, binding)
	}
	key := binding.Derivation(scheme)
	for off := 0; off < len(key); off += master.BlockSize() {
		master.Encrypt(key[off:], key[off:])
	}
	return key[:]
}

func sealGCM(random io.Reader, scheme Scheme, master cipher.Block, binding Binding, dataKey []byte) ([]byte, error) {
	aead, wipe, err := gcmFor(scheme, master, binding)
	if err != nil {
		return nil, err
	}
	defer wipe()
	iv := make([]byte, aead.NonceSize(), aead.NonceSize()+len(dataKey)+aead.Overhead())
	if _, err := io.ReadFull(random, iv); err != nil {
		return nil, err
	}
	return aead.Seal(iv, iv, dataKey, binding[:]), nil
}

func openGCM(blob Blob, master cipher.Block, binding Binding) ([]byte, error) {
	aead, wipe, err := gcmFor(blob.Scheme, master, binding)
	if err != nil {
		return nil, err
	}
	defer wipe()
	n := aead.NonceSize()
	// A data key has at least one byte.
	if len(blob.Payload) < n+1+aead.Overhead() {
		return nil, ErrOpen
	}
	dataKey, err := aead.Open(nil, blob.Payload[:n], blob.Payload[n:], binding[:])
	if err != nil {
		return nil, ErrOpen
	}
	return dataKey, nil
}

func gcmFor(scheme Scheme, master cipher.Block, binding Binding) (cipher.AEAD, func(), error) {
	wipe := func() {}
	block := master
	if scheme != DirectGCM {
		key := DeriveKey(master, scheme, binding)
		wipe = func() { clear(key) }
		var err error
		if block, err = aes.NewCipher(key); err != nil {
			return nil, wipe, err
		}
	}
	aead, err := cipher.NewGCM(block)
	return aead, wipe, err
}
