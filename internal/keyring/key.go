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

// Bound reports whether it is known which key version is the object's. One that adopts by name must look into its module
// first, once.
func (k *Key) Bound() bool {
	return !k.object.Spec.Adopt.ByName() || k.object.Status.KeyVersionID != ""
}

// Holds reports whether the key version that the object names is its own, by its import or by adoption. Anyone may ask to
// adopt any key version; an object that only asks has no say over it.
func (k *Key) Holds() bool {
	adopt := k.object.Spec.Adopt
	return adopt == nil || k.object.Status.MaterialFingerprint != "" || adopt.ByName() && k.Bound()
}

// isOriginal reports whether the object's key version is the one that was made for it: its identifier follows from the UID.
func (k *Key) isOriginal() bool {
	key, err := k.KMS()
	return err == nil && k.Bound() && key.Primary.ID == kms.VersionID(key.ID, 1)
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

// KMS returns the key as the operations know it. The version of a key that is not Bound is the one that it has if the
// module has none to adopt. Errors: *kms.Error with InvalidParameter for an adopted version or fingerprint that is invalid,
// and a plain error for a UID that is not a UUID.
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
	if key.Primary, err = k.version(id); err != nil {
		return kms.Key{}, err
	}
	if o.Status.MaterialExpireTime != nil {
		key.Primary.ExpireTime = o.Status.MaterialExpireTime.Time
	}
	if fp, ok := hsm.ParseFingerprint(o.Status.MaterialFingerprint); ok {
		key.Primary.Fingerprint = &fp
	}
	return key, nil
}

// version returns the key's version, with the fingerprint that the spec requires.
func (k *Key) version(key uuid.UUID) (version kms.Version, err error) {
	adopt := k.object.Spec.Adopt
	switch {
	case adopt == nil || !k.Bound():
		return kms.Version{ID: kms.VersionID(key, 1)}, nil
	case adopt.ByName():
		version.ID, err = uuid.Parse(k.object.Status.KeyVersionID)
	default:
		version.ID, err = uuid.Parse(adopt.KeyVersionID)
	}
	if err != nil {
		return kms.Version{}, &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.keyVersionID", Detail: "It is not a UUID."}
	}
	if adopt.MaterialFingerprint != "" {
		required, ok := hsm.ParseFingerprint(adopt.MaterialFingerprint)
		if !ok {
			return kms.Version{}, &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.materialFingerprint",
				Detail: "It is not a fingerprint: give 32 hexadecimal digits."}
		}
		version.Fingerprint = &required
	}
	return version, nil
}
