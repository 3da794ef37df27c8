//go:build cgo

package pkcs11

import (
	"errors"

	p11 "github.com/miekg/pkcs11"
)

// class says what a return code means for what is done next.
type class int

const (
	// refused: the call was understood and refused; doing it again changes nothing.
	refused class = iota
	// badInput: the code says by itself that the bytes are wrong; the module is well.
	badInput
	// staleHandle: an object is not where it was.
	staleHandle
	// lost: session, login, token or library are gone.
	lost
	// ambiguous: a bad input and a dead device both give it.
	ambiguous
)

// codeClasses lists the codes that are not refused and, where they are standard, not ambiguous
// (PKCS #11 v2.40 base, section 5.1). Modules differ widely in what they answer to a bad ciphertext, so
// only codes that can mean nothing else are badInput.
var codeClasses = map[p11.Error]class{
	p11.CKR_DATA_INVALID:                  badInput,
	p11.CKR_DATA_LEN_RANGE:                badInput,
	p11.CKR_ENCRYPTED_DATA_INVALID:        badInput,
	p11.CKR_ENCRYPTED_DATA_LEN_RANGE:      badInput,
	p11.CKR_WRAPPED_KEY_INVALID:           badInput,
	p11.CKR_WRAPPED_KEY_LEN_RANGE:         badInput,
	p11.CKR_KEY_SIZE_RANGE:                badInput,
	p11.CKR_UNWRAPPING_KEY_SIZE_RANGE:     badInput,
	p11.CKR_OBJECT_HANDLE_INVALID:         staleHandle,
	p11.CKR_KEY_HANDLE_INVALID:            staleHandle,
	p11.CKR_WRAPPING_KEY_HANDLE_INVALID:   staleHandle,
	p11.CKR_UNWRAPPING_KEY_HANDLE_INVALID: staleHandle,
	p11.CKR_DEVICE_ERROR:                  lost,
	p11.CKR_DEVICE_REMOVED:                lost,
	p11.CKR_TOKEN_NOT_PRESENT:             lost,
	p11.CKR_TOKEN_NOT_RECOGNIZED:          lost,
	p11.CKR_SLOT_ID_INVALID:               lost,
	p11.CKR_SESSION_HANDLE_INVALID:        lost,
	p11.CKR_SESSION_CLOSED:                lost,
	p11.CKR_CRYPTOKI_NOT_INITIALIZED:      lost,
	p11.CKR_USER_NOT_LOGGED_IN:            lost,
	p11.CKR_GENERAL_ERROR:                 ambiguous,
	p11.CKR_FUNCTION_FAILED:               ambiguous,
	p11.CKR_FUNCTION_CANCELED:             ambiguous,
	p11.CKR_CANCEL:                        ambiguous,
	p11.CKR_HOST_MEMORY:                   ambiguous,
	p11.CKR_DEVICE_MEMORY:                 ambiguous,
	p11.CKR_OPERATION_ACTIVE:              ambiguous,
	p11.CKR_OPERATION_NOT_INITIALIZED:     ambiguous,
	p11.CKR_SESSION_COUNT:                 ambiguous,
	p11.CKR_ARGUMENTS_BAD:                 ambiguous, // what NSS answers after C_Finalize
}

// classOf returns the class of the return code in err's chain; what is no return code is refused.
func classOf(err error) class {
	var code p11.Error
	if !errors.As(err, &code) {
		return refused
	}
	if c, ok := codeClasses[code]; ok {
		return c
	}
	if code >= p11.CKR_VENDOR_DEFINED {
		return ambiguous
	}
	return refused
}

// isCode says whether err's chain holds one of these return codes.
func isCode(err error, codes ...p11.Error) bool {
	var code p11.Error
	if !errors.As(err, &code) {
		return false
	}
	for _, c := range codes {
		if code == c {
			return true
		}
	}
	return false
}
