package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// MaxEncryptionContext is how long an EncryptionContext may be, in characters of its JSON.
const MaxEncryptionContext = 8192

// EncryptionContext is bound to a data key; it opens under an equal one only.
type EncryptionContext map[string]string

func (c EncryptionContext) check() error {
	// A byte becomes six characters at the most, and a pair has six more: a short one need not be written.
	most := len("{}")
	for name, value := range c {
		most += 6 * (len(name) + len(value) + 1)
	}
	if most <= MaxEncryptionContext {
		return nil
	}
	// As JSON is written everywhere but in Go, which escapes <, > and & for the sake of HTML.
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(c); err != nil {
		return &Error{Code: InternalFailure, Err: err}
	}
	if n := utf8.RuneCount(bytes.TrimSpace(text.Bytes())); n > MaxEncryptionContext {
		return invalid("EncryptionContext", "It has %d characters as JSON; %d are allowed.", n, MaxEncryptionContext)
	}
	return nil
}

// GenerateDataKeyRequest is a request for GenerateDataKeyWithoutPlaintext.
type GenerateDataKeyRequest struct {
	Key Key
	// KeySpec is AES_256, AES_128 or empty.
	KeySpec hsm.KeySpec
	// NumberOfBytes is 1 to 1024, or 0; it wins over KeySpec. With neither the data key has 32 bytes.
	NumberOfBytes     int
	EncryptionContext EncryptionContext
}

// DataKey is the answer of GenerateDataKeyWithoutPlaintext.
type DataKey struct {
	KeyID          uuid.UUID
	KeyVersionID   uuid.UUID
	CiphertextBlob string // Base64
	Custody        hsm.Custody
}

func (r GenerateDataKeyRequest) length() (int, error) {
	if r.KeySpec != "" && r.KeySpec != hsm.AES256 && r.KeySpec != hsm.AES128 {
		return 0, invalid("KeySpec", "A data key is AES_256 or AES_128.")
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

// CheckBlob says whether the data key in a blob has the length that KeySpec or NumberOfBytes asks for; where
// neither does, any will do. It does not open the blob: see VerifyDataKey.
func (r GenerateDataKeyRequest) CheckBlob(blob string) error {
	if r.KeySpec == "" && r.NumberOfBytes == 0 {
		return nil
	}
	want, err := r.length()
	if err != nil {
		return err
	}
	parsed, err := ciphertext.Parse(blob)
	if err != nil {
		return malformed(err)
	}
	if is := parsed.DataKeyLen(); is != want {
		return invalid("CiphertextBlob", "The data key in it has %d bytes, and KeySpec or NumberOfBytes asks for %d. "+
			"Make another DataKey, which asks for the length that the blob has, or for none.", is, want)
	}
	return nil
}

// GenerateDataKeyWithoutPlaintext makes a data key and answers with its ciphertext only.
func (o Operations) GenerateDataKeyWithoutPlaintext(ctx context.Context, req GenerateDataKeyRequest) (DataKey, error) {
	if err := Permit(OpGenerateDataKey, req.Key.StateAt(o.now())); err != nil {
		return DataKey{}, err
	}
	length, err := req.length()
	if err != nil {
		return DataKey{}, err
	}
	if err := req.EncryptionContext.check(); err != nil {
		return DataKey{}, err
	}
	version := req.Key.VersionID()
	made, err := o.Module.GenerateDataKey(ctx, hsm.GenerateRequest{
		KeyVersionID: version,
		Length:       length,
		Binding:      ciphertext.Bind(version, req.EncryptionContext),
	})
	if err != nil {
		return DataKey{}, FromModule(err)
	}
	return DataKey{KeyID: req.Key.ID, KeyVersionID: version, CiphertextBlob: made.Blob.String(), Custody: made.Custody}, nil
}

// KeyVersionOf reads which key version a blob names.
func KeyVersionOf(blob string) (uuid.UUID, error) {
	parsed, err := ciphertext.Parse(blob)
	if err != nil {
		return uuid.Nil, malformed(err)
	}
	return parsed.KeyVersionID, nil
}

// Canonical returns a blob without the white space that tools add.
func Canonical(blob string) (string, error) {
	parsed, err := ciphertext.Parse(blob)
	if err != nil {
		return "", malformed(err)
	}
	return parsed.String(), nil
}

func malformed(err error) error {
	e := invalid("CiphertextBlob", "It is not a CiphertextBlob: give the Base64 text of a DataKey's status.ciphertextBlob.")
	e.Err = err
	return e
}

// VerifyDataKey says whether a blob opens under the key and context. It is not an operation of the
// seeds: it is asked before a blob from elsewhere is taken over.
func (o Operations) VerifyDataKey(ctx context.Context, key Key, blob string, context EncryptionContext) error {
	if err := Permit(OpExportDataKey, key.StateAt(o.now())); err != nil {
		return err
	}
	open, err := openRequest(key, blob, context)
	if err != nil {
		return err
	}
	return FromModule(o.Module.VerifyDataKey(ctx, open))
}

// ExportDataKeyRequest is a request for ExportDataKey. Key is the one that the blob names.
type ExportDataKeyRequest struct {
	Key                 Key
	CiphertextBlob      string
	EncryptionContext   EncryptionContext
	PublicKey           *wrapping.PublicKey
	WrappingKeySpec     wrapping.KeySpec
	WrappingAlgorithm   wrapping.Algorithm
	SM2CiphertextFormat wrapping.SM2Format // empty means C1C3C2
	// DryRun does everything but hand out the result. It always ends in an error: see DryRun.
	DryRun bool
}

// ExportedDataKey is the answer of ExportDataKey.
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
		clear(exported.ExportedDataKey)
		return ExportedDataKey{}, DryRun(err)
	}
	return exported, err
}

