// Package keyring has the master keys as the operations know them, whatever kind their objects have: who holds a key
// version in a token, and who must consent to an export.
package keyring

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// The kinds of master keys.
const (
	KindImportedKey  = "ImportedKey"
	KindGeneratedKey = "GeneratedKey"
)

// Ref names a master key. It does not identify the key: another object can have the name later.
type Ref struct {
	Kind string
	types.NamespacedName
}

// String returns the kind, namespace and name.
func (r Ref) String() string { return r.Kind + " " + r.NamespacedName.String() }

// Key is a master key, as one read of its object found it. Its fields are what the kinds have in common.
type Key struct {
	object  client.Object
	kind    string
	invalid []v1alpha1.InvalidField
	store   v1alpha1.KeyStoreReference
	policy  *v1alpha1.ExportPolicy
	token   string // of the status
	adopts  bool
	bound   bool
	holds   bool
	// original: the key versions are those that were made for the object: their identifiers follow from its UID.
	original bool
	// recorded: the status says that a version or an import key pair is or may be in the module.
	recorded bool
	// inModule is InModule, for a key that is not being deleted and not about to be destroyed.
	inModule func(now time.Time) bool
	kms      kms.Key
	err      error // of KMS
}

// Of returns the master key of an ImportedKey or a GeneratedKey.
func Of(object client.Object) *Key {
	if generated, ok := object.(*v1alpha1.GeneratedKey); ok {
		return ofGenerated(generated)
	}
	return ofImported(object.(*v1alpha1.ImportedKey))
}

func ofImported(o *v1alpha1.ImportedKey) *Key {
	k := &Key{
		object: o, kind: KindImportedKey, invalid: o.Invalid(), store: o.Spec.KeyStoreRef, policy: o.Spec.ExportPolicy, token: o.Status.Token,
		adopts: o.Spec.Adopt != nil, bound: !o.Spec.Adopt.ByName() || o.Status.KeyVersionID != "",
		inModule: func(now time.Time) bool {
			expires := o.Status.MaterialExpireTime
			return o.Status.HasMaterial && (expires == nil || now.Before(expires.Time)) &&
				AnnotationValue(o.Annotations[v1alpha1.AnnotationDeleteKeyMaterial]) == o.Status.MaterialDeletedFor
		},
	}
	k.holds = o.Spec.Adopt == nil || o.Status.MaterialFingerprint != "" || o.Spec.Adopt.ByName() && k.bound
	k.recorded = o.Status.MaterialFingerprint != "" || o.Status.ImportParameters != nil || o.Status.FormerParametersExpireTime != nil
	k.decode(kms.OriginExternal, o.Spec.KeySpec, o.Status.KeyState, kms.StatePendingImport)
	if k.err != nil {
		return k
	}
	if k.kms.Primary, k.err = importedVersion(o, k.kms.ID, k.bound); k.err != nil {
		return k
	}
	k.original = k.bound && k.kms.Primary.ID == kms.VersionID(k.kms.ID, 1)
	if o.Status.MaterialExpireTime != nil {
		k.kms.Primary.ExpireTime = o.Status.MaterialExpireTime.Time
	}
	if fp, ok := hsm.ParseFingerprint(o.Status.MaterialFingerprint); ok {
		k.kms.Primary.Fingerprint = &fp
	}
	return k
}

