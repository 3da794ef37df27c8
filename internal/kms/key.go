// Package kms implements the operations of the documented key management API: its requests, results, key states and
// error codes. It depends on neither Kubernetes nor cgo.
//
// The operations are stateless: the caller passes each key (Key) and stores the results. Keys are stored in the
// module.
package kms

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Key is a master key, as the caller has stored it.
type Key struct {
	ID     uuid.UUID
	Spec   hsm.KeySpec
	Origin Origin
	State  KeyState
	// Namespace and Name are those of the key's object. The module stores them with each version, and only keys of the same
	// namespace can adopt one.
	Namespace, Name string
	// Primary is the version under which new data keys are made. An imported key has no other.
	Primary Version
	// Former are the versions that were primary before. Data keys under them can be opened, and none is made.
	Former []Version
}

// Version is a version of a key's material.
type Version struct {
	// ID identifies the material in the module. Ciphertext blobs contain it.
	ID uuid.UUID
	// Number is that of the version in its key, from 1. For an imported key it may be 0, which means the same as 1.
	Number int
	// Fingerprint of the material to which the version is bound; nil before its first import or its generation.
	Fingerprint *hsm.Fingerprint
	// ExpireTime is the time at which the material expires; zero means never.
	ExpireTime time.Time
	// Custody is where the material has existed in plaintext; empty if that is not known.
	Custody hsm.Custody
}

// VersionID returns the identifier of a version, whose number starts at 1: a UUIDv5 (RFC 9562, section 5.5) of the key's
// identifier.
func VersionID(key uuid.UUID, number int) uuid.UUID {
	return uuid.NewSHA1(key, fmt.Appendf(nil, "keyconvoy.io/key-version/%d", number))
}

// owner is what the module stores with a version.
func (k Key) owner(origin hsm.Origin, number int) hsm.Owner {
	return hsm.Owner{Namespace: k.Namespace, Name: k.Name, Origin: origin, KeyID: k.ID, Number: number}
}

// VersionFor returns the version that a blob was made under. Errors: that of any blob that does not open.
func (k Key) VersionFor(blob Blob) (Version, error) {
	for _, version := range append([]Version{k.Primary}, k.Former...) {
		if version.ID == blob.KeyVersionID() {
			return version, nil
		}
	}
	return Version{}, badBlob(nil)
}

// Origin is the source of a key's material.
type Origin string

// The origins, as the documented API names them.
const (
	// OriginExternal is the origin of keys whose material is imported.
	OriginExternal Origin = "EXTERNAL"
	// OriginModule is the origin of keys that the module generates. The documented API calls it by the name of its service.
	OriginModule Origin = "Aliyun_KMS"
)

// Origins lists every origin.
func Origins() []Origin { return []Origin{OriginExternal, OriginModule} }

// Operations are the operations on the keys of one module. The zero value of Now is time.Now.
type Operations struct {
	Module hsm.Keys
	Now    func() time.Time
}
