package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// formerKey has the versions of one key in a module, in the order of their numbers.
type formerKey []hsm.Key

// formerKeys groups versions by their keys, in the order of the keys' identifiers.
func formerKeys(versions []hsm.Key) (keys []formerKey) {
	sorted := slices.SortedFunc(slices.Values(versions), func(a, b hsm.Key) int {
		return cmp.Or(cmp.Compare(a.Owner.KeyID.String(), b.Owner.KeyID.String()), cmp.Compare(a.Owner.Number, b.Owner.Number),
			cmp.Compare(a.KeyVersionID.String(), b.KeyVersionID.String()))
	})
	for _, version := range sorted {
		if n := len(keys); n > 0 && keys[n-1].id() == version.Owner.KeyID {
			keys[n-1] = append(keys[n-1], version)
		} else {
			keys = append(keys, formerKey{version})
		}
	}
	return keys
}

func (k formerKey) id() uuid.UUID { return k[0].Owner.KeyID }

func (k formerKey) ids() []uuid.UUID {
	ids := make([]uuid.UUID, len(k))
	for i, version := range k {
		ids[i] = version.KeyVersionID
	}
	return ids
}

// continuedBy reports whether a version was generated for an object.
func (k formerKey) continuedBy(object uuid.UUID) bool {
	return slices.ContainsFunc(k, func(v hsm.Key) bool { return v.KeyVersionID == kms.VersionID(object, v.Owner.Number) })
}

// ambiguous reports whether two versions have the same number: two clusters with one token rotated the same key.
func (k formerKey) ambiguous() bool {
	for i := range k[1:] {
		if k[i].Owner.Number == k[i+1].Owner.Number {
			return true
		}
	}
	return false
}

// missing returns the first number, from 1, that no version has though a later one exists; 0 for none.
func (k formerKey) missing() int {
	next := 1
	for _, version := range k {
		if version.Owner.Number > next {
			return next
		}
		next = version.Owner.Number + 1
	}
	return 0
}

// refuseVersions says why the named versions are not all versions of one key in the module; "" if they are.
func refuseVersions(named, inModule []formerKey) string {
	key := named[0]
	if len(named) > 1 {
		return fmt.Sprintf("%s and %s are versions of different keys. Name the versions of one key.", key[0].KeyVersionID, named[1][0].KeyVersionID)
	}
	if key.ambiguous() {
		return "Two of the versions have the same number. Name one of them."
	}
	if number := key.missing(); number > 0 {
		return fmt.Sprintf("Version %d of the key is not among them. Name all versions of the key.", number)
	}
	for _, other := range inModule {
		if other.id() != key.id() {
			continue
		}
		for _, version := range other {
			if version.Owner.Number > len(key) {
				return fmt.Sprintf("The module also has version %d of the key, %s. Name all versions of the key.", version.Owner.Number, version.KeyVersionID)
			}
		}
	}
	return ""
}

// The limits of a message about several keys, which fits into a condition.
const (
	maxListedKeys        = 3
	maxVersionsOfSeveral = 12
)

// describe lists keys and their versions for a message.
func describe(keys []formerKey) string {
	shown := keys[:min(len(keys), maxListedKeys)]
	texts := make([]string, len(shown))
	for i, key := range shown {
		texts[i] = fmt.Sprintf("key %s (number of versions %d: ", key.id(), len(key))
		ids := key.ids()
		for n, id := range ids[:min(len(ids), maxVersionsOfSeveral/len(shown))] {
			if n > 0 {
				texts[i] += ", "
			}
			texts[i] += id.String()
		}
		if len(ids) > maxVersionsOfSeveral/len(shown) {
			texts[i] += ", …"
		}
		texts[i] += ")"
	}
	if more := len(keys) - len(shown); more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, "; ")
}
