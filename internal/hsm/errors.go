package hsm

import (
	"errors"
	"fmt"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Kind is the kind of an error: it decides what a caller can do.
type Kind string

// The kinds of error.
const (
	// InvalidMaterial: the key material does not unwrap. All causes have the same kind and text, so that the error is no oracle.
	InvalidMaterial Kind = "InvalidMaterial"
	// MaterialLength: the material has another length than the key type.
	MaterialLength Kind = "MaterialLength"
	// OtherMaterial: the material differs from that of the key's first import, or the module has another key with the identifier.
	OtherMaterial Kind = "OtherMaterial"
	// InvalidBlob: the ciphertext blob does not open under this binding, whatever the cause.
	InvalidBlob Kind = "InvalidBlob"
	// DataKeyTooLong: the data key is longer than the recipient's key can wrap.
	DataKeyTooLong Kind = "DataKeyTooLong"
	// NotFound: the key or key pair is not in the module.
	NotFound Kind = "NotFound"
	// NotSupported: the module cannot run the operation, or the custody policy forbids the only way in which it can, or no
	// module can (the algorithm does not fit the key, for example).
	NotSupported Kind = "NotSupported"
	// Misconfigured: the module cannot be opened with this configuration (the token does not exist, two tokens match, the library
	// does not load, for example). A person must change the configuration.
	Misconfigured Kind = "Misconfigured"
	// Unavailable: the module does not respond, or fails a health check. Retry later.
	Unavailable Kind = "Unavailable"
	// Locked: the token rejected the PIN. Do not retry: attempts can lock the token.
	Locked Kind = "Locked"
	// PINUntried: the PIN was not tried, because few attempts are left, too many wrong PINs were presented, or another key store
	// is logged in with another PIN. A retry uses up no attempt.
	PINUntried Kind = "PINUntried"
	// WrongResult: a result of the module was wrong although it reported success, or the module responds and rejects what it did when
	// it was opened. Other results since the last check that it passed may be wrong, too.
	WrongResult Kind = "WrongResult"
	// Internal: any other error, for example a new key that is less protected than requested.
	Internal Kind = "Internal"
)

// Kinds lists every kind of error.
func Kinds() []Kind {
	return []Kind{
		InvalidMaterial, MaterialLength, OtherMaterial, InvalidBlob, DataKeyTooLong, NotFound, NotSupported, Misconfigured, Unavailable,
		Locked, PINUntried, WrongResult, Internal,
	}
}

// Error is the error of every Module method.
type Error struct {
	Kind Kind
	// Detail is the text for the user: what is wrong and what to do. It is the same in every retry. It has no secrets and no
	// text from outside, except that of the dynamic linker about a library. It may be empty.
	Detail string
	// After is the time after which a retry makes sense; 0 if that is unknown.
	After time.Duration
	// Err is the private cause, for the operator's log only.
	Err error
	// Probes are those of a self-test that ended with this error. The last one may not have returned.
	Probes []Probe
}

// Errorf returns an error with a public detail and no cause.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// Wrap returns an error with a private cause and an optional public detail.
func Wrap(kind Kind, cause error, detail string) *Error {
	return &Error{Kind: kind, Detail: detail, Err: cause}
}

// Errors of all modules. Their texts reveal neither the cause nor the module.
var (
	ErrInvalidMaterial = Errorf(InvalidMaterial, "the material does not unwrap under this wrapping key with this algorithm")
	ErrOtherMaterial   = Errorf(OtherMaterial, "the material differs from that of the key's first import")
	ErrInvalidBlob     = Errorf(InvalidBlob, "the blob does not open under this key and EncryptionContext")
	// ErrOtherKey is the error of a key that is to be generated and whose identifier another key has.
	ErrOtherKey = Errorf(OtherMaterial, "the module has another key with this identifier, which was not generated for this version")
	// ErrPKCS1v15Off is the error of an import with RSAES_PKCS1_V1_5 into a module without AllowPKCS1v15Import.
	ErrPKCS1v15Off = Errorf(NotSupported, "%s is not allowed because it enables padding-oracle attacks: use %s, or let the administrator of the key store allow it",
		wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA256)
)

// TooLongFor returns the error for a data key whose length in bytes is more than the recipient's key can wrap.
func TooLongFor(recipient wrapping.KeySpec, algorithm wrapping.Algorithm, length int) *Error {
	return Errorf(DataKeyTooLong, "the data key has %d bytes, and %s under %s can wrap at most %d: make it shorter, or use a longer RSA key or SM2",
		length, algorithm, recipient, wrapping.MaxLen(recipient, algorithm))
}

// Error implements error. The text is for logs.
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
