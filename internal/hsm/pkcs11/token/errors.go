//go:build cgo

package token

import (
	"errors"
	"fmt"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// functionError is the error of a PKCS#11 function.
type functionError struct {
	function string
	code     error
}

func (e *functionError) Error() string { return e.function + ": " + e.code.Error() }
func (e *functionError) Unwrap() error { return e.code }

// callError adds the name of the function that failed, for the log.
func callError(function string, err error) error {
	if err == nil {
		return nil
	}
	return &functionError{function: function, code: err}
}

// DescribeCode returns the function that failed and its return code by its standard name, such as "C_WrapKey:
// CKR_MECHANISM_INVALID", or "" for an error without a return code. It contains nothing else.
func DescribeCode(err error) string {
	var code p11.Error
	if !errors.As(err, &code) {
		return ""
	}
	name := nameOf(code)
	var call *functionError
	if errors.As(err, &call) {
		return call.function + ": " + name
	}
	return name
}

// nameOf returns the standard name of a return code, or the number of a vendor's code.
func nameOf(code p11.Error) string {
	if name, ok := furtherNames[code]; ok {
		return name
	}
	if _, name, ok := strings.Cut(code.Error(), ": CKR_"); ok {
		return "CKR_" + name
	}
	return fmt.Sprintf("%#x", uint(code))
}

// furtherNames are the names of standard codes that miekg/pkcs11 does not print.
var furtherNames = map[p11.Error]string{
	p11.CKR_ACTION_PROHIBITED:       "CKR_ACTION_PROHIBITED",
	p11.CKR_CURVE_NOT_SUPPORTED:     "CKR_CURVE_NOT_SUPPORTED",
	p11.CKR_EXCEEDED_MAX_ITERATIONS: "CKR_EXCEEDED_MAX_ITERATIONS",
	p11.CKR_FIPS_SELF_TEST_FAILED:   "CKR_FIPS_SELF_TEST_FAILED",
	p11.CKR_LIBRARY_LOAD_FAILED:     "CKR_LIBRARY_LOAD_FAILED",
	p11.CKR_PIN_TOO_WEAK:            "CKR_PIN_TOO_WEAK",
	p11.CKR_PUBLIC_KEY_INVALID:      "CKR_PUBLIC_KEY_INVALID",
	0x201:                           "CKR_TOKEN_RESOURCE_EXCEEDED", // PKCS #11 v3.0
	0x202:                           "CKR_OPERATION_CANCEL_FAILED",
	0x203:                           "CKR_KEY_EXHAUSTED",
}

// inputError is the failure of a call whose input came from outside and is the most likely cause. It becomes its decision
// when the token passes a health check.
type inputError struct {
	decision *hsm.Error
	cause    error
}

// BlameInput marks a failed call whose most likely cause is its input. Token.Do returns decision, with the cause for the log,
// if the token itself works. It returns nil for a nil cause.
func BlameInput(decision *hsm.Error, cause error) error {
	if cause == nil {
		return nil
	}
	return &inputError{decision: decision, cause: cause}
}

// InputBlamed returns whether a failed call is marked by BlameInput.
func InputBlamed(err error) bool {
	var input *inputError
	return errors.As(err, &input)
}

func (e *inputError) Error() string { return e.cause.Error() }
func (e *inputError) Unwrap() error { return e.cause }

// decide returns the decision with the cause for the log.
func (e *inputError) decide() *hsm.Error {
	return hsm.Wrap(e.decision.Kind, e.cause, e.decision.Detail)
}

// missingError means that no token matches the selector.
type missingError struct{ decision *hsm.Error }

func (e *missingError) Error() string { return e.decision.Error() }
func (e *missingError) Unwrap() error { return e.decision }

func isMissing(err error) bool {
	var e *missingError
	return errors.As(err, &e)
}

// finalError returns the *hsm.Error in err's chain if reconnecting cannot change it, or nil. A missing token may return, and
// an input may not be to blame.
func finalError(err error) *hsm.Error {
	if isMissing(err) || InputBlamed(err) {
		return nil
	}
	var e *hsm.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// asError makes any error an *hsm.Error.
func asError(err error) error {
	if err == nil {
		return nil
	}
	var e *hsm.Error
	if errors.As(err, &e) {
		return e
	}
	return hsm.Wrap(hsm.Internal, err, "")
}

const unavailableDetail = "the cryptographic module fails a health check: check the device and its connection"

// unavailableError is the error of a token that reconnecting did not repair. A missing token keeps its own text.
func unavailableError(cause error) *hsm.Error {
	var missing *missingError
	if errors.As(cause, &missing) {
		return hsm.Wrap(hsm.Unavailable, cause, missing.decision.Detail)
	}
	return hsm.Wrap(hsm.Unavailable, cause, unavailableDetail)
}

func timeoutError(cause error) *hsm.Error {
	return hsm.Wrap(hsm.Unavailable, cause, "the cryptographic module did not respond in time")
}

var errClosed = hsm.Errorf(hsm.Unavailable, "the key store's module is closed")
