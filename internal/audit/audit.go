// Package audit writes one line of JSON for each operation on a key: the object that requested it, the operation, the
// key, the recipient and the outcome. docs/audit-log.md describes each field.
//
// A line never contains a blob, key material or an EncryptionContext. Each field of a Record has one format, and
// values in other formats are omitted, so that a caller that passes the wrong variable does not publish it.
package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Format is the value of the field "audit", which distinguishes a line from other output of the operator. If the
// meaning of a field changes, the format must change; a new field does not change it.
const Format = "keyconvoy.io/v1"

// Operation is the name of an operation, as documented by the key management API if it has the operation.
type Operation string

// The operations.
const (
	GetParametersForImport          Operation = "GetParametersForImport"
	ImportKeyMaterial               Operation = "ImportKeyMaterial"
	AdoptKey                        Operation = "AdoptKey"
	DeleteKeyMaterial               Operation = "DeleteKeyMaterial"
	ExpireKeyMaterial               Operation = "ExpireKeyMaterial"
	DestroyImportParameters         Operation = "DestroyImportParameters"
	DestroyKey                      Operation = "DestroyKey"
	CreateKeyVersion                Operation = "CreateKeyVersion"
	GenerateDataKeyWithoutPlaintext Operation = "GenerateDataKeyWithoutPlaintext"
	ReEncrypt                       Operation = "ReEncrypt"
	TakeOverDataKey                 Operation = "TakeOverDataKey"
	ExportDataKey                   Operation = "ExportDataKey"
	WithdrawExport                  Operation = "WithdrawExport"
)

// The operations that only the gateway has.
const (
	CreateKey                Operation = "CreateKey"
	DescribeKey              Operation = "DescribeKey"
	ListKeys                 Operation = "ListKeys"
	ListKeyVersions          Operation = "ListKeyVersions"
	EnableKey                Operation = "EnableKey"
	DisableKey               Operation = "DisableKey"
	ScheduleKeyDeletion      Operation = "ScheduleKeyDeletion"
	CancelKeyDeletion        Operation = "CancelKeyDeletion"
	GenerateAndExportDataKey Operation = "GenerateAndExportDataKey"
	UpdateKeyDescription     Operation = "UpdateKeyDescription"
	TagResource              Operation = "TagResource"
	UntagResource            Operation = "UntagResource"
	ListResourceTags         Operation = "ListResourceTags"
	CreateAlias              Operation = "CreateAlias"
	UpdateAlias              Operation = "UpdateAlias"
	DeleteAlias              Operation = "DeleteAlias"
	ListAliases              Operation = "ListAliases"
	ListAliasesByKeyID       Operation = "ListAliasesByKeyId"
	// UnknownOperation is a request that was refused before its operation was known, or for an operation that the gateway does not
	// perform.
	UnknownOperation Operation = "Unknown"
)

// Operations lists every operation.
func Operations() []Operation {
	return []Operation{
		GetParametersForImport, ImportKeyMaterial, AdoptKey, DeleteKeyMaterial, ExpireKeyMaterial, DestroyImportParameters,
		DestroyKey, CreateKeyVersion, GenerateDataKeyWithoutPlaintext, ReEncrypt, TakeOverDataKey, ExportDataKey, WithdrawExport,
		CreateKey, DescribeKey, ListKeys, ListKeyVersions, EnableKey, DisableKey, ScheduleKeyDeletion, CancelKeyDeletion,
		GenerateAndExportDataKey, UpdateKeyDescription, TagResource, UntagResource, ListResourceTags, CreateAlias, UpdateAlias, DeleteAlias,
		ListAliases, ListAliasesByKeyID, UnknownOperation,
	}
}

// refusals are the outcomes of requests to the gateway that its protocol refuses, in addition to the codes of the operations.
var refusals = []kms.Code{
	"InvalidTimeStamp.Expired", "SignatureNonceUsed", "InvalidVersion", "InvalidAction.NotFound", "Forbidden.AccessKey",
	"Forbidden.AliasNotFound", "AliasAlreadyExists", "Rejected.LimitExceeded",
}

// Success is the outcome of an operation that did not fail.
const Success kms.Code = "Success"

// Object is the Kubernetes object that requested an operation.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// Record is one line.
type Record struct {
	Audit                string             `json:"audit"` // Write sets it
	Time                 time.Time          `json:"time"`  // when the operation began
	RequestID            string             `json:"requestID"`
	Operation            Operation          `json:"operation"`
	Object               Object             `json:"object"`
	KeyID                string             `json:"keyID,omitempty"`
	KeyVersionID         string             `json:"keyVersionID,omitempty"`
	FormerKeyVersionID   string             `json:"formerKeyVersionID,omitempty"` // of a data key that is re-encrypted
	RecipientFingerprint string             `json:"recipientFingerprint,omitempty"`
	Algorithm            wrapping.Algorithm `json:"algorithm,omitempty"`
	Custody              hsm.Custody        `json:"custody,omitempty"`
	AccessKeyID          string             `json:"accessKeyID,omitempty"`   // of a request to the gateway
	SourceAddress        string             `json:"sourceAddress,omitempty"` // of a request to the gateway
	Outcome              kms.Code           `json:"outcome"`
	DurationMillis       int64              `json:"durationMillis"`
}

