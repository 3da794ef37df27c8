package software

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// schemeFor chooses how a new data key is sealed. SM4 keys seal directly: the derived schemes end in
// AES, and who asks for SM4 wants the national algorithm. Every scheme opens under every key.
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
	if req.Length < 1 || req.Length > hsm.MaxDataKeyLen {
		return hsm.DataKey{}, hsm.Errorf(hsm.NotSupported, "a data key has 1 to %d bytes", hsm.MaxDataKeyLen)
	}
	key, err := m.key(req.KeyVersionID)
	if err != nil {
		return hsm.DataKey{}, err
	}
	dataKey := make(redact.Bytes, req.Length)
	defer dataKey.Wipe()
	_, _ = rand.Read(dataKey) // it never fails (Go 1.24)
	var blob ciphertext.Blob
	err = key.withCipher(func(block cipher.Block) error {
		blob, err = ciphertext.Seal(rand.Reader, schemeFor(key.spec, req.Length), req.KeyVersionID, block, req.Binding, dataKey)
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

// VerifyDataKey implements hsm.Module.
func (m *Module) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	dataKey, err := m.open(ctx, req)
	dataKey.Wipe()
	return err
}

// ExportDataKey implements hsm.Module.
func (m *Module) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	if err := checkExport(req); err != nil {
		return hsm.ExportedDataKey{}, err
	}
	dataKey, err := m.open(ctx, req.OpenRequest)
	if err != nil {
		return hsm.ExportedDataKey{}, err
	}
	defer dataKey.Wipe()
	out, err := wrapping.Wrap(rand.Reader, req.Recipient, req.Algorithm, req.SM2Format, dataKey)
	switch {
	case errors.Is(err, wrapping.ErrTooLong):
		spec := req.Recipient.Spec()
		return hsm.ExportedDataKey{}, hsm.Errorf(hsm.DataKeyTooLong,
			"the data key has %d bytes, and %s under %s takes %d at the most: make it shorter, or use a longer RSA key or SM2",
			len(dataKey), req.Algorithm, spec, wrapping.MaxLen(spec, req.Algorithm))
	case err != nil:
		return hsm.ExportedDataKey{}, hsm.Wrap(hsm.Internal, err, "")
	}
	return hsm.ExportedDataKey{Ciphertext: out, Custody: hsm.CustodySoftware}, nil
}

// checkExport refuses what no data key could be exported with.
func checkExport(req hsm.ExportRequest) error {
	switch {
	case req.Recipient == nil:
		return hsm.Errorf(hsm.NotSupported, "there is no recipient's public key")
	case req.Algorithm == wrapping.RSAESPKCS1V15:
		return hsm.Errorf(hsm.NotSupported, "%s is for import only: use %s", wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA256)
	}
	if err := wrapping.CheckFit(req.Recipient.Spec(), req.Algorithm); err != nil {
		return hsm.Errorf(hsm.NotSupported, "%v", err)
	}
	if req.Algorithm != wrapping.SM2PKE {
		return nil
	}
	switch req.SM2Format {
	case "", wrapping.C1C3C2, wrapping.C1C2C3, wrapping.ASN1:
		return nil
	}
	return hsm.Errorf(hsm.NotSupported, "there is no SM2 ciphertext format %q", req.SM2Format)
}

var errInvalidBlob = hsm.Errorf(hsm.InvalidBlob, "the blob does not open under this key and EncryptionContext")

// open decrypts a blob. The caller wipes the result.
func (m *Module) open(ctx context.Context, req hsm.OpenRequest) (redact.Bytes, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	key, err := m.key(req.Blob.KeyVersionID)
	if err != nil {
		return nil, err
	}
	var dataKey redact.Bytes
	err = key.withCipher(func(block cipher.Block) (err error) {
		dataKey, err = ciphertext.Open(req.Blob, block, req.Binding)
		if err != nil {
			return errInvalidBlob
		}
		return nil
	})
	return dataKey, err
}
