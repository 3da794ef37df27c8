// Package keyring has the master keys as the operations know them, whatever kind their objects have: who holds a key
// version in a token, and who must consent to an export.
package keyring

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Key is a master key, as one read of its object found it.
type Key struct{ object *v1alpha1.ImportedKey }

// Of returns the master key of an ImportedKey.
func Of(object *v1alpha1.ImportedKey) *Key { return &Key{object} }

// String returns the object's namespace and name.
func (k *Key) String() string { return k.Name().String() }

// Name returns the object's namespace and name. It does not identify the key: another object can have it later.
func (k *Key) Name() types.NamespacedName { return client.ObjectKeyFromObject(k.object) }

// ID returns the key's identifier, which is the UID of its object.
func (k *Key) ID() string { return string(k.object.UID) }

// Kind returns the object's kind.
func (k *Key) Kind() string { return "ImportedKey" }

// StoreRef returns the reference to the key store that has the key.
func (k *Key) StoreRef() v1alpha1.KeyStoreReference { return k.object.Spec.KeyStoreRef }

// Store returns the key store that has the key.
func (k *Key) Store() keystore.ID {
	return keystore.IDOf(k.object.Namespace, k.object.Spec.KeyStoreRef)
}

// Invalid returns the fields that could not be decoded.
func (k *Key) Invalid() []v1alpha1.InvalidField { return k.object.Invalid() }

// Holds reports whether the key version that the object names is its own, by its import or by adoption. Anyone may ask to
// adopt any key version; an object that only asks has no say over it.
func (k *Key) Holds() bool {
	return k.object.Spec.Adopt == nil || k.object.Status.MaterialFingerprint != ""
}

// InModule reports whether the module must have the material of a key from the cache: its object holds it, and nothing asks to
// destroy it.
func (k *Key) InModule(now time.Time) bool {
	o := k.object
	expires := o.Status.MaterialExpireTime
	return k.Holds() && o.Status.HasMaterial && o.DeletionTimestamp.IsZero() &&
		o.Status.KeyState != v1alpha1.KeyState(kms.StatePendingDeletion) &&
		o.Annotations[v1alpha1.AnnotationDeleteKeyMaterial] == o.Status.MaterialDeletedFor &&
		(expires == nil || now.Before(expires.Time))
}

// KMS returns the key as the operations know it. Errors: *kms.Error with InvalidParameter for an adopted version that is
// not a UUID, and a plain error for a UID that is not a UUID.
func (k *Key) KMS() (kms.Key, error) {
	o := k.object
	id, err := uuid.Parse(string(o.UID))
	if err != nil {
		return kms.Key{}, fmt.Errorf("the UID of %s: %w", k, err)
	}
	key := kms.Key{
		ID: id, Spec: hsm.KeySpec(o.Spec.KeySpec), Origin: kms.OriginExternal,
		State: kms.KeyState(o.Status.KeyState), Namespace: o.Namespace, Name: o.Name,
	}
	if key.State == "" {
		key.State = kms.StatePendingImport
	}
	version := kms.Version{ID: kms.VersionID(id, 1)}
	if o.Spec.Adopt != nil {
		if version.ID, err = uuid.Parse(o.Spec.Adopt.KeyVersionID); err != nil {
			return kms.Key{}, &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.keyVersionID", Detail: "It is not a UUID."}
		}
	}
	if o.Status.MaterialExpireTime != nil {
		version.ExpireTime = o.Status.MaterialExpireTime.Time
	}
	if fp, ok := hsm.ParseFingerprint(o.Status.MaterialFingerprint); ok {
		version.Fingerprint = &fp
	}
	key.Primary = version
	return key, nil
}
