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
	// MaterialExpireTime is when the material ends; zero means never.
	MaterialExpireTime time.Time
	// Adopted is the version of a key that was in the module before this key's identifier was; Nil for
	// a key of its own.
	Adopted uuid.UUID
	// Owner is in whose name the material was imported; it is kept with the key in the module, and only
	// the same owner may adopt it.
	Owner string
}

// VersionID names the key's material: a UUIDv5 (RFC 9562, section 5.5) of the key's identifier. An
// imported key has one version for ever.
func (k Key) VersionID() uuid.UUID {
	if k.Adopted != uuid.Nil {
		return k.Adopted
	}
	return uuid.NewSHA1(k.ID, []byte("keyconvoy.io/key-version/1"))
}

// Origin says where a key's material comes from.
type Origin string

// OriginExternal is the origin of keys whose material is brought in.
const OriginExternal Origin = "EXTERNAL"

// Operations are the operations on the keys of one module. The zero value of Now is time.Now.
type Operations struct {
	Module hsm.Module
	Now    func() time.Time
}