func (o Operations) exportDataKey(ctx context.Context, req ExportDataKeyRequest) (ExportedDataKey, error) {
	if err := Permit(OpExportDataKey, req.Key.StateAt(o.now())); err != nil {
		return ExportedDataKey{}, err
	}
	if err := CheckRecipient(req.PublicKey, req.WrappingKeySpec, req.WrappingAlgorithm); err != nil {
		return ExportedDataKey{}, err
	}
	open, err := openRequest(req.Key, req.CiphertextBlob, req.EncryptionContext)
	if err != nil {
		return ExportedDataKey{}, err
	}
	if err := o.supported(hsm.OperationExport, string(req.WrappingAlgorithm)); err != nil {
		return ExportedDataKey{}, err
	}
	exported, err := o.Module.ExportDataKey(ctx, hsm.ExportRequest{
		OpenRequest: open, Recipient: req.PublicKey, Algorithm: req.WrappingAlgorithm, SM2Format: req.SM2CiphertextFormat,
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

// CheckRecipient says whether a public key is what a request calls it, and fit for the algorithm.
func CheckRecipient(key *wrapping.PublicKey, spec wrapping.KeySpec, algorithm wrapping.Algorithm) error {
	if algorithm == wrapping.RSAESPKCS1V15 {
		return invalid("WrappingAlgorithm", "RSAES_PKCS1_V1_5 is for imports only: use RSAES_OAEP_SHA_256.")
	}
	if err := wrapping.CheckFit(spec, algorithm); err != nil {
		return invalid("WrappingAlgorithm", "%s", err)
	}
	if key == nil {
		return missing("PublicKeyBlob")
	}
	if key.Spec() != spec {
		return invalid("WrappingKeySpec", "The public key is %s, not %s.", key.Spec(), spec)
	}
	return nil
}

func openRequest(key Key, blob string, context EncryptionContext) (hsm.OpenRequest, error) {
	if err := context.check(); err != nil {
		return hsm.OpenRequest{}, err
	}
	parsed, err := ciphertext.Parse(blob)
	if err != nil {
		return hsm.OpenRequest{}, malformed(err)
	}
	if parsed.KeyVersionID != key.VersionID() {
		return hsm.OpenRequest{}, badBlob(nil)
	}
	return hsm.OpenRequest{Blob: parsed, Binding: ciphertext.Bind(parsed.KeyVersionID, context)}, nil
}

func notOffered(op hsm.Operation, algorithm string, can []string) string {
	if len(can) == 0 {
		return fmt.Sprintf("The key store offers no %s at all.", op)
	}
	return fmt.Sprintf("The key store does not offer %s %s, or its custody policy forbids it. It offers %s: see its status.capabilities.",
		op, algorithm, strings.Join(can, ", "))
}
