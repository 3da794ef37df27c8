package hsm

import (
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// The maximum lengths of the parts of an Owner in bytes: those of the names of Kubernetes namespaces and objects.
const (
	MaxNamespaceLen = 63
	MaxNameLen      = 253
)

// maxNumber is more versions than any key has. A label in a token may have any number.
const maxNumber = 1 << 16

// Owner identifies the object for which a key version was created. The module stores it with the key. It says where the key
// came from, and does not identify the key: objects that existed one after the other can have had the same name.
//
// Keys of early versions have only a namespace.
type Owner struct {
	Namespace string
	Name      string
	Origin    Origin
	// KeyID is the identifier of the key, which is that of the object for which its first version was created. All versions of
	// the key have it, also those that were generated for an object that adopted the key.
	KeyID uuid.UUID
	// Number is that of the version in its key, from 1. Imported keys have version 1 only.
	Number int
}

// Origin is how the material of a key came into the module.
type Origin string

// The origins of keys.
const (
	OriginImported  Origin = "Imported"
	OriginGenerated Origin = "Generated"
)

func (o Origin) valid() bool { return o == OriginImported || o == OriginGenerated }

// ownerSeparator separates the parts of an owner's text, so that no part contains it.
const ownerSeparator = ":"

// String returns the owner as modules store it: NAMESPACE, or NAMESPACE:NAME:ORIGIN:NUMBER:KEYID. KeyID comes last, because its
// length is fixed: ParseOwner rejects a text whose end a token has cut off.
func (o Owner) String() string {
	if o.Name == "" {
		return o.Namespace
	}
	return strings.Join([]string{o.Namespace, o.Name, string(o.Origin), strconv.Itoa(o.Number), o.KeyID.String()}, ownerSeparator)
}

// ParseOwner is the inverse of Owner.String for the owners that Validate accepts.
func ParseOwner(text string) (Owner, bool) {
	parts := strings.Split(text, ownerSeparator)
	owner := Owner{Namespace: parts[0]}
	if len(parts) == 5 {
		number, _ := strconv.Atoi(parts[3])
		id, _ := uuid.Parse(parts[4])
		owner.Name, owner.Origin, owner.Number, owner.KeyID = parts[1], Origin(parts[2]), number, id
	}
	if owner.Validate() != nil || owner.String() != text {
		return Owner{}, false
	}
	return owner, true
}

// Validate rejects, with NotSupported, an owner that a module cannot store with a key.
func (o Owner) Validate() error {
	if err := checkNamespace(o.Namespace); err != nil {
		return err
	}
	if o == (Owner{Namespace: o.Namespace}) {
		return nil
	}
	if !storable(o.Name, MaxNameLen) || o.Name == "" {
		return Errorf(NotSupported, "the name of a key's object has 1 to %d printable ASCII characters without blanks and colons", MaxNameLen)
	}
	if !o.Origin.valid() || o.Number < 1 || o.Number > maxNumber || o.KeyID == uuid.Nil {
		return Errorf(NotSupported, "a key version has an origin, a number from 1 to %d, and the identifier of its key", maxNumber)
	}
	return nil
}

// checkNamespace rejects a namespace that a module cannot store with a key or pair.
func checkNamespace(namespace string) error {
	if !storable(namespace, MaxNamespaceLen) {
		return Errorf(NotSupported, "a namespace has at most %d printable ASCII characters without blanks and colons", MaxNamespaceLen)
	}
	return nil
}

func storable(text string, maxLen int) bool {
	return len(text) <= maxLen && !strings.ContainsFunc(text, func(r rune) bool { return r < '!' || r > '~' || r == ':' })
}