// importedVersion returns the version of an ImportedKey, with the fingerprint that the spec requires. The version of a key that
// is not bound is the one that it has if the module has none to adopt.
func importedVersion(o *v1alpha1.ImportedKey, key uuid.UUID, bound bool) (version kms.Version, err error) {
	version.Number = 1
	adopt := o.Spec.Adopt
	switch {
	case adopt == nil || !bound:
		version.ID = kms.VersionID(key, 1)
		return version, nil
	case adopt.ByName():
		version.ID, err = uuid.Parse(o.Status.KeyVersionID)
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

func ofGenerated(o *v1alpha1.GeneratedKey) *Key {
	k := &Key{
		object: o, kind: KindGeneratedKey, invalid: o.Invalid(), store: o.Spec.KeyStoreRef, policy: o.Spec.ExportPolicy,
		token: o.Status.Token, adopts: o.Spec.Adopt != nil, recorded: len(o.Status.Versions) > 0,
		inModule: func(time.Time) bool {
			return len(o.Status.Versions) > 0 && o.Status.KeyState != v1alpha1.KeyState(kms.StateDeleted)
		},
	}
	k.bound, k.holds = k.recorded || !o.Spec.Adopt.ByName(), k.recorded || o.Spec.Adopt == nil
	k.decode(kms.OriginModule, o.Spec.KeySpec, o.Status.KeyState, kms.StateEnabled)
	if k.err != nil {
		return k
	}
	k.kms.Primary = kms.Version{ID: kms.VersionID(k.kms.ID, 1), Number: 1} // until it is generated
	if !k.recorded && o.Spec.Adopt != nil && !o.Spec.Adopt.ByName() {
		k.ask(o.Spec.Adopt.KeyVersionIDs)
		return k
	}
	for i := range o.Status.Versions {
		version, err := versionOf(&o.Status.Versions[i])
		switch {
		case err != nil:
			k.err = fmt.Errorf("a version of %s: %w", k, err)
		case o.Status.Versions[i].KeyVersionID == o.Status.PrimaryVersion:
			k.kms.Primary = version
		default:
			k.kms.Former = append(k.kms.Former, version)
		}
	}
	k.original = len(k.kms.Former) == 0 && k.bound && k.kms.Primary.ID == kms.VersionID(k.kms.ID, 1) ||
		len(k.kms.Former) > 0 && k.kms.Former[0].ID == kms.VersionID(k.kms.ID, 1)
	return k
}

// ask sets the versions that an object asks to adopt. Which one is the primary is not known yet, and they may be another object's:
// the key has no state, and without one kms.Permit refuses every operation.
func (k *Key) ask(ids []v1alpha1.KeyVersionID) {
	k.kms.State = ""
	for i, text := range ids {
		id, err := uuid.Parse(string(text))
		if err != nil {
			k.err = &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.keyVersionIDs", Detail: "One of them is not a UUID."}
			return
		}
		if i == 0 {
			k.kms.Primary = kms.Version{ID: id}
		} else {
			k.kms.Former = append(k.kms.Former, kms.Version{ID: id})
		}
	}
}

func versionOf(v *v1alpha1.KeyVersion) (kms.Version, error) {
	id, err := uuid.Parse(v.KeyVersionID)
	version := kms.Version{ID: id, Number: int(v.Number), Custody: hsm.Custody(v.Custody)}
	if fp, ok := hsm.ParseFingerprint(v.Fingerprint); ok {
		version.Fingerprint = &fp
	}
	return version, err
}

// maxAnnotation is how long an annotation's value is kept as it is.
const maxAnnotation = 64

// AnnotationValue returns the value of an annotation as caches and statuses keep it: a long one as its digest, of which this is the
// same again.
func AnnotationValue(value string) string {
	if len(value) > maxAnnotation {
		return secrets.DigestOf(value)
	}
	return value
}

// decode sets kms but for its versions. initial is the state of a key without a status.
func (k *Key) decode(origin kms.Origin, spec v1alpha1.KeySpec, state v1alpha1.KeyState, initial kms.KeyState) {
	id, err := uuid.Parse(k.ID())
	if err != nil {
		k.err = fmt.Errorf("the UID of %s: %w", k, err)
		return
	}
	k.kms = kms.Key{
		ID: id, Spec: hsm.KeySpec(spec), Origin: origin, State: kms.KeyState(state), Namespace: k.object.GetNamespace(), Name: k.object.GetName(),
	}
	if k.kms.State == "" {
		k.kms.State = initial
	}
}

// String returns the object's kind, namespace and name.
func (k *Key) String() string { return k.Ref().String() }

// Ref returns the object's kind, namespace and name.
func (k *Key) Ref() Ref { return Ref{k.kind, client.ObjectKeyFromObject(k.object)} }

// ID returns the key's identifier, which is the UID of its object.
func (k *Key) ID() string { return string(k.object.GetUID()) }

// StoreRef returns the reference to the key store that has the key.
func (k *Key) StoreRef() v1alpha1.KeyStoreReference { return k.store }

// Store returns the key store that has the key.
func (k *Key) Store() keystore.ID { return keystore.IDOf(k.object.GetNamespace(), k.store) }

// Invalid returns the fields that could not be decoded.
func (k *Key) Invalid() []v1alpha1.InvalidField { return k.invalid }

// Adopts reports whether the object asks to adopt key versions, or has adopted them.
func (k *Key) Adopts() bool { return k.adopts }

// Bound reports whether it is known which key version is the object's. One that adopts by name must look into its module
// first, once.
func (k *Key) Bound() bool { return k.bound }

// Holds reports whether the key versions that the object names are its own, by their creation or by adoption. Anyone may ask to
// adopt any key version; an object that only asks has no say over it, and no operation uses it.
func (k *Key) Holds() bool { return k.holds }

// HasFinalizer reports whether the object has a finalizer.
func (k *Key) HasFinalizer(finalizer string) bool {
	return controllerutil.ContainsFinalizer(k.object, finalizer)
}

// Recorded reports whether the object's status says that something of its own is or may be in the module: a version, or an
// import key pair.
func (k *Key) Recorded() bool { return k.recorded }

// InModule reports whether the module must have the versions of a key from the cache: its object holds them, and nothing asks to
// destroy them.
func (k *Key) InModule(now time.Time) bool {
	return k.holds && k.object.GetDeletionTimestamp().IsZero() && k.kms.State != kms.StatePendingDeletion && k.inModule(now)
}

// KMS returns the key as the operations know it. Errors: *kms.Error with InvalidParameter for an adopted version or
// fingerprint that is invalid, and a plain error for a UID that is not a UUID.
func (k *Key) KMS() (kms.Key, error) {
	if k.err != nil {
		return kms.Key{}, k.err
	}
	return k.kms, nil
}
