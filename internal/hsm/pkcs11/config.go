// Package pkcs11 implements a cryptographic module on a token of any PKCS#11 library (version 2.40 or later).
//
// Every key operation runs inside the token if the token supports it. Otherwise one step runs on the host, if the configured
// custody allows that. A self-test finds out which when the module is opened: it runs each operation and checks the result
// with independent code, because mechanism lists and return codes are only hints.
//
// The subpackage token has the connection: library, login, sessions and recovery. This package has the operations, the
// templates of their keys, and the self-test, which runs these operations.
package pkcs11

import "github.com/keyconvoy/keyconvoy/internal/hsm"

// Config is an hsm.Config with the library that its name stands for.
type Config struct {
	hsm.Config
	// Path is the path of the shared library, or its name for the dynamic linker.
	Path string
	// Parameters is the reserved string of CK_C_INITIALIZE_ARGS, which NSS requires; or "".
	Parameters string
	// Watch, if not nil, is called before each call into the library, with the name of the function, and what it returns after
	// the call. It must be the same for all tokens of a library.
	Watch func(function string) (end func())
}
