package wire

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Code is an error code of the protocol, in addition to those of the operations (kms.Code).
type Code string

// The error codes of the protocol, and of aliases, which only the gateway has.
const (
	UnknownAccessKey      Code = "InvalidAccessKeyId.NotFound"
	DisabledAccessKey     Code = "Forbidden.AccessKey"
	SignatureDoesNotMatch Code = "SignatureDoesNotMatch"
	IncompleteSignature   Code = "IncompleteSignature"
	ExpiredTimestamp      Code = "InvalidTimeStamp.Expired"
	NonceUsed             Code = "SignatureNonceUsed"
	InvalidVersion        Code = "InvalidVersion"
	UnknownAction         Code = "InvalidAction.NotFound"
	UnsupportedMethod     Code = "UnsupportedHTTPMethod"
	AliasNotFound         Code = "Forbidden.AliasNotFound"
	AliasAlreadyExists    Code = "AliasAlreadyExists"
	LimitExceeded         Code = "Rejected.LimitExceeded"
)

// codes has the HTTP status and the message of each code.
var codes = map[Code]struct {
	status  int
	message string
}{
	UnknownAccessKey:      {http.StatusNotFound, "The Access Key ID provided does not exist in our records."},
	DisabledAccessKey:     {http.StatusForbidden, "This AccessKey is not enabled."},
	SignatureDoesNotMatch: {http.StatusBadRequest, "Specified signature is not matched with our calculation."},
	IncompleteSignature:   {http.StatusBadRequest, "The request signature does not conform to the documented standards."},
	ExpiredTimestamp:      {http.StatusBadRequest, "Specified time stamp or date value is expired."},
	NonceUsed:             {http.StatusBadRequest, "Specified signature nonce was used already."},
	InvalidVersion:        {http.StatusBadRequest, "Specified parameter Version is not valid."},
	UnknownAction:         {http.StatusNotFound, "Specified api is not found, please check your url and method."},
	UnsupportedMethod:     {http.StatusForbidden, "This http method is not supported."},
	AliasNotFound:         {http.StatusNotFound, "The specified Alias is not found."},
	AliasAlreadyExists:    {http.StatusBadRequest, "AliasName Already Exists."},
	LimitExceeded:         {http.StatusBadRequest, "The request was rejected because user create resource limit was exceeded."},
}

// Error is an error of the protocol.
type Error struct {
	Code Code
	// Detail follows the documented message.
	Detail string
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.message() }

func (e *Error) message() string {
	message := codes[e.Code].message
	if e.Detail == "" {
		return message
	}
	return message + " " + e.Detail
}

// failure is an error as it is sent.
type failure struct {
	status  int
	code    string
	message string
}

// failureOf returns what is sent for an error. Of an error of unknown type, nothing is sent.
func failureOf(err error) failure {
	var protocol *Error
	if errors.As(err, &protocol) {
		return failure{codes[protocol.Code].status, string(protocol.Code), protocol.message()}
	}
	var operation *kms.Error
	if !errors.As(err, &operation) {
		operation = &kms.Error{Code: kms.InternalFailure}
	}
	return failure{operation.Code.HTTPStatus(), string(operation.Code), operation.Message()}
}

// CodeOf returns the code that is sent for an error, or "OK".
func CodeOf(err error) string {
	if err == nil {
		return "OK"
	}
	return failureOf(err).code
}

func invalid(parameter, format string, args ...any) error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: parameter, Detail: fmt.Sprintf(format, args...)}
}

func missing(parameter string) error {
	return &kms.Error{Code: kms.MissingParameter, Parameter: parameter}
}

func throttled(detail string) error {
	return &kms.Error{Code: kms.RejectedThrottling, Detail: detail}
}
