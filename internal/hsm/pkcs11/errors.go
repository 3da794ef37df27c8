//go:build cgo

package pkcs11

import (
	"errors"
	"fmt"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// called says which function failed, for the log.
func called(function string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", function, err)
}

// inputError is a failed call that was given bytes from outside, which are the likeliest cause. It
// turns into its decision once it is clear that the module is well.
type inputError struct {
	decision *hsm.Error
	cause    error
}

// blameInput makes an inputError, where there is an error.
func blameInput(decision *hsm.Error, cause error) error {
	if cause == nil {
		return nil
	}
	return &inputError{decision: decision, cause: cause}
}

func (e *inputError) Error() string { return e.cause.Error() }
func (e *inputError) Unwrap() error { return e.cause }

// decide returns the decision with the cause for the log.
func (e *inputError) decide() *hsm.Error {
	return hsm.Wrap(e.decision.Kind, e.cause, e.decision.Detail)
}

// decided returns the *hsm.Error that err is by itself, or nil: a token that is not there may come
// back, and an input may not be to blame.
func decided(err error) *hsm.Error {
	var noToken *noTokenError
	var input *inputError
	if errors.As(err, &noToken) || errors.As(err, &input) {
		return nil
	}
	var e *hsm.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

const unavailableDetail = "the cryptographic module does not answer properly; it is tried again"

// unavailable is for a module that stays unwell. What a missing token says is worth seeing.
func unavailable(cause error) *hsm.Error {
	var noToken *noTokenError
	if errors.As(cause, &noToken) {
		return hsm.Wrap(hsm.Unavailable, cause, noToken.decision.Detail)
	}
	return hsm.Wrap(hsm.Unavailable, cause, unavailableDetail)
}

func errWaiting(cause error) *hsm.Error {
	return hsm.Wrap(hsm.Unavailable, cause, "the time was over before the cryptographic module had")
}

var (
	errClosed          = hsm.Errorf(hsm.Unavailable, "the key store's module is closed")
	errNoKey           = hsm.Errorf(hsm.NotFound, "the key is not in the token")
	errNoPair          = hsm.Errorf(hsm.NotFound, "the wrapping key pair is not in the token")
	errInvalidMaterial = hsm.Errorf(hsm.InvalidMaterial, "the material does not unwrap under this wrapping key with this algorithm")
	errOtherMaterial   = hsm.Errorf(hsm.OtherMaterial, "this is not the material that the key was first imported with")
	errInvalidBlob     = hsm.Errorf(hsm.InvalidBlob, "the blob does not open under this key and EncryptionContext")
	errNoSM            = "there are no mechanism numbers for %s that every PKCS#11 module shares: use a software key store for it"
)
