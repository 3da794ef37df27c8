package kms

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Service is the operations on the keys of one key store, by their documented names. It alone decides what a key's state
// permits. Its errors are *Error. Operations implements it on a cryptographic module.
type Service interface {
	// GetParametersForImport returns a public key and an import token for a key that waits for its material, or may be
	// given it again. The same ClientToken returns the same pair while it is valid.
	GetParametersForImport(ctx context.Context, req ImportParametersRequest) (ImportParameters, error)
	// DestroyImportParameters destroys the key's import key pairs: those that have expired, or all. It returns when the
	// first of the others expires, zero for none.
	DestroyImportParameters(ctx context.Context, keyID uuid.UUID, all bool) (next time.Time, err error)
	// ImportKeyMaterial imports material that was wrapped under import parameters, and returns the version with it.
	ImportKeyMaterial(ctx context.Context, req ImportKeyMaterialRequest) (Version, error)
	// AdoptKey finds the material of a key that is in the module already, whose custody is not known.
	AdoptKey(ctx context.Context, key Key) (hsm.Key, error)
	// KeysByName lists the master keys in the module that were made for an object with the name of a key.
	KeysByName(ctx context.Context, key Key) ([]hsm.Key, error)
	// DeleteKeyMaterial destroys a key's material.
	DeleteKeyMaterial(ctx context.Context, key Key) error
	// CreateKeyVersion generates a key's next version, or its first one, or returns it where the module has it.
	CreateKeyVersion(ctx context.Context, key Key) (Version, error)
	// DestroyKeyVersion destroys one version of a key.
	DestroyKeyVersion(ctx context.Context, version uuid.UUID) error
	// GenerateDataKeyWithoutPlaintext makes a data key and returns its ciphertext only.
	GenerateDataKeyWithoutPlaintext(ctx context.Context, req GenerateDataKeyRequest) (DataKey, error)
	// VerifyDataKey returns nil where a blob opens under the key and the context.
	VerifyDataKey(ctx context.Context, key Key, blob Blob, context EncryptionContext) error
	// ReEncrypt moves a data key under the primary version of a key, and proves that the new blob opens.
	ReEncrypt(ctx context.Context, req ReEncryptRequest) (DataKey, error)
	// ExportDataKey re-encrypts a data key under a recipient's public key.
	ExportDataKey(ctx context.Context, req ExportDataKeyRequest) (ExportedDataKey, error)
	// TagBlob returns a proof that the operator gave a blob to a DataKey; CheckBlobTag returns nil where it is one.
	TagBlob(ctx context.Context, assigned Assigned) (string, error)
	CheckBlobTag(ctx context.Context, assigned Assigned, tag string) error
	// Sweep destroys the import key pairs that have expired, of whatever key, and returns how many there were.
	Sweep(ctx context.Context) (destroyed int, err error)
	// MasterKeys lists the master keys in the module.
	MasterKeys(ctx context.Context) ([]hsm.Key, error)
}

var _ Service = Operations{}
