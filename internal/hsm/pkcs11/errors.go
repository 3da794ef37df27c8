//go:build cgo

package pkcs11

import "github.com/keyconvoy/keyconvoy/internal/hsm"

var (
	errNoKey       = hsm.Errorf(hsm.NotFound, "the key is not in the token")
	errUnprotected = hsm.Errorf(hsm.Internal,
		"the key in the token is not sensitive and non-extractable, or has other usages than Keyconvoy gives its keys, so Keyconvoy does not use it: find out who created or changed it")
	errNoPair = hsm.Errorf(hsm.NotFound, "the wrapping key pair is not in the token")
)

// errNoSM is a format for the error of an operation with SM2 or SM4.
const errNoSM = "PKCS#11 modules have no common mechanism numbers for %s: use a software key store for it"
