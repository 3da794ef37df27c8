package hsm

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Provider opens modules, in this process as package inprocess does, or in others.
type Provider interface {
	// Open opens a module and runs its self-test. The module lives longer than ctx. Every error is an *Error.
	Open(ctx context.Context, cfg Config) (Module, error)
}

// Lister lists the tokens of a PKCS#11 library, as a provider does that can open them.
type Lister interface {
	// List returns what the library of that name reports about itself and its tokens. It logs in to none. Every error is an
	// *Error.
	List(ctx context.Context, library string) (LibraryInfo, error)
}

// LibraryInfo is what a PKCS#11 library reports about itself, without padding. The text is that of the library, so it may contain
// anything.
type LibraryInfo struct {
	Manufacturer string
	Description  string
	Version      string
	Cryptoki     string // the version of PKCS #11
	Tokens       []TokenInfo
}

// TokenInfo is what a token reports about itself, without padding.
type TokenInfo struct {
	Slot         uint
	Label        string // "" for a token that is not initialized
	Manufacturer string
	Model        string
	Serial       string
	Firmware     string

	Initialized    bool
	LoginRequired  bool
	PINInitialized bool // there is a user PIN
	PINCountLow    bool // the user PIN was wrong at least once since the last login
	PINFinalTry    bool // one more wrong user PIN locks it
	PINLocked      bool
	PINPad         bool // the user types the PIN at the device
	WriteProtected bool
}

// Config identifies a module and how to use it.
type Config struct {
	// Library is the name under which the administrator allowed a PKCS#11 library; "" means a software store.
	Library string
	// Token selects the token after each C_Initialize, which may change slot numbers.
	Token TokenSelector
	// PIN is the user PIN; nil for tokens without login. Open copies it.
	PIN redact.WireBytes
	// PINOrigin identifies the namespace and the Secret of the PIN.
	PINOrigin pins.Origin
	// MaxSessions bounds the operations at a time; 0 means 8.
	MaxSessions int
	// Custody is the weakest custody that is allowed with a token: CustodyModule or CustodyHost. Any other value means
	// CustodyModule.
	Custody Custody
	// AllowPKCS1v15Import allows imports with RSAES_PKCS1_V1_5, which is inherently a padding oracle.
	AllowPKCS1v15Import bool
	// ReadOnly opens a token for its self-test only: sessions are read-only, so nothing in the token changes, and operations that
	// create or destroy keys fail.
	ReadOnly bool

	// The fields above are plain values, which can be sent to another process. A module calls the fields below; for a module in
	// another process, the provider forwards these calls to this process.

	// PINs decides whether the PIN may be tried; nil means a guard in memory, which the process shares.
	PINs pins.Authority `cbor:"-"`
	// Storage stores the sealed keys of a software store.
	Storage Storage `cbor:"-"`
	// Lost, if not nil, is called once if the module cannot be used any longer, because its process ended. Calls in progress
	// and later ones fail with the same error. Close the module and open it again. Lost must not block.
	Lost func(*Error) `cbor:"-"`
}

// TokenSelector selects a token by the label, serial number and model that it reports, without leading and trailing blanks and
// NULs. Label is required. An empty Serial or Model matches any.
type TokenSelector struct {
	Label  string
	Serial string
	Model  string
}

// Storage stores the records of a software store. The operator's implementation stores them in Secrets. Except for the root key,
// it sees only ciphertext. It is safe for concurrent use.
//
// If its error is an *Error, the module returns it. Any other error becomes Unavailable.
type Storage interface {
	// RootKey returns the root key, 32 bytes, which the caller wipes. The implementation generates it on first use and tells the
	// administrator. It should not generate one if sealed records exist.
	RootKey(ctx context.Context) (redact.Bytes, error)
	// Load returns all sealed records by name.
	Load(ctx context.Context) (map[string][]byte, error)
	// Read returns a record, or nil if it does not exist.
	Read(ctx context.Context, name string) ([]byte, error)
	// Create creates a record, or returns the existing record of that name. Names are DNS labels.
	Create(ctx context.Context, name string, sealed []byte) (existing []byte, err error)
	// Save creates or replaces a record.
	Save(ctx context.Context, name string, sealed []byte) error
	// Delete deletes a record. It returns nil if the record does not exist.
	Delete(ctx context.Context, name string) error
	// DeleteRootKey deletes the root key. It fails if a record exists, and returns nil if the root key does not.
	DeleteRootKey(ctx context.Context) error
}

// Notifier is a Storage that reports which records other processes delete, so that a module can wipe them from its memory.
type Notifier interface {
	// OnDelete calls a function with the name of each record that is deleted, until ignore is called.
	OnDelete(deleted func(name string)) (ignore func())
}
