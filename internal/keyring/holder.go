package keyring

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// One object holds a key version in a token. This file decides which, for everyone who asks: before an adoption, before
// an export, before anything is destroyed.

// Holder returns the holder of a key version among the keys that may hold it, or nil. It prefers a key that holds the
// version to one that only asks to adopt it, then the one whose own version it is by its UID, which cannot be forged, then
// the oldest. Errors: *kms.Error with ForbiddenNoPermission where another object holds the version in that token.
func (r *Ring) Holder(ctx context.Context, version string, may func(*Key) bool) (*Key, error) {
	keys, err := r.ofVersion(ctx, version)
	if err != nil {
		return nil, err
	}
	var holder *Key
	for _, key := range keys {
		if may(key) && (holder == nil || precedes(key, holder, "")) {
			holder = key
		}
	}
	if holder == nil || !holder.Holds() {
		return holder, nil
	}
	if r.rivalAmong(keys, holder, r.tokenOf(holder)) != nil {
		return nil, &kms.Error{Code: kms.ForbiddenNoPermission, Detail: fmt.Sprintf(
			"An object other than %s holds the key version that the blob names, and only its owner can consent.", holder)}
	}
	return holder, nil
}

// Held reports whether a key holds a version, as the cache has it. It does not wait for the operator's own writes.
func (r *Ring) Held(ctx context.Context, version string) (bool, error) {
	keys, err := r.ofVersion(ctx, version, client.DisableReadYourWritesConsistency)
	for _, key := range keys {
		if key.Holds() {
			return true, nil
		}
	}
	return false, err
}

// Rival returns the key that comes before another one as the holder of its key version in a token, or nil.
func (r *Ring) Rival(ctx context.Context, key *Key, version, token string) (*Key, error) {
	keys, err := r.ofVersion(ctx, version)
	if err != nil {
		return nil, err
	}
	return r.rivalAmong(keys, key, token), nil
}

// Claimant returns the key of the given name, in the namespace of another key, if it is about to look for the key that a
// former object with its name left in the same token, and comes before the other one; or nil. Until it has looked, it names
// no version, so that Rival does not find it.
func (r *Ring) Claimant(ctx context.Context, key *Key, name, token string) (*Key, error) {
	other, err := r.Get(ctx, Ref{key.kind, types.NamespacedName{Namespace: key.Ref().Namespace, Name: name}})
	if err != nil || other == nil || other.Bound() || other.ID() == key.ID() {
		return nil, err
	}
	if other.kms.Spec != key.kms.Spec || r.stores.Token(other.Store()) != token || !older(other.object, key.object) {
		return nil, nil //nolint:nilnil // documented: there is none
	}
	return other, nil
}

func (r *Ring) rivalAmong(keys []*Key, key *Key, token string) *Key {
	for _, other := range keys {
		if other.ID() != key.ID() && r.competes(other, key, token) && precedes(other, key, token) {
			return other
		}
	}
	return nil
}

// competes reports whether another object that names the same key version can mean the same key.
//
// In one namespace every holder does: a module gives a key to the namespace from which it was imported, so what a second
// token holds there is a copy of the same key. In other namespaces it is one that is, or may be, in this token. An object
// that only asks competes where it can get the key: in the same namespace and token.
func (r *Ring) competes(other, key *Key, token string) bool {
	same := other.object.GetNamespace() == key.object.GetNamespace()
	open := r.stores.Token(other.Store())
	if !other.Holds() {
		return same && open == token
	}
	unknown := token == "" || other.token == "" && open == ""
	return same || unknown || other.token == token || open == token
}

// precedes orders keys by their right to a key version in a token: those that hold it there, those that hold it in another
// token, those that only ask; then the one whose own version it is; then the oldest.
func precedes(a, b *Key, token string) bool {
	if ra, rb := right(a, token), right(b, token); ra != rb {
		return ra > rb
	}
	if a.original != b.original {
		return a.original
	}
	return older(a.object, b.object)
}

func right(k *Key, token string) int {
	switch {
	case !k.Holds():
		return 0
	case k.token != "" && token != "" && k.token != token:
		return 1
	}
	return 2
}

// tokenOf returns the token in which a key is held, "" while that is not known.
func (r *Ring) tokenOf(k *Key) string {
	if k.token != "" {
		return k.token
	}
	return r.stores.Token(k.Store())
}

// older orders objects by their creation, and those of one second by their UIDs.
func older(a, b client.Object) bool {
	at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if at.Equal(&bt) {
		return a.GetUID() < b.GetUID()
	}
	return at.Before(&bt)
}
