package controllers

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// adopt takes a key over that is in the module already, once. An object that adopts by name, and finds no key of that name,
// is a new key from then on. Reasons: KeyVersionTaken, SeveralFormerKeys, ForbiddenKeyVersionNotFound, InvalidKeyMaterial,
// InvalidParameter, and those of operations.
func (r *importedKeyReconciler) adopt(ctx context.Context, s *importScope) error {
	spec, status := s.object.Spec.Adopt, &s.object.Status
	if spec == nil || status.MaterialFingerprint != "" || spec.ByName() && keyring.Of(s.object).Bound() || s.key.State != kms.StatePendingImport {
		return nil
	}
	var found hsm.Key
	var token string
	err := r.stores.Use(ctx, s.object.Namespace, s.object.Spec.KeyStoreRef, func(ops keystore.Session) (err error) {
		token = ops.Token
		if spec.ByName() {
			found, err = r.adoptByName(ctx, ops, s)
		} else {
			found, err = r.findFree(ctx, ops, s.object, s.key)
		}
		return err
	})
	if kms.CodeOf(err) == kms.RejectedPendingImport {
		return nil // explainState says that the material can be imported under this version
	}
	if err != nil {
		return err
	}
	if found.Fingerprint == (hsm.Fingerprint{}) {
		status.KeyVersionID = found.KeyVersionID.String() // a new key
		return nil
	}
	return r.takeOver(ctx, s, found, token)
}

// takeOver records in the status that the object holds a key that was found in a token.
func (r *importedKeyReconciler) takeOver(ctx context.Context, s *importScope, found hsm.Key, token string) error {
	status := &s.object.Status
	if s.object.Spec.Material != nil {
		if err := r.recordMaterial(ctx, s); err != nil {
			return err
		}
	}
	// The material of the former object was deleted for an annotation that was restored with this one.
	status.MaterialDeletedFor = annotationValue(s.object, v1alpha1.AnnotationDeleteKeyMaterial)
	status.KeyVersionID, status.MaterialFingerprint = found.KeyVersionID.String(), found.Fingerprint.String()
	status.HasMaterial, status.Custody = true, v1alpha1.CustodyUnknown
	status.Token = token
	s.notes = append(s.notes, reconciler.Event{Type: corev1.EventTypeNormal, Reason: "KeyAdopted", Action: "Adopt", Message: fmt.Sprintf(
		"This object adopted key version %s, which was in the module of %s.", found.KeyVersionID, s.storeName())})
	return s.happen(kms.EventImportKeyMaterial)
}

// recordMaterial records the wrapped material in the spec as imported: in a spec that was restored it is what is in the module
// already. Where a source of it does not exist yet, importMaterial does this later.
func (r *importedKeyReconciler) recordMaterial(ctx context.Context, s *importScope) error {
	inputs, err := r.inputsOf(ctx, s)
	if err != nil {
		return err
	}
	// A time in the past ends the material at once, as it would have ended under the former object.
	at := s.object.Spec.Material.ExpireTime
	if at != nil {
		if err := kms.CheckExpireTime(at.Time, time.Time{}); err != nil {
			return err
		}
	}
	status := &s.object.Status
	status.InputsDigest, status.SourcesVersion, status.MaterialExpireTime = inputs, s.sources, at
	return nil
}

// awaitsSources reports whether the wrapped material in the spec of an adopted key is the former object's: this object has not
// seen it, and has published no parameters under which it could have been wrapped.
func awaitsSources(status *v1alpha1.ImportedKeyStatus) bool {
	return status.HasMaterial && status.InputsDigest == "" && status.ImportParameters == nil && status.FormerParametersExpireTime == nil
}

// adoptByName finds the key in the module that a former object with the same name left. If there is none, it returns the
// version of a new key, without a fingerprint. Reasons: see adopt.
func (r *importedKeyReconciler) adoptByName(ctx context.Context, ops keystore.Session, s *importScope) (hsm.Key, error) {
	left, err := ops.KeysByName(ctx, s.key)
	if err != nil {
		return hsm.Key{}, err
	}
	var free []string
	for _, found := range left {
		if found.KeyVersionID == s.key.Primary.ID { // the status of this object was lost, and it has this key already
			return r.findFree(ctx, ops, s.object, s.key)
		}
		other, err := r.keys.Rival(ctx, keyring.Of(s.object), found.KeyVersionID.String(), ops.Token)
		if err != nil {
			return hsm.Key{}, err
		}
		if other == nil {
			free = append(free, found.KeyVersionID.String())
		}
	}
	switch {
	case len(left) == 0:
		return hsm.Key{KeyVersionID: s.key.Primary.ID}, nil
	case len(free) == 0:
		return hsm.Key{}, errKeyVersionTaken
	case len(free) > 1:
		return hsm.Key{}, severalFormerKeys("versions "+listed(free), "adopt.keyVersionID")
	}
	s.key.Primary.ID = uuid.MustParse(free[0])
	return r.findFree(ctx, ops, s.object, s.key)
}
