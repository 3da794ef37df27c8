// Package hsm says what Keyconvoy asks of a cryptographic module.
//
// The interface speaks in key operations (make a wrapping pair, import under it, generate, export,
// destroy), not in PKCS#11 calls: a module can do a whole operation inside itself, and every value
// that crosses is plain (identifiers, blobs, public keys), so that a module may live in another
// process. No handle and no session shows.
package hsm

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Module is one cryptographic module (a PKCS#11 token, or the software store) as one key store
// sees it. It is safe for concurrent use. Every error is an *Error.
//
// Custody policy is given to a module when it is opened; an operation whose only way would break it
// fails with NotSupported and changes nothing. So does a request that no module can serve: a length
// out of range, an algorithm that does not fit the key. Callers who can name the field check first.
//
// A call whose context is done before it begins fails with Unavailable, with the context's error in
// its chain. hsmtest is this contract as a test.
type Module interface {
	// Info identifies the module. It does not change while the module is open.
	Info() Info

	// Capabilities lists what the self-test at opening proved, in a stable order.
	Capabilities() []Capability

	// Check proves by a real operation that the module works now.
	Check(ctx context.Context) error

	// CreateWrappingKey makes the pair named by the request, or returns the one that already
	// carries that identifier.
	CreateWrappingKey(ctx context.Context, req WrappingKeyRequest) (WrappingKey, error)

	// ListWrappingKeys returns the pairs made for owner, expired ones too, in no particular order.
	ListWrappingKeys(ctx context.Context, owner uuid.UUID) ([]WrappingKey, error)

	// DestroyWrappingKey destroys a pair; a pair that does not exist is no error.
	DestroyWrappingKey(ctx context.Context, id uuid.UUID) error

	// Authenticate returns a 32-byte tag over message under a key that never leaves the module and
	// that the module makes on first use. The same message always has the same tag.
	Authenticate(ctx context.Context, message []byte) ([]byte, error)

	// ImportKey unwraps material into a new master key. Where a key with that identifier already
	// exists it must hold the same material, and nothing is made. An import that fails leaves
	// nothing behind.
	//
	// Kinds of error: InvalidMaterial, MaterialLength, OtherMaterial, NotFound (the wrapping pair),
	// NotSupported.
	ImportKey(ctx context.Context, req ImportRequest) (Key, error)

	// FindKey returns the master key with that identifier, or NotFound. The fingerprint is taken
	// from the key itself, not from a label.
	FindKey(ctx context.Context, id uuid.UUID) (Key, error)

	// DestroyKey destroys a master key; a key that does not exist is no error.
	DestroyKey(ctx context.Context, id uuid.UUID) error

	// GenerateDataKey makes a random data key and returns it encrypted under a master key.
	GenerateDataKey(ctx context.Context, req GenerateRequest) (DataKey, error)

	// VerifyDataKey says whether a blob opens under its master key and binding. It returns
	// InvalidBlob for whatever reason it does not, and NotFound when the master key is missing.
	VerifyDataKey(ctx context.Context, req OpenRequest) error

	// ExportDataKey re-encrypts the data key in a blob under a recipient's public key.
	// Kinds of error: those of VerifyDataKey, DataKeyTooLong and NotSupported.
	ExportDataKey(ctx context.Context, req ExportRequest) (ExportedDataKey, error)

	// Close releases what the module holds. Nothing may be called after it.
	Close() error
}

// Info identifies a module, as it names itself.
type Info struct {
	Library      string // the library, or "software"
	Manufacturer string
	Model        string
	Serial       string
	Firmware     string
}

// Capability is one thing that a module was seen to do, and where plaintext is meanwhile.
type Capability struct {
	Operation Operation
	// Algorithm is a KeySpec for MasterKey, a wrapping algorithm for Import and Export, and the
	// data-key encryption (a ciphertext scheme's name) for Generate.
	Algorithm string
	Custody   Custody
}

// Operation names what a capability is about.
type Operation string

// The operations of a capability.
const (
	OperationMasterKey Operation = "MasterKey"
	OperationImport    Operation = "Import"
	OperationGenerate  Operation = "Generate"
	OperationExport    Operation = "Export"
)

// Custody says where plaintext key bytes existed.
type Custody string

// The custodies, best first.
const (
	// CustodyModule: only inside the cryptographic module.
	CustodyModule Custody = "Module"
	// CustodyHost: for the time of one call in the operator's memory, because the module lacks a
	// mechanism.
	CustodyHost Custody = "Host"
	// CustodySoftware: in the embedded store.
	CustodySoftware Custody = "Software"
)

// KeySpec is the type of a master key.
type KeySpec string

// The master key types (the seeds write Aliyun_ before them).
const (
	AES128 KeySpec = "AES_128"
	AES192 KeySpec = "AES_192"
	AES256 KeySpec = "AES_256"
	SM4    KeySpec = "SM4"
)

// KeySpecs lists every master key type.
func KeySpecs() []KeySpec { return []KeySpec{AES128, AES192, AES256, SM4} }

// Len is the length of the key's material in bytes, or 0 for an unknown type.
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

// MaxOwnerLen is the longest owner of a key: that of a Kubernetes namespace.
const MaxOwnerLen = 63

// CheckOwner refuses an owner that cannot be kept with a key, with NotSupported.
func CheckOwner(owner string) error {
	printable := func(r rune) bool { return r >= '!' && r <= '~' }
	if len(owner) > MaxOwnerLen || strings.ContainsFunc(owner, func(r rune) bool { return !printable(r) }) {
		return Errorf(NotSupported, "a key's owner is named by at most %d printable ASCII characters without blanks", MaxOwnerLen)
	}
	return nil
}

// MaxDataKeyLen is the longest data key in bytes (NumberOfBytes of GenerateDataKeyWithoutPlaintext).
const MaxDataKeyLen = 1024

// FingerprintLabel is the one block over which a material fingerprint is taken.
const FingerprintLabel = "keyconvoy.io/fp1"

// Fingerprint is the CMAC (NIST SP 800-38B, with AES or SM4) of FingerprintLabel under a key's
// material: equal for equal material in every module, and of no use to an attacker.
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

// WrappingKeyRequest asks for a pair under which key material is brought in.
type WrappingKeyRequest struct {
	ID       uuid.UUID // the pair's identifier, chosen by the caller
	Owner    uuid.UUID // the key for which it is made
	Spec     wrapping.KeySpec
	NotAfter time.Time // kept with the pair, to the second; the module does not enforce it
}

// WrappingKey is a pair in the module, as far as it may be seen.
type WrappingKey struct {
	ID        uuid.UUID
	Owner     uuid.UUID
	PublicKey *wrapping.PublicKey
	NotAfter  time.Time
}

// ImportRequest brings material in. The identifier of the key version is CKA_ID in a PKCS#11 module.
type ImportRequest struct {
	KeyVersionID      uuid.UUID
	Spec              KeySpec
	WrappingKey       uuid.UUID
	Algorithm         wrapping.Algorithm
	EncryptedMaterial []byte
	// Owner is in whose name the key is made, in at most MaxOwnerLen printable ASCII characters. It is
	// kept with the key.
	Owner string
	// Fingerprint is that of the material which the key was bound to by its first import; nil for
	// a first import. Other material is refused with OtherMaterial.
	Fingerprint *Fingerprint
}

// Key is a master key in the module, as far as it may be seen.
type Key struct {
	KeyVersionID uuid.UUID
	Spec         KeySpec
	Fingerprint  Fingerprint
	Owner        string // as it was when the key was made
	// Custody says where the material was while it came in. FindKey does not know it and leaves it
	// empty.
	Custody Custody
}

// GenerateRequest asks for a data key of Length random bytes (1 to MaxDataKeyLen).
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

// OpenRequest names a data key by its blob, and what it was bound to.
type OpenRequest struct {
	Blob    ciphertext.Blob
	Binding ciphertext.Binding
}

// ExportRequest asks for a data key under a recipient's public key.
type ExportRequest struct {
	OpenRequest
	Recipient *wrapping.PublicKey
	Algorithm wrapping.Algorithm
	SM2Format wrapping.SM2Format // for SM2PKE; empty means C1C3C2
}

// ExportedDataKey is a data key under the recipient's public key.
type ExportedDataKey struct {
	Ciphertext []byte
	Custody    Custody
}