var (
	kindForm        = regexp.MustCompile(`^[A-Z][A-Za-z]{0,40}$`)
	nameForm        = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)
	fingerprintForm = regexp.MustCompile(`^SHA256:[0-9a-f]{64}$`)
	accessKeyForm   = regexp.MustCompile(`^KC[A-Z2-7]{26}$`)
	custodies       = []hsm.Custody{hsm.CustodyModule, hsm.CustodyHost, hsm.CustodySoftware, "Unknown"}
)

// strict returns the record without values that do not have the format of their field.
func (r Record) strict() Record {
	r.Audit = Format
	r.Time = r.Time.UTC().Truncate(time.Millisecond)
	keep(&r.Operation, slices.Contains(Operations(), r.Operation))
	keep(&r.Object.Kind, kindForm.MatchString(r.Object.Kind))
	keep(&r.Object.Namespace, nameForm.MatchString(r.Object.Namespace))
	keep(&r.Object.Name, nameForm.MatchString(r.Object.Name))
	for _, id := range []*string{&r.RequestID, &r.Object.UID, &r.KeyID, &r.KeyVersionID, &r.FormerKeyVersionID} {
		keep(id, len(*id) == 36 && uuid.Validate(*id) == nil)
	}
	keep(&r.RecipientFingerprint, fingerprintForm.MatchString(r.RecipientFingerprint))
	keep(&r.Algorithm, r.Algorithm.Valid())
	keep(&r.Custody, slices.Contains(custodies, r.Custody))
	keep(&r.AccessKeyID, accessKeyForm.MatchString(r.AccessKeyID))
	_, err := netip.ParseAddr(r.SourceAddress)
	keep(&r.SourceAddress, err == nil)
	if r.Outcome != Success && r.Outcome.HTTPStatus() == 0 && !slices.Contains(refusals, r.Outcome) {
		r.Outcome = kms.InternalFailure
	}
	return r
}

func keep[T ~string](value *T, valid bool) {
	if !valid {
		*value = ""
	}
}

// OutcomeOf is the outcome of an operation that ended in err: its documented code, or Success.
func OutcomeOf(err error) kms.Code {
	if err == nil {
		return Success
	}
	return kms.CodeOf(err)
}

// Log writes records. A nil Log writes nothing.
//
// If a record cannot be written, the operation continues: the failure is counted, and the first of consecutive
// failures is logged.
type Log struct {
	log      logr.Logger
	failures prometheus.Counter

	mu      sync.Mutex
	out     io.Writer
	failing bool
	torn    bool // a part of a line was written
}

// New returns a Log that writes to out.
func New(out io.Writer, log logr.Logger) *Log {
	return &Log{log: log, out: out, failures: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "keyconvoy_audit_log_failures_total",
		Help: "Lines of the audit log that could not be written.",
	})}
}

// Destinations of Open other than paths.
const (
	Stdout = "stdout"
	Off    = "off"
)

// Open returns a Log that writes to standard output or appends to the file at a path. With Off it returns nil.
func Open(target string, stdout io.Writer, log logr.Logger) (*Log, error) {
	switch target {
	case Off:
		return nil, nil
	case Stdout:
		return New(stdout, log), nil
	case "":
		return nil, fmt.Errorf("the audit log requires a destination: %s, a path, or %s", Stdout, Off)
	}
	file, err := os.OpenFile(target, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	return New(file, log), nil // the process's end closes it
}

// Failures counts the lines that could not be written; nil for a nil Log.
func (l *Log) Failures() prometheus.Collector {
	if l == nil {
		return nil
	}
	return l.failures
}

// Write writes one line.
func (l *Log) Write(r Record) {
	if l == nil {
		return
	}
	line, err := json.Marshal(r.strict()) // strings, a time and a number: it cannot fail
	if err == nil {
		err = l.append(append(line, '\n'))
	}
	if err != nil {
		l.failures.Inc()
	}
}

func (l *Log) append(line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.out.Write(line)
	if err != nil {
		l.torn = l.torn || n > 0
		if !l.failing {
			l.log.Error(err, "The audit log cannot be written; operations continue without it")
		}
		l.failing = true
		return err
	}
	if l.failing {
		l.log.Info("The audit log is written again")
	}
	l.failing, l.torn = false, false
	return nil
}
