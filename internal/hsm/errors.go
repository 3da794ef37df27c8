package hsm

import (
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error.
type Kind string

// The kinds of error.
const (
	// InvalidMaterial: key material that does not unwrap. One kind for every cause inside the
	// unwrap, so that it is no oracle.
	InvalidMaterial Kind = "InvalidMaterial"
	// MaterialLength: material that unwraps to a length which the key type does not have.
	MaterialLength Kind = "MaterialLength"
	// OtherMaterial: material other than that which the key was bound to by its first import.
	OtherMaterial Kind = "OtherMaterial"
	// InvalidBlob: a ciphertext blob that does not open under this binding, for whatever cause.
	InvalidBlob Kind = "InvalidBlob"
	// DataKeyTooLong: a data key longer than the recipient's key can wrap.
	DataKeyTooLong Kind = "DataKeyTooLong"
	// NotFound: the key or pair is not in the module.
	NotFound Kind = "NotFound"
	// NotSupported: the module cannot do it, or the custody policy forbids the only way it can, or
	// no module could (an algorithm that does not fit the key).
	NotSupported Kind = "NotSupported"
	// Misconfigured: the module cannot be opened as configured; somebody must change the
	// configuration (no such token, two that match, a library that does not load).
	Misconfigured Kind = "Misconfigured"
	// Unavailable: the module does not answer; try again later.
	Unavailable Kind = "Unavailable"
	// Locked: the PIN was refused or may not be tried. Never retry: tries lock the token.
	Locked Kind = "Locked"
	// PINUntried: the PIN was not tried, because few tries are left or another key store is logged in
	// with another PIN. Asking again later costs no try.
	PINUntried Kind = "PINUntried"
	// Internal: anything else, such as a key that came out weaker than asked.
	Internal Kind = "Internal"
)

// Error is what every Module method fails with.
type Error struct {
	Kind Kind
	// Detail is safe for a user to see and does not vary between tries: what is wrong and what to
	// do. It holds nothing secret and no text from the module. It may be empty.
	Detail string
	// Err is the private cause, for the operator's log only.
	Err error
}

// Errorf makes an error with a public detail and no cause.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// Wrap makes an error of that kind from a private cause, with an optional public detail.
func Wrap(kind Kind, cause error, detail string) *Error {
	return &Error{Kind: kind, Detail: detail, Err: cause}
}

// Error implements error: it is for logs.
func (e *Error) Error() string {
	s := string(e.Kind)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first *Error in err's chain, Internal for any other error, and ""
// for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}
