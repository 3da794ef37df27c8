package kms

import (
	"net/http"
	"strings"
	"time"
)

// Code is an error code of the documented API (API version 2016-01-20).
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

// Repair is what ends an error, and therefore what a caller does next.
type Repair int

const (
	// ByUser means that the user must change the request or something else.
	ByUser Repair = iota
	// ByWaiting means that time, or a change of another object, ends the error.
	ByWaiting
	// ByRetry means that the error can end at any time: retry the same request, with backoff.
	ByRetry
)

// codeInfo describes a code.
type codeInfo struct {
	status  int    // HTTP status
	message string // as documented
	repair  Repair
	// retry is the time until a retry without a watch event, because the content of a module cannot be watched. Zero
	// means never.
	retry  time.Duration
	remedy string // what to do, in Markdown, for docs/reasons.md
}

const notExpected = "Should not occur. Please report it with the operator's log."

// codes is the only table of error codes: conditions, retries and docs/reasons.md are derived from it.
var codes = map[Code]codeInfo{
	InvalidParameter: {
		status: http.StatusBadRequest, message: "The specified parameter is not valid.",
		remedy: "Correct the field that the message names. A blob that cannot be decrypted is damaged, or belongs to another key or EncryptionContext.",
	},
	MissingParameter: {
		status: http.StatusBadRequest, message: `The parameter "<name>" is needed but not provided.`,
		remedy: "Set the parameter that the message names.",
	},
	InvalidKeyMaterial: {
		status: http.StatusBadRequest, message: "key material is invalid",
		remedy: "Wrap the material again, with the algorithm and length that the key requires. The material must be the same as the first time: a key never accepts other material. For an adopted key, `adopt.materialFingerprint` is not the fingerprint of the key in the module.",
	},
	InvalidImportToken: {
		status: http.StatusBadRequest, message: "import token is invalid",
		remedy: "Take the public key and the token from `status.importParameters` together, and wrap the material again.",
	},
	ExpiredImportToken: {
		status: http.StatusBadRequest, message: "import token is expired",
		remedy: "Request new parameters with the annotation `keyconvoy.io/renew-import-parameters` and wrap the material again. A token is valid for 24 hours.",
	},
	UnsupportedOrigin: {
		status: http.StatusBadRequest, message: "This key origin is not valid for this api",
		remedy: notExpected,
	},
	UnsupportedOperation: {
		status: http.StatusBadRequest, message: "This action is not supported.",
		remedy: "The module cannot do this, or `custody: ModuleOnly` forbids doing it outside of the module, or PKCS#1 v1.5 is not allowed. Choose from `status.capabilities` of the key store.",
	},
	ForbiddenNoPermission: {
		status: http.StatusForbidden, message: "This operation is forbidden by permission system.",
		remedy: "Ask the key's owner (`spec.exportPolicy`: namespace, recipient, algorithm) or the administrator of the ClusterKeyStore (`spec.allowedNamespaces`); the message says which. The operator deletes a Secret that was exported before. In `status.failures`: the API server refused to create the ExportedDataKey. [Roles and consent](roles-and-consent.md)",
	},
	ForbiddenKeyNotFound: {
		status: http.StatusNotFound, message: "The specified Key is not found.",
		remedy: "The key was destroyed at the end of its deletion window, and its data keys are lost. Delete the object.",
	},
	ForbiddenKeyVersionNotFound: {
		status: http.StatusNotFound, message: "The specified Key version is not found.",
		repair: ByWaiting, retry: time.Minute,
		remedy: "The module has no such key, or the key was imported from a namespace with another name, or no object holds it. Restore the ImportedKey with `adopt.keyVersionID` and, if the module lost the key, `adopt.materialFingerprint`, or the GeneratedKey with `adopt.keyVersionIDs`. If the message says that a data key is being moved, see its DataKey: [Backup and restore](backup-and-restore.md).",
	},
	RejectedDisabled: {
		status: http.StatusConflict, message: "The request was rejected because the key state is Disabled.",
		repair: ByWaiting,
		remedy: "Set the key's `desiredState` to `Enabled`.",
	},
	RejectedPendingDeletion: {
		status: http.StatusConflict, message: "The request was rejected because the key state is PendingDeletion.",
		repair: ByWaiting,
		remedy: "Set the key's `desiredState` to `Enabled` before `status.deletionTime`.",
	},
	RejectedPendingImport: {
		status: http.StatusConflict, message: "The request was rejected because the key state is PendingImport.",
		repair: ByWaiting,
		remedy: "Import the key's material (again).",
	},
	RejectedUnavailable: {
		status: http.StatusConflict, message: "The request was rejected because the key state is Unavailable.",
		repair: ByWaiting,
		remedy: notExpected,
	},
	RejectedStateModifiedFailed: {
		status: http.StatusConflict, message: "Keystate modified failed.",
		remedy: notExpected,
	},
	RejectedThrottling: {
		status: http.StatusTooManyRequests, message: "QPS Limit Exceeded",
		repair: ByWaiting, retry: 10 * time.Minute,
		remedy: "There are as many pairs of import parameters as allowed. Use those that are published, or wait until some have expired.",
	},
	InternalFailure: {
		status: http.StatusInternalServerError, message: "Internal Failure.",
		repair: ByRetry,
		remedy: "See the operator's log. If a record of the software store does not open, restore it from a backup.",
	},
	ServiceUnavailableTemporary: {
		status: http.StatusServiceUnavailable, message: "Service Unavailable Temporary.",
		repair: ByRetry,
		remedy: "Check that the module is running and reachable. The operator retries.",
	},
	// The API documents the codes of dry runs without messages.
	DryRunOperationError: {
		status: http.StatusBadRequest, message: "The request passes the dry run.",
		remedy: "The export would succeed. Set `dryRun: false` to export.",
	},
	ValidationError: {
		status: http.StatusBadRequest, message: "A parameter value in the request is invalid.",
		remedy: "Dry run: a parameter is wrong, or the key's state does not allow the export. The message has the error in which an export would end.",
	},
	AccessDeniedError: {
		status: http.StatusBadRequest, message: "You do not have the permissions to access the resources that you want to manage.",
		remedy: "Dry run: consent is missing, or the key does not exist. The message has the error in which an export would end.",
	},
}

// Codes lists every error code.
func Codes() []Code {
	all := make([]Code, 0, len(codes))
	for code := range codes {
		all = append(all, code)
	}
	return all
}

// HTTPStatus is the HTTP status of a response with the code.
func (c Code) HTTPStatus() int { return codes[c].status }

// Message is the documented message.
func (c Code) Message() string { return codes[c].message }

// Repair is what ends an error with the code.
func (c Code) Repair() Repair { return codes[c].repair }

// RetryAfter is the time until a retry without a watch event, or zero for never. With ByRetry the caller's backoff
// decides.
func (c Code) RetryAfter() time.Duration { return codes[c].retry }

// Remedy is what to do about an error with the code, in Markdown.
func (c Code) Remedy() string { return codes[c].remedy }

// Reason is the code as a condition's reason: without its dots.
func (c Code) Reason() string { return strings.ReplaceAll(string(c), ".", "") }
