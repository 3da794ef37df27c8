// Package hsm defines the interface of a cryptographic module.
//
// The interface has key operations (create a wrapping key pair, import under it, generate, export, destroy), not PKCS#11 calls,
// so that a module can run a whole operation inside. All parameters and results are plain values (identifiers, blobs, public
// keys) without handles and sessions, so that a module can run in another process.
package hsm

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Module is one cryptographic module (a PKCS#11 token, or the software store) for one key store. It is safe for concurrent
// use. Every error is an *Error.
//
// A module gets its custody policy when it is opened. An operation that is possible only against the policy fails with
// NotSupported and changes nothing. So does a request that no module supports: a length out of range, or an algorithm that does
// not fit the key. Callers that know the name of the field check these first.
//
// A call whose context is done before it begins fails with Unavailable, with the context's error in its chain. Package hsmtest
// tests this contract.
type Module interface {
	Keys

	// Check proves by real operations that the module works now. It returns WrongResult if a result is wrong: then the module
	// must be opened again.
	Check(ctx context.Context) error

	// Close releases the resources of the module. It waits for calls in progress until ctx is done, and then releases what no
	// call uses. Calls after Close fail with Unavailable.
	Close(ctx context.Context) error
}

// Keys has the methods of a module for keys. Only the code that opened a module checks and closes it.
type Keys interface {
	Authenticator

	// Describe returns what the module is and what its self-test proved. It makes no call to the device, so it may be called
	// often. The result may change when a module is restarted.
	Describe(ctx context.Context) (Description, error)

	// CreateWrappingKey generates the key pair of the request, or returns the existing pair with that identifier.
	CreateWrappingKey(ctx context.Context, req WrappingKeyRequest) (WrappingKey, error)

	// ListWrappingKeys returns all pairs that were created through this interface, by any process, including expired ones, in
	// no particular order and without public keys. If a crash left half of a pair, the list has it, so that it can be destroyed.
	ListWrappingKeys(ctx context.Context) ([]WrappingKey, error)

	// DestroyWrappingKey destroys a pair. It returns nil if the pair does not exist.
	DestroyWrappingKey(ctx context.Context, id uuid.UUID) error

	// ImportKey unwraps material into a new master key. If a key with that identifier exists, it must have the same material,
	// and ImportKey returns it. An import that fails creates nothing.
	//
	// Kinds of error: InvalidMaterial, MaterialLength, OtherMaterial, NotFound (the wrapping pair),
	// NotSupported.
	ImportKey(ctx context.Context, req ImportRequest) (Key, error)

	// GenerateKey generates a master key that nothing outside of the module has seen, or returns the existing key of the same
	// request. If several callers generate one key at the same time, in any process, at most one key remains, and a caller whose
	// key does not remain gets Unavailable or the other key.
	//
	// Kinds of error: OtherMaterial (the existing key has another type or owner, so it is not the one that an earlier call
	// generated), NotSupported.
	GenerateKey(ctx context.Context, req GenerateKeyRequest) (Key, error)

	// FindKey returns the master key with that identifier, or NotFound. It computes the fingerprint with the key.
	FindKey(ctx context.Context, id uuid.UUID) (Key, error)

	// ListKeys returns all master keys that were created through this interface, by any process, in no particular order and
	// without fingerprints.
	ListKeys(ctx context.Context) ([]Key, error)

	// DestroyKey destroys a master key. It returns nil if the key does not exist.
	DestroyKey(ctx context.Context, id uuid.UUID) error

	// GenerateDataKey generates a random data key and returns it encrypted under a master key.
	GenerateDataKey(ctx context.Context, req GenerateRequest) (DataKey, error)

	// VerifyDataKey returns nil if a blob opens under its master key and binding. It returns InvalidBlob if it does not,
	// whatever the reason, and NotFound if the master key is missing.
	VerifyDataKey(ctx context.Context, req OpenRequest) error

	// ReencryptDataKey encrypts the data key in a blob under another master key, or another version of its master key. Length and
	// bytes of the data key stay the same. Kinds of error: those of VerifyDataKey, NotFound also for the other master key, and
	// NotSupported.
	ReencryptDataKey(ctx context.Context, req ReencryptRequest) (DataKey, error)

	// ExportDataKey re-encrypts the data key in a blob under a recipient's public key.
	// Kinds of error: those of VerifyDataKey, DataKeyTooLong and NotSupported.
	ExportDataKey(ctx context.Context, req ExportRequest) (ExportedDataKey, error)
}

// Authenticator has the method of a module that authenticates messages.
type Authenticator interface {
	// Authenticate returns a tag of 32 bytes over message. Its key never leaves the module, which generates it on first use.
	// The same message always has the same tag.
	Authenticate(ctx context.Context, message []byte) ([]byte, error)
}

// Description is what a module is and what it supports. The caller may change it.
type Description struct {
	Info Info
	// Capabilities are what the self-test proved and the custody policy permits, in a stable order.
	Capabilities []Capability
	// KeyProtection is the result of the self-test's attempts to extract a key.
	KeyProtection KeyProtection
	// Probes are the operations of the self-test in their order. A module without a self-test has none.
	Probes []Probe
}

// Lacks returns the first of the capabilities that a module had before and does not have now, or nil.
func (d *Description) Lacks(before []Capability) *Capability {
	for i := range before {
		if !slices.Contains(d.Capabilities, before[i]) {
			return &before[i]
		}
	}
	return nil
}

// Probe is one operation of a self-test.
type Probe struct {
	Name string
	// Attack is set for an attempt to extract a key or to add usages to it, which a module should reject.
	Attack bool
	// Succeeded: the module did it, and the result was correct.
	Succeeded bool
	// Failure is why it did not succeed: the PKCS#11 function and the standard name of its return code, for example, or that the
	// result was wrong. It has no secrets and no other text from outside.
	Failure string
}

// Info is what a module reports about itself.
type Info struct {
	Library      string // the name of the library, or "software"
	Manufacturer string
	Model        string
	Serial       string
	Firmware     string
}

// KeyProtection is whether a module protects its keys from those who may use them: from someone with the PIN of a token, for
// example.
type KeyProtection struct {
	State KeyProtectionState
	// Methods are the calls that extracted a key or added usages to it. The list is empty if and only if the state is Enforced.
	Methods []string
}

// KeyProtectionState is the result of the attempts to extract a key.
type KeyProtectionState string

// The states of key protection.
const (
	// Enforced: the module rejected every attempt.
	Enforced KeyProtectionState = "Enforced"
	// NotEnforced: an attempt succeeded.
	NotEnforced KeyProtectionState = "NotEnforced"
)

// Capability is an operation with an algorithm that a module supports, and where plaintext exists meanwhile.
type Capability struct {
	Operation Operation
	// Algorithm is a KeySpec for MasterKey and GenerateMasterKey, a wrapping algorithm for Import and Export, and the name of a
	// ciphertext scheme, that of the result, for Generate and Reencrypt.
	Algorithm string
	Custody   Custody
}

// Operation is the operation of a capability.
type Operation string

// The operations of a capability.
const (
	OperationMasterKey         Operation = "MasterKey"
	OperationGenerateMasterKey Operation = "GenerateMasterKey"
	OperationImport            Operation = "Import"
	OperationGenerate          Operation = "Generate" // of data keys
	OperationReencrypt         Operation = "Reencrypt"
	OperationExport            Operation = "Export"
)

// Custody is where plaintext key bytes existed.
type Custody string

// The custodies, from the strongest to the weakest.
const (
	// CustodyModule: only inside the cryptographic module.
	CustodyModule Custody = "Module"
	// CustodyHost: in the operator's memory during one call, because the module lacks a mechanism.
	CustodyHost Custody = "Host"
	// CustodySoftware: in the memory of the software store.
	CustodySoftware Custody = "Software"
)

// KeySpec is the type of a master key.
type KeySpec string

// The master key types. The documented API has them with the prefix Aliyun_.
const (
	AES128 KeySpec = "AES_128"
	AES192 KeySpec = "AES_192"
	AES256 KeySpec = "AES_256"
	SM4    KeySpec = "SM4"
)

// KeySpecs lists every master key type.
func KeySpecs() []KeySpec { return []KeySpec{AES128, AES192, AES256, SM4} }

// Len returns the length of the key's material in bytes, or 0 for an unknown type.
func (s KeySpec) Len() int {
	switch s {
	case AES128, SM4:
		return 16
	case AES192:
		return 24
	case AES256:
		return 32
	}
	return 0
}

// MaxDataKeyLen is the maximum length of a data key in bytes (NumberOfBytes of GenerateDataKeyWithoutPlaintext).
const MaxDataKeyLen = 1024

// FingerprintLabel is the message of a material fingerprint. It has one block.
const FingerprintLabel = "keyconvoy.io/fp1"

// Fingerprint is the CMAC (NIST SP 800-38B, with AES or SM4) of FingerprintLabel under a key's material. The same material has
// the same fingerprint in every module. It does not help an attacker.
type Fingerprint [16]byte

// String returns 32 hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// ParseFingerprint is the inverse of Fingerprint.String.
func ParseFingerprint(s string) (Fingerprint, bool) {
	var f Fingerprint
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(f) {
		return Fingerprint{}, false
	}
	copy(f[:], b)
	return f, true
}

// WrappingKeyRequest describes a key pair under which key material is imported.
type WrappingKeyRequest struct {
	ID    uuid.UUID // the pair's identifier, chosen by the caller
	Owner uuid.UUID // the identifier of the key for which it is created
	// Namespace is the namespace for which the pair is created, as in an Owner. The module stores it with the pair.
	Namespace string
	Spec      wrapping.KeySpec
	NotAfter  time.Time // stored with the pair, in whole seconds; the module does not enforce it
}

// WrappingKey is a key pair in the module, without the private key.
type WrappingKey struct {
	ID        uuid.UUID
	Owner     uuid.UUID
	Namespace string // "" for a pair of an early version, which did not store it
	Spec      wrapping.KeySpec
	PublicKey []byte // SubjectPublicKeyInfo in DER; nil in a list
	NotAfter  time.Time
}

// ImportRequest describes an import. KeyVersionID is CKA_ID in a PKCS#11 module.
type ImportRequest struct {
	KeyVersionID      uuid.UUID
	Spec              KeySpec
	WrappingKey       uuid.UUID
	Algorithm         wrapping.Algorithm
	EncryptedMaterial []byte
	// Owner is stored with the key that is created. An import of an existing key does not change it.
	Owner Owner
	// Fingerprint is that of the material of the first import; nil for a first import. ImportKey rejects other material with
	// OtherMaterial.
	Fingerprint *Fingerprint
}

// GenerateKeyRequest describes a master key that the module generates. KeyVersionID is CKA_ID in a PKCS#11 module. Owner is
// stored with the key.
type GenerateKeyRequest struct {
	KeyVersionID uuid.UUID
	Spec         KeySpec
	Owner        Owner
}

// Key is a master key in the module, without its material.
type Key struct {
	KeyVersionID uuid.UUID
	Spec         KeySpec
	Fingerprint  Fingerprint
	// Owner is that of the request that created the key. It has less, or nothing, if the token did not keep all of it.
	Owner Owner
	// Custody is where the material existed when it was imported or generated. FindKey returns "".
	Custody Custody
}

// GenerateRequest describes a data key of Length random bytes (1 to MaxDataKeyLen).
type GenerateRequest struct {
	KeyVersionID uuid.UUID
	Length       int
	Binding      ciphertext.Binding
}

// DataKey is a data key, encrypted under its master key.
type DataKey struct {
	Blob    ciphertext.Blob
	Custody Custody
}

// OpenRequest identifies a data key by its blob, with the binding under which it was encrypted.
type OpenRequest struct {
	Blob    ciphertext.Blob
	Binding ciphertext.Binding
}

// ReencryptRequest describes a data key that moves under another master key.
type ReencryptRequest struct {
	OpenRequest
	NewKeyVersionID uuid.UUID
	NewBinding      ciphertext.Binding
}

// ExportRequest describes an export of a data key under a recipient's public key.
type ExportRequest struct {
	OpenRequest
	Recipient []byte // the public key, SubjectPublicKeyInfo in DER
	Algorithm wrapping.Algorithm
	SM2Format wrapping.SM2Format // for SM2PKE; empty means C1C3C2
}

// ExportedDataKey is a data key, encrypted under the recipient's public key.
type ExportedDataKey struct {
	Ciphertext []byte
	Custody    Custody
}
