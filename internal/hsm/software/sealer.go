package software

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// A sealed record is
//
//	version (1) ‖ kind (1) ‖ root key identifier (8) ‖ IV (12) ‖ AES-256-GCM ciphertext and tag
//
// with everything before the IV and the name of the record as additional data, so that a record does not open under another
// name or kind. The identifier distinguishes a lost root key from a damaged record.
const (
	sealVersion = 1
	headerLen   = 2 + len(rootID{})
	ivLen       = 12
	tagLen      = 16

	rootKeyLen = 32
	sealLabel  = "keyconvoy.io/software/seal/1"
	rootLabel  = "keyconvoy.io/software/root-id/1"
)

// The reasons why a record does not open. They have nothing of its content.
var (
	errUnknownFormat = errors.New("its format is unknown; a later version may have written it")
	errOtherRoot     = errors.New("it was sealed under another root key")
	errAltered       = errors.New("it was altered")
)

// rootID identifies a root key. It is an HKDF output with a label of its own, so it reveals nothing about the key.
type rootID [8]byte

func (id rootID) String() string { return hex.EncodeToString(id[:]) }

// sealer seals and opens records under one root key.
type sealer struct {
	root rootID
	aead cipher.AEAD
}

// openSealer reads the root key and wipes it after use.
func openSealer(ctx context.Context, storage hsm.Storage) (*sealer, error) {
	root, err := storage.RootKey(ctx)
	if err != nil {
		return nil, storageError(err)
	}
	defer root.Wipe()
	if len(root) != rootKeyLen {
		return nil, hsm.Errorf(hsm.Misconfigured,
			"the root key of the software key store must be %d bytes long, and it has %d", rootKeyLen, len(root))
	}
	s, err := newSealer(root)
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	return s, nil
}

func newSealer(root []byte) (*sealer, error) {
	id, err := hkdf.Key(sha256.New, root, nil, rootLabel, len(rootID{}))
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, root, nil, sealLabel, 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{root: rootID(id), aead: aead}, nil
}

func (s *sealer) seal(kind recordKind, name string, plain []byte) []byte {
	out := make([]byte, 0, headerLen+ivLen+len(plain)+tagLen)
	out = append(out, sealVersion, byte(kind))
	out = append(out, s.root[:]...)
	aad := append(out[:headerLen:headerLen], name...)
	out = out[:headerLen+ivLen]
	iv := out[headerLen:]
	_, _ = rand.Read(iv) // it never fails (Go 1.24)
	return s.aead.Seal(out, iv, plain, aad)
}

// open is the inverse of seal. The caller owns the result.
func (s *sealer) open(kind recordKind, name string, sealed []byte) (redact.Bytes, error) {
	if len(sealed) < headerLen+ivLen+tagLen || sealed[0] != sealVersion || recordKind(sealed[1]) != kind {
		return nil, errUnknownFormat
	}
	if rootID(sealed[2:headerLen]) != s.root {
		return nil, errOtherRoot
	}
	aad := append(sealed[:headerLen:headerLen], name...)
	plain, err := s.aead.Open(nil, sealed[headerLen:headerLen+ivLen], sealed[headerLen+ivLen:], aad)
	if err != nil {
		return nil, errAltered
	}
	return plain, nil
}
