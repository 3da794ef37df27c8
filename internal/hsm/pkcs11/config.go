// Package pkcs11 is a cryptographic module behind any PKCS#11 library (version 2.40 or later).
//
// Every key operation runs inside the token where the token can do it; where it cannot, and the
// configured custody allows it, one step runs on the host. Which is which a self-test finds out at
// opening, by doing each operation and opening its result with other code: mechanism lists and return
// codes are hints only.
//
// A library is initialised once per process, however many modules use it. Whatever a token hands out
// (handles, sessions, the slot's number) is good for one initialisation, called a generation here.
package pkcs11

import (
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Config says which token, and how.
type Config struct {
	// Library is the name under which the administrator allowed the library: for Info and messages.
	Library string
	// Path is the shared library's.
	Path string
	// Parameters is the reserved string of CK_C_INITIALIZE_ARGS, which NSS wants; or "".
	Parameters string
	// Token selects the token anew at every initialisation, since slot numbers change.
	Token TokenSelector
	// PIN is the user PIN; nil for tokens without login. Open copies it.
	PIN redact.Bytes
	// MaxSessions bounds the operations at once, 1 at the least; 0 means 8.
	MaxSessions int
	// Custody is the lowest custody allowed: hsm.CustodyModule or hsm.CustodyHost. Anything else
	// means hsm.CustodyModule, so that nothing is weakened by omission.
	Custody hsm.Custody
	// AllowPKCS1v15Import allows RSAES_PKCS1_V1_5 for material that is brought in. It is a padding
	// oracle by nature; absent means not.
	AllowPKCS1v15Import bool
}

// TokenSelector selects a token by what it says of itself; blanks and NULs around are ignored. Label
// is required; Serial and Model narrow it where they are given.
type TokenSelector struct {
	Label  string
	Serial string
	Model  string
}

// defaultMaxSessions is Config.MaxSessions where it is 0.
const defaultMaxSessions = 8
