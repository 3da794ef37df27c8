package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// MaxEncryptionContext is the maximum length of an EncryptionContext, in characters of its JSON.
const MaxEncryptionContext = 8192

// EncryptionContext is bound to a data key, which can be decrypted with an equal one only.
type EncryptionContext map[string]string

func (c EncryptionContext) check() error {
	// A byte becomes at most six characters, and a pair has six more, so a short context need not be encoded.
	most := len("{}")
	for name, value := range c {
		most += 6 * (len(name) + len(value) + 1)
	}
	if most <= MaxEncryptionContext {
		return nil
	}
	// Without HTML escaping: only Go escapes <, > and & in JSON.
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(c); err != nil {
		return &Error{Code: InternalFailure, Err: err}
	}
	if n := utf8.RuneCount(bytes.TrimSpace(text.Bytes())); n > MaxEncryptionContext {
		return invalid("EncryptionContext", "It has %d characters as JSON. The limit is %d.", n, MaxEncryptionContext)
	}
	return nil
}

// GenerateDataKeyRequest is a request for GenerateDataKeyWithoutPlaintext.
type GenerateDataKeyRequest struct {
	Key Key
	// KeySpec is AES_256, AES_128 or empty.
	KeySpec hsm.KeySpec
	// NumberOfBytes is 1 to 1024, or 0. It takes precedence over KeySpec. Without both, the data key has 32 bytes.
	NumberOfBytes     int
	EncryptionContext EncryptionContext
}

// DataKey is the result of GenerateDataKeyWithoutPlaintext.
type DataKey struct {
	KeyID          uuid.UUID
	KeyVersionID   uuid.UUID
	CiphertextBlob Blob
	Custody        hsm.Custody
}

func (r GenerateDataKeyRequest) length() (int, error) {
	if r.KeySpec != "" && r.KeySpec != hsm.AES256 && r.KeySpec != hsm.AES128 {
		return 0, invalid("KeySpec", "It must be AES_256 or AES_128.")
	}
	if r.NumberOfBytes < 0 || r.NumberOfBytes > hsm.MaxDataKeyLen {
		return 0, invalid("NumberOfBytes", "It must be 1 to %d.", hsm.MaxDataKeyLen)
	}
	switch {
	case r.NumberOfBytes > 0:
		return r.NumberOfBytes, nil
	case r.KeySpec != "":
		return r.KeySpec.Len(), nil
	}
	return hsm.AES256.Len(), nil
}

// CheckBlob checks that the data key in a blob has the length in KeySpec or NumberOfBytes; without both, any length
// is valid. It does not decrypt the blob: see VerifyDataKey.
func (r GenerateDataKeyRequest) CheckBlob(blob Blob) error {
	if r.KeySpec == "" && r.NumberOfBytes == 0 {
		return nil
	}
	want, err := r.length()
	if err != nil {
		return err
	}
	if is := blob.parsed.DataKeyLen(); is != want {
		return invalid("CiphertextBlob", "The data key in it has %d bytes, but KeySpec or NumberOfBytes requires %d. "+
			"Create another DataKey with the length of the blob, or without these fields.", is, want)
	}
	return nil
}

// GenerateDataKeyWithoutPlaintext generates a data key and returns its ciphertext only.
func (o Operations) GenerateDataKeyWithoutPlaintext(ctx context.Context, req GenerateDataKeyRequest) (DataKey, error) {
	if err := req.Key.permit(OpGenerateDataKey, o.now()); err != nil {
		return DataKey{}, err
	}
	length, err := req.length()
	if err != nil {
		return DataKey{}, err
	}
	if err := req.EncryptionContext.check(); err != nil {
		return DataKey{}, err
	}
	version := req.Key.Primary.ID
	made, err := o.Module.GenerateDataKey(ctx, hsm.GenerateRequest{
		KeyVersionID: version,
		Length:       length,
		Binding:      ciphertext.Bind(version, req.EncryptionContext),
	})
	if err != nil {
		return DataKey{}, FromModule(err)
	}
	return DataKey{KeyID: req.Key.ID, KeyVersionID: version, CiphertextBlob: blobOf(made.Blob), Custody: made.Custody}, nil
}

