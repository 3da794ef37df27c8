package software

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// schemeFor returns the scheme of a new data key. SM4 keys encrypt directly, because the derived schemes use AES, and users of
// SM4 want the national algorithm. Blobs of all schemes open under keys of all types.
func schemeFor(spec hsm.KeySpec, length int) ciphertext.Scheme {
	if spec == hsm.SM4 {
		return ciphertext.DirectGCM
	}
	return ciphertext.SchemeFor(length)
}

// GenerateDataKey implements hsm.Module.
func (m *Module) GenerateDataKey(ctx context.Context, req hsm.GenerateRequest) (hsm.DataKey, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.DataKey{}, err
	}
	if err := req.Validate(); err != nil {
		return hsm.DataKey{}, err
	}
	key, err := m.key(ctx, req.KeyVersionID)
	if err != nil {
		return hsm.DataKey{}, err
	}
	dataKey := make(redact.Bytes, req.Length)
	defer dataKey.Wipe()
	_, _ = rand.Read(dataKey) // it never fails (Go 1.24)
	return key.seal(req.KeyVersionID, req.Binding, dataKey)
}

// seal encrypts a data key.
func (k *masterKey) seal(id uuid.UUID, binding ciphertext.Binding, dataKey redact.Bytes) (hsm.DataKey, error) {
	var blob ciphertext.Blob
	err := k.withCipher(func(block cipher.Block) (err error) {
		blob, err = ciphertext.Seal(rand.Reader, schemeFor(k.spec, len(dataKey)), id, block, binding, dataKey)
		if err != nil {
			return hsm.Wrap(hsm.Internal, err, "")
		}
		return nil
	})
	if err != nil {
		return hsm.DataKey{}, err
	}
	return hsm.DataKey{Blob: blob, Custody: hsm.CustodySoftware}, nil
}

// ReencryptDataKey implements hsm.Module.
func (m *Module) ReencryptDataKey(ctx context.Context, req hsm.ReencryptRequest) (hsm.DataKey, error) {
	dataKey, err := m.open(ctx, req.OpenRequest)
	if err != nil {
		return hsm.DataKey{}, err
	}
	defer dataKey.Wipe()
	key, err := m.key(ctx, req.NewKeyVersionID)
	if err != nil {
		return hsm.DataKey{}, err
	}
	return key.seal(req.NewKeyVersionID, req.NewBinding, dataKey)
}

// VerifyDataKey implements hsm.Module.
func (m *Module) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	dataKey, err := m.open(ctx, req)
	dataKey.Wipe()
	return err
}

// ExportDataKey implements hsm.Module.
func (m *Module) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	recipient, err := req.Validate()
	if err != nil {
		return hsm.ExportedDataKey{}, err
	}
	dataKey, err := m.open(ctx, req.OpenRequest)
	if err != nil {
		return hsm.ExportedDataKey{}, err
	}
	defer dataKey.Wipe()
	out, err := wrapping.Wrap(rand.Reader, recipient, req.Algorithm, req.SM2Format, dataKey)
	switch {
	case errors.Is(err, wrapping.ErrTooLong):
		return hsm.ExportedDataKey{}, hsm.TooLongFor(recipient.Spec(), req.Algorithm, len(dataKey))
	case err != nil:
		return hsm.ExportedDataKey{}, hsm.Wrap(hsm.Internal, err, "")
	}
	return hsm.ExportedDataKey{Ciphertext: out, Custody: hsm.CustodySoftware}, nil
}

// open decrypts a blob. The caller wipes the result.
func (m *Module) open(ctx context.Context, req hsm.OpenRequest) (redact.Bytes, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	key, err := m.key(ctx, req.Blob.KeyVersionID)
	if err != nil {
		return nil, err
	}
	var dataKey redact.Bytes
	err = key.withCipher(func(block cipher.Block) (err error) {
		dataKey, err = ciphertext.Open(req.Blob, block, req.Binding)
		if err != nil {
			return hsm.ErrInvalidBlob
		}
		return nil
	})
	return dataKey, err
}
