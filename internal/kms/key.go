// Package kms is the operations of the seeds' key management service, in its names: what is asked, what
// is answered, which error says what. It knows no Kubernetes and no cgo.
//
// The operations keep nothing: a caller brings each key as it is (Key) and keeps what it is told. What
// must survive lives in the module.
package kms

import (
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Key is a master key as a caller knows it.
type Key struct {
	ID     uuid.UUID
	Spec   hsm.KeySpec
	Origin Origin
	State  KeyState
	// Fingerprint of the material that the key was bound to by its first import; nil before.
	Fingerprint *hsm.Fingerprint
}

// VersionID names the key's material: a UUIDv5 (RFC 9562, section 5.5) of the key's identifier. An
// imported key has one version for ever.
func (k Key) VersionID() uuid.UUID { return uuid.NewSHA1(k.ID, []byte("keyconvoy.io/key-version/1")) }

// Origin says where a key's material comes from.
type Origin string

// OriginExternal is the origin of keys whose material is brought in.
const OriginExternal Origin = "EXTERNAL"

// KeyState is the state of a key.
type KeyState string

// The key states.
const (
	StateEnabled         KeyState = "Enabled"
	StateDisabled        KeyState = "Disabled"
	StatePendingDeletion KeyState = "PendingDeletion"
	StatePendingImport   KeyState = "PendingImport"
)

// Operation names an operation.
type Operation string

// The operations.
const (
	OpGetParametersForImport Operation = "GetParametersForImport"
	OpImportKeyMaterial      Operation = "ImportKeyMaterial"
	OpGenerateDataKey        Operation = "GenerateDataKeyWithoutPlaintext"
	OpExportDataKey          Operation = "ExportDataKey"
)

// needsMaterial says what a key in each state answers to an operation that uses its material.
var needsMaterial = map[KeyState]Code{
	StateEnabled:         "",
	StateDisabled:        RejectedDisabled,
	StatePendingDeletion: RejectedPendingDeletion,
	StatePendingImport:   RejectedPendingImport,
}

// Permit decides whether a key in that state may serve an operation.
func Permit(op Operation, state KeyState) error {
	switch op {
	case OpGetParametersForImport:
		return nil
	case OpImportKeyMaterial:
		if state == StatePendingDeletion {
			return &Error{Code: RejectedStateModifiedFailed}
		}
		return nil
	case OpGenerateDataKey, OpExportDataKey:
		code, known := needsMaterial[state]
		if !known {
			code = RejectedUnavailable
		}
		if code != "" {
			return &Error{Code: code}
		}
		return nil
	}
	return &Error{Code: UnsupportedOperation}
}

// Operations are the operations on the keys of one module. The zero value of Now is time.Now.
type Operations struct {
	Module hsm.Module
	Now    func() time.Time
}
