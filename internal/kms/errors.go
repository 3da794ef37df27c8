package kms

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Code is an error code of the seeds' API.
type Code string

// The error codes.
const (
	InvalidParameter            Code = "InvalidParameter"
	MissingParameter            Code = "MissingParameter"
	InvalidKeyMaterial          Code = "InvalidKeyMaterial"
	InvalidImportToken          Code = "InvalidImportToken"
	ExpiredImportToken          Code = "ExpiredImportToken"
	UnsupportedOrigin           Code = "Unsupported.Origin"
	UnsupportedOperation        Code = "UnsupportedOperation"
	ForbiddenNoPermission       Code = "Forbidden.NoPermission"
	ForbiddenKeyNotFound        Code = "Forbidden.KeyNotFound"
	ForbiddenKeyVersionNotFound Code = "Forbidden.KeyVersionNotFound"
	RejectedDisabled            Code = "Rejected.Disabled"
	RejectedPendingDeletion     Code = "Rejected.PendingDeletion"
	RejectedPendingImport       Code = "Rejected.PendingImport"
	RejectedUnavailable         Code = "Rejected.Unavailable"
	RejectedStateModifiedFailed Code = "Rejected.StateModifiedFailed"
	RejectedThrottling          Code = "Rejected.Throttling"
	InternalFailure             Code = "InternalFailure"
	ServiceUnavailableTemporary Code = "ServiceUnavailableTemporary"
	// A dry run always ends in one of these.
	DryRunOperationError Code = "DryRunOperationError"
	ValidationError      Code = "ValidationError"
	AccessDeniedError    Code = "AccessDeniedError"
)

type documented struct {
	status  int
	message string
}

var codes = map[Code]documented{
	InvalidParameter:            {http.StatusBadRequest, "The specified parameter is not valid."},
	MissingParameter:            {http.StatusBadRequest, `The parameter "<name>" is needed but not provided.`},
	InvalidKeyMaterial:          {http.StatusBadRequest, "key material is invalid"},
	InvalidImportToken:          {http.StatusBadRequest, "import token is invalid"},
	ExpiredImportToken:          {http.StatusBadRequest, "import token is expired"},
	UnsupportedOrigin:           {http.StatusBadRequest, "This key origin is not valid for this api"},
	UnsupportedOperation:        {http.StatusBadRequest, "This action is not supported."},
	ForbiddenNoPermission:       {http.StatusForbidden, "This operation is forbidden by permission system."},
	ForbiddenKeyNotFound:        {http.StatusNotFound, "The specified Key is not found."},
	ForbiddenKeyVersionNotFound: {http.StatusNotFound, "The specified Key version is not found."},
	RejectedDisabled:            {http.StatusConflict, "The request was rejected because the key state is Disabled."},
	RejectedPendingDeletion:     {http.StatusConflict, "The request was rejected because the key state is PendingDeletion."},
	RejectedPendingImport:       {http.StatusConflict, "The request was rejected because the key state is PendingImport."},
	RejectedUnavailable:         {http.StatusConflict, "The request was rejected because the key state is Unavailable."},
	RejectedStateModifiedFailed: {http.StatusConflict, "Keystate modified failed."},
	RejectedThrottling:          {http.StatusTooManyRequests, "QPS Limit Exceeded"},
	InternalFailure:             {http.StatusInternalServerError, "Internal Failure."},
	ServiceUnavailableTemporary: {http.StatusServiceUnavailable, "Service Unavailable Temporary."},
	// The seeds document the codes of dry runs without messages.
	DryRunOperationError: {http.StatusBadRequest, "The request passes the dry run."},
	ValidationError:      {http.StatusBadRequest, "A parameter value in the request is invalid."},
	AccessDeniedError:    {http.StatusBadRequest, "You do not have the permissions to access the resources that you want to manage."},
}

// Codes lists every error code.
func Codes() []Code {
	all := make([]Code, 0, len(codes))
	for code := range codes {
		all = append(all, code)
	}
	return all
}

// HTTPStatus is the status with which the seeds' service answers.
func (c Code) HTTPStatus() int { return codes[c].status }

// Message is the message as documented.
func (c Code) Message() string { return codes[c].message }

// Reason is the code as a condition's reason: without its dots.
func (c Code) Reason() string { return strings.ReplaceAll(string(c), ".", "") }

// Error is what every operation fails with.
type Error struct {
	Code Code
	// Parameter is the request's parameter that is missing or wrong, in the seeds' spelling; it may
	// be empty.
	Parameter string
	// Detail says what is wrong and what to do. It is safe to show, bounded, and the same at every
	// try.
	Detail string
	// Err is the private cause, for the operator's log only.
	Err error
}

// Public is the message for people: code, documented message, and detail, as sentences. (Not every
// documented message ends as one, and a module's details do not begin as one.)
func (e *Error) Public() string {
	message := e.Code.Message()
	if e.Code == MissingParameter {
		message = fmt.Sprintf("The parameter %q is needed but not provided.", e.Parameter)
	}
	message = string(e.Code) + ": " + message
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

// stopped ends a sentence with a full stop, if it has none.
func stopped(sentence string) string { return strings.TrimSuffix(sentence, ".") + "." }

// Error implements error: it is for logs.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Public() + ": " + e.Err.Error()
	}
	return e.Public()
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// public is an error's message for people; of an error without one it says nothing.
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

// invalid makes an InvalidParameter that names the parameter.
func invalid(parameter, format string, args ...any) *Error {
	return &Error{Code: InvalidParameter, Parameter: parameter, Detail: fmt.Sprintf(format, args...)}
}

func missing(parameter string) *Error { return &Error{Code: MissingParameter, Parameter: parameter} }

// hsmCodes gives each kind of module error its code. NotFound has none of its own: it depends on what
// was looked for.
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
	hsm.Internal:        InternalFailure,
}

// FromModule turns a module's error into the operation's. It returns nil for nil.
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
	return out
}

// badBlob is the one answer to every blob that does not open, whatever the cause.
func badBlob(cause error) *Error {
	e := invalid("CiphertextBlob", "It does not open: it is damaged, was made under another key, "+
		"or with another EncryptionContext. Give the blob and the context as they were when the data key was made.")
	e.Err = cause
	return e
}
