package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Error is the error of every operation.
type Error struct {
	Code Code
	// Parameter is the missing or invalid parameter of the request, in the spelling of the documented API. It may be
	// empty.
	Parameter string
	// Detail says what is wrong and what to do. It is public, bounded, and the same at each attempt.
	Detail string
	// Err is the private cause, for the operator's log only.
	Err error
}

// Public returns the public message: the code and Message.
func (e *Error) Public() string { return string(e.Code) + ": " + e.Message() }

// Message returns the documented message and the detail, as sentences. (Some documented messages lack the full stop, and
// details of a module begin in lower case.)
func (e *Error) Message() string {
	message := e.Code.Message()
	if e.Code == MissingParameter {
		message = fmt.Sprintf("The parameter %q is needed but not provided.", e.Parameter)
	}
	if e.Code != MissingParameter && e.Parameter != "" {
		message = stopped(message) + " " + e.Parameter + ":"
	}
	if e.Detail == "" {
		return message
	}
	if strings.HasSuffix(message, ":") {
		return message + " " + stopped(e.Detail)
	}
	first, size := utf8.DecodeRuneInString(e.Detail)
	return stopped(message) + " " + string(unicode.ToUpper(first)) + stopped(e.Detail[size:])
}

// stopped adds a full stop to a sentence, if it has none.
func stopped(sentence string) string { return strings.TrimSuffix(sentence, ".") + "." }

// Error implements error. The text is for logs.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Public() + ": " + e.Err.Error()
	}
	return e.Public()
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// public returns the public message of an error, or "".
func public(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Public()
	}
	return ""
}

// CodeOf returns the code of the first *Error in err's chain, InternalFailure for any other error, and
// "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return InternalFailure
}

// invalid returns an InvalidParameter error for a parameter.
func invalid(parameter, format string, args ...any) *Error {
	return &Error{Code: InvalidParameter, Parameter: parameter, Detail: fmt.Sprintf(format, args...)}
}

func missing(parameter string) *Error { return &Error{Code: MissingParameter, Parameter: parameter} }

// hsmCodes maps kinds of module errors to codes.
var hsmCodes = map[hsm.Kind]Code{
	hsm.InvalidMaterial: InvalidKeyMaterial,
	hsm.MaterialLength:  InvalidKeyMaterial,
	hsm.OtherMaterial:   InvalidKeyMaterial,
	hsm.InvalidBlob:     InvalidParameter,
	hsm.DataKeyTooLong:  InvalidParameter,
	hsm.NotFound:        ForbiddenKeyVersionNotFound,
	hsm.NotSupported:    UnsupportedOperation,
	hsm.Misconfigured:   ServiceUnavailableTemporary,
	hsm.Unavailable:     ServiceUnavailableTemporary,
	hsm.Locked:          ServiceUnavailableTemporary,
	hsm.PINUntried:      ServiceUnavailableTemporary,
	hsm.WrongResult:     ServiceUnavailableTemporary,
	hsm.Internal:        InternalFailure,
}

// FromModule converts the error of a module to that of an operation. It returns nil for nil.
func FromModule(err error) error {
	if err == nil {
		return nil
	}
	code, listed := hsmCodes[hsm.KindOf(err)]
	if !listed {
		code = InternalFailure
	}
	out := &Error{Code: code, Err: err}
	var e *hsm.Error
	if errors.As(err, &e) {
		out.Detail = e.Detail
		if e.Kind == hsm.InvalidBlob {
			*out = *badBlob(err)
		}
	}
	if code == ServiceUnavailableTemporary && errors.Is(err, context.DeadlineExceeded) {
		out.Detail = "The cryptographic module did not respond in time."
	}
	return out
}

// badBlob is the same error for every blob that cannot be decrypted, so that it does not reveal the cause.
func badBlob(cause error) *Error {
	e := invalid("CiphertextBlob", "It cannot be decrypted: it is damaged, or belongs to another key "+
		"or another EncryptionContext. Use the blob and the context with which the data key was generated.")
	e.Err = cause
	return e
}
