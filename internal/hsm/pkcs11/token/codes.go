//go:build cgo

package token

import (
	"errors"
	"slices"

	p11 "github.com/miekg/pkcs11"
)

// Class is what a return code means for the next step.
type Class int

// The classes of return codes.
const (
	// Rejected: the token understood the call and rejected it; a retry changes nothing.
	Rejected Class = iota
	// InvalidInput: the input is invalid, and the token works.
	InvalidInput
	// StaleHandle: an object handle is invalid.
	StaleHandle
	// ConnectionLost: the session, the login, the token or the library is lost.
	ConnectionLost
	// Ambiguous: an invalid input and a failed device both give this code.
	Ambiguous
	// Exhausted: memory or sessions are lacking for now. No input is to blame.
	Exhausted
)

// codeClasses lists the standard codes whose class is not Rejected (PKCS #11 v2.40 base, section 5.1). Modules differ widely in
// their answer to an invalid ciphertext, so only codes with no other meaning are InvalidInput.
var codeClasses = map[p11.Error]Class{
	p11.CKR_DATA_INVALID:                  InvalidInput,
	p11.CKR_DATA_LEN_RANGE:                InvalidInput,
	p11.CKR_ENCRYPTED_DATA_INVALID:        InvalidInput,
	p11.CKR_ENCRYPTED_DATA_LEN_RANGE:      InvalidInput,
	p11.CKR_WRAPPED_KEY_INVALID:           InvalidInput,
	p11.CKR_WRAPPED_KEY_LEN_RANGE:         InvalidInput,
	p11.CKR_KEY_SIZE_RANGE:                InvalidInput,
	p11.CKR_UNWRAPPING_KEY_SIZE_RANGE:     InvalidInput,
	p11.CKR_OBJECT_HANDLE_INVALID:         StaleHandle,
	p11.CKR_KEY_HANDLE_INVALID:            StaleHandle,
	p11.CKR_WRAPPING_KEY_HANDLE_INVALID:   StaleHandle,
	p11.CKR_UNWRAPPING_KEY_HANDLE_INVALID: StaleHandle,
	p11.CKR_DEVICE_ERROR:                  ConnectionLost,
	p11.CKR_DEVICE_REMOVED:                ConnectionLost,
	p11.CKR_TOKEN_NOT_PRESENT:             ConnectionLost,
	p11.CKR_TOKEN_NOT_RECOGNIZED:          ConnectionLost,
	p11.CKR_SLOT_ID_INVALID:               ConnectionLost,
	p11.CKR_SESSION_HANDLE_INVALID:        ConnectionLost,
	p11.CKR_SESSION_CLOSED:                ConnectionLost,
	p11.CKR_CRYPTOKI_NOT_INITIALIZED:      ConnectionLost,
	p11.CKR_USER_NOT_LOGGED_IN:            ConnectionLost,
	p11.CKR_GENERAL_ERROR:                 Ambiguous,
	p11.CKR_FUNCTION_FAILED:               Ambiguous,
	p11.CKR_FUNCTION_CANCELED:             Ambiguous,
	p11.CKR_CANCEL:                        Ambiguous,
	p11.CKR_HOST_MEMORY:                   Exhausted,
	p11.CKR_DEVICE_MEMORY:                 Exhausted,
	p11.CKR_OPERATION_ACTIVE:              Ambiguous,
	p11.CKR_OPERATION_NOT_INITIALIZED:     Ambiguous,
	p11.CKR_SESSION_COUNT:                 Exhausted,
	p11.CKR_ARGUMENTS_BAD:                 Ambiguous, // what NSS returns after C_Finalize
}

// ClassOf returns the class of the return code in err's chain, or Rejected for an error without one.
func ClassOf(err error) Class {
	var code p11.Error
	if !errors.As(err, &code) {
		return Rejected
	}
	if class, ok := codeClasses[code]; ok {
		return class
	}
	if code >= p11.CKR_VENDOR_DEFINED {
		return Ambiguous
	}
	return Rejected
}

// DeniesKey returns whether a token returned that a key does not exist, or is not what it must be. If it created that key a moment
// ago, and does so again after a reconnect, then it returns wrong handles.
func DeniesKey(err error) bool {
	return ClassOf(err) == StaleHandle || HasCode(err,
		p11.CKR_ATTRIBUTE_SENSITIVE, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_KEY_FUNCTION_NOT_PERMITTED, p11.CKR_KEY_NOT_WRAPPABLE,
		p11.CKR_KEY_TYPE_INCONSISTENT, p11.CKR_KEY_UNEXTRACTABLE, p11.CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, p11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT)
}

// HasCode returns whether err's chain has one of these return codes.
func HasCode(err error, codes ...p11.Error) bool {
	var code p11.Error
	return errors.As(err, &code) && slices.Contains(codes, code)
}
