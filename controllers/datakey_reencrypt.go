package controllers

import (
	"context"
	"fmt"
	"slices"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// findSource sets source: the key under which the blob is. That is the master key, or the one that keyRef named when the blob
// was put into the status. Reasons: InvalidParameter, and those of Holder.
//
// A data key moves only because keyRef was changed, for which config/policy requires verbs on both keys: anyone who may create keys
// can make another key with the name that keyRef has.
func (r *dataKeyReconciler) findSource(ctx context.Context, s *dataKeyScope) error {
	version := s.blob.KeyVersionID().String()
	if slices.Contains(s.master.Versions(), version) {
		s.source = s.key
		return nil
	}
	former := s.object.Status.KeyRef
	if former == nil || s.staysUnder(former) {
		return s.errOtherKey(version)
	}
	here := func(k *keyring.Key) bool { return k.Ref().Namespace == s.object.Namespace }
	holder, err := r.keys.Holder(ctx, version, here)
	if err != nil {
		return err
	}
	if holder == nil || !holder.Holds() || holder.Ref().Kind != former.Kind || holder.Ref().Name != string(former.Name) {
		return s.errOtherKey(version)
	}
	if holder.Store() != s.master.Store() {
		ref := s.master.Ref()
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
			"The data key is under %s %s, and %s %s is in another key store. A module re-encrypts data keys under its own keys only: export the data key to the other module instead.",
			holder.Ref().Kind, holder.Ref().Name, ref.Kind, ref.Name)}
	}
	s.source, err = holder.KMS()
	return err
}

// staysUnder reports whether the spec still names the key that it named when the data key was put under it.
func (s *dataKeyScope) staysUnder(ref *v1alpha1.KeyReference) bool {
	return ref != nil && *ref == s.object.Spec.KeyRef
}

// errOtherKey says that keyRef does not name the key that the data key is under.
func (s *dataKeyScope) errOtherKey(version string) error {
	ref := s.master.Ref()
	return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
		"The data key was made under key version %s, but %s %s is now a different key. To restore the original key, create the object that "+
			"had it again: a GeneratedKey with that version and its other ones in adopt.keyVersionIDs, or an ImportedKey with adopt.keyVersionID: %s and, "+
			"if the module lost the key, adopt.materialFingerprint, and import its material again. Otherwise create a new DataKey.", version, ref.Kind, ref.Name, version)}
}

// moves reports whether a data key under a version is to be re-encrypted: its owner wants it under the primary version, or keyRef
// names another key than before.
func (s *dataKeyScope) moves(version string) bool {
	return version != s.key.Primary.ID.String() &&
		(s.object.Spec.ReencryptsOnRotation() || !slices.Contains(s.master.Versions(), version))
}

// reencrypt moves the data key under the primary version of the master key. The former blob stays in the Secret until the next
// time, so that there is a readable blob whenever the operator ends. Reasons: those of operations, and the codes of ReEncrypt.
func (r *dataKeyReconciler) reencrypt(ctx context.Context, s *dataKeyScope) error {
	if !s.moves(s.blob.KeyVersionID().String()) {
		return nil
	}
	var moved kms.DataKey
	err := r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) error {
		return r.recorded(keyLine(audit.ReEncrypt, s.object, s.key), func(line *audit.Record) (err error) {
			moved, err = ops.ReEncrypt(ctx, kms.ReEncryptRequest{
				Key: s.source, CiphertextBlob: s.blob, EncryptionContext: s.request().EncryptionContext,
				Destination: s.key, DestinationEncryptionContext: s.request().EncryptionContext,
			})
			line.Custody, line.FormerKeyVersionID = moved.Custody, s.blob.KeyVersionID().String()
			return err
		})
	})
	if err != nil {
		return err
	}
	if s.digest == "" {
		s.digest = blobDigest(s.blob.String())
	}
	s.previous, s.blob, s.tag = []byte(s.blob.String()), moved.CiphertextBlob, ""
	s.custody = weakest(s.custody, v1alpha1.Custody(moved.Custody))
	s.verified = r.doneNow() // ReEncrypt has opened it
	return nil
}

// custodies are from the strongest to the weakest.
var custodies = []v1alpha1.Custody{
	v1alpha1.Custody(hsm.CustodyModule), v1alpha1.Custody(hsm.CustodyHost), v1alpha1.Custody(hsm.CustodySoftware), v1alpha1.CustodyUnknown,
}

func weakest(a, b v1alpha1.Custody) v1alpha1.Custody {
	if slices.Index(custodies, a) > slices.Index(custodies, b) {
		return a
	}
	return b
}