// VerifyDataKey checks that a blob can be decrypted under the key and context. It is not an operation of the
// documented API: it is used before a DataKey takes over a blob.
func (o Operations) VerifyDataKey(ctx context.Context, key Key, blob Blob, context EncryptionContext) error {
	if err := key.permit(OpExportDataKey, o.now()); err != nil {
		return err
	}
	open, err := openRequest(key, blob, context)
	if err != nil {
		return err
	}
	return FromModule(o.Module.VerifyDataKey(ctx, open))
}

// ExportDataKeyRequest is a request for ExportDataKey. Key is the key in the blob.
type ExportDataKeyRequest struct {
	Key                 Key
	CiphertextBlob      Blob
	EncryptionContext   EncryptionContext
	Recipient           Recipient
	SM2CiphertextFormat wrapping.SM2Format // empty means C1C3C2
	// DryRun checks everything without returning the result. It always returns an error: see the function DryRun.
	DryRun bool
}

// ExportedDataKey is the result of ExportDataKey.
type ExportedDataKey struct {
	KeyID           uuid.UUID
	KeyVersionID    uuid.UUID
	ExportedDataKey []byte
	RequestID       uuid.UUID
	Custody         hsm.Custody
}

// ExportDataKey re-encrypts a data key under a recipient's public key.
func (o Operations) ExportDataKey(ctx context.Context, req ExportDataKeyRequest) (ExportedDataKey, error) {
	exported, err := o.exportDataKey(ctx, req)
	if req.DryRun {
		return ExportedDataKey{}, DryRun(err)
	}
	return exported, err
}

func (o Operations) exportDataKey(ctx context.Context, req ExportDataKeyRequest) (ExportedDataKey, error) {
	if err := req.Key.permit(OpExportDataKey, o.now()); err != nil {
		return ExportedDataKey{}, err
	}
	if req.Recipient.IsZero() {
		return ExportedDataKey{}, missing("PublicKeyBlob")
	}
	open, err := openRequest(req.Key, req.CiphertextBlob, req.EncryptionContext)
	if err != nil {
		return ExportedDataKey{}, err
	}
	if err := o.supported(ctx, hsm.OperationExport, string(req.Recipient.algorithm)); err != nil {
		return ExportedDataKey{}, err
	}
	exported, err := o.Module.ExportDataKey(ctx, hsm.ExportRequest{
		OpenRequest: open, Recipient: req.Recipient.key.SPKI(), Algorithm: req.Recipient.algorithm, SM2Format: req.SM2CiphertextFormat,
	})
	if err != nil {
		return ExportedDataKey{}, FromModule(err)
	}
	requestID, err := uuid.NewRandom()
	if err != nil {
		return ExportedDataKey{}, &Error{Code: InternalFailure, Err: err}
	}
	return ExportedDataKey{
		KeyID: req.Key.ID, KeyVersionID: open.Blob.KeyVersionID,
		ExportedDataKey: exported.Ciphertext, RequestID: requestID, Custody: exported.Custody,
	}, nil
}

// DryRun converts the result of an export that was not executed into the documented outcome. Temporary errors (the
// module does not respond) and outcomes remain unchanged.
func DryRun(err error) error {
	code := CodeOf(err)
	switch {
	case code == DryRunOperationError || code == ValidationError || code == AccessDeniedError:
		return err
	case err == nil:
		return &Error{Code: DryRunOperationError, Detail: "The export would have succeeded. Nothing was exported."}
	case code.HTTPStatus() == 403 || code.HTTPStatus() == 404:
		return &Error{Code: AccessDeniedError, Detail: public(err), Err: err}
	case code.HTTPStatus() == 400 || code.HTTPStatus() == 409:
		return &Error{Code: ValidationError, Detail: public(err), Err: err}
	}
	return err
}

func openRequest(key Key, blob Blob, context EncryptionContext) (hsm.OpenRequest, error) {
	if err := context.check(); err != nil {
		return hsm.OpenRequest{}, err
	}
	if blob.IsZero() {
		return hsm.OpenRequest{}, missing("CiphertextBlob")
	}
	version, err := key.VersionFor(blob)
	if err != nil {
		return hsm.OpenRequest{}, err
	}
	return hsm.OpenRequest{Blob: blob.parsed, Binding: ciphertext.Bind(version.ID, context)}, nil
}
