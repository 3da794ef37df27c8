package controllers

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// forgetMaterial records in the status that the module no longer has the material. The fingerprint stays: the first
// material binds the key permanently.
func (s *importScope) forgetMaterial() {
	s.object.Status.HasMaterial, s.object.Status.Custody = false, ""
	s.object.Status.MaterialExpireTime = nil
	s.key.Primary.ExpireTime = time.Time{}
}

// nextDeadline asks for another reconcile when the material or former parameters end, or the window is over.
func (s *importScope) nextDeadline() {
	status := &s.object.Status
	s.lookAgainAt(status.MaterialExpireTime, status.FormerParametersExpireTime, status.DeletionTime)
}

// followClock ends what has come to its end: the material, or the window of a pending deletion. The
// state changes even while the module does not answer; the destruction is tried until it is done.
// Reasons: those of operations.
func (r *importedKeyReconciler) followClock(ctx context.Context, s *importScope) error {
	status := &s.object.Status
	if at := status.MaterialExpireTime; at != nil && !s.now.Before(at.Time) {
		if err := s.happen(kms.EventMaterialGone); err != nil {
			return err
		}
		if err := r.destroy(ctx, s, audit.ExpireKeyMaterial); err != nil {
			return err
		}
	}
	if s.windowOver() {
		if err := r.stillSo(ctx, s.masterKey); err != nil {
			return err
		}
		if err := r.destroyAll(ctx, s); err != nil {
			return err
		}
		status.DeletionTime = nil
		status.ImportParameters, status.FormerParametersExpireTime = nil, nil
		return s.happen(kms.EventWindowOver)
	}
	return nil
}

// deleteMaterial is DeleteKeyMaterial, asked for by an annotation with a new value. Reasons: those of
// operations.
func (r *importedKeyReconciler) deleteMaterial(ctx context.Context, s *importScope) error {
	asked := annotationValue(s.object, v1alpha1.AnnotationDeleteKeyMaterial)
	if asked == s.object.Status.MaterialDeletedFor {
		return nil
	}
	if asked != "" && s.object.Status.HasMaterial {
		if err := r.destroy(ctx, s, audit.DeleteKeyMaterial); err != nil {
			return err
		}
		if err := s.happen(kms.EventMaterialGone); err != nil {
			return err
		}
	}
	s.object.Status.MaterialDeletedFor = asked
	return nil
}

// destroy destroys the material in the module.
func (r *importedKeyReconciler) destroy(ctx context.Context, s *importScope, operation audit.Operation) error {
	err := r.stores.CleanUp(ctx, s.masterKey.key().Store(), func(ops keystore.Session) error {
		_, err := r.destroyVersions(ctx, ops, s.masterKey, s.key, []uuid.UUID{s.key.Primary.ID}, operation)
		return err
	})
	if err != nil {
		return err
	}
	s.forgetMaterial()
	return nil
}

// destroyAll destroys the material and every wrapping pair.
func (r *importedKeyReconciler) destroyAll(ctx context.Context, s *importScope) error {
	if err := r.destroy(ctx, s, audit.DestroyKey); err != nil {
		return err
	}
	return r.stores.CleanUp(ctx, s.masterKey.key().Store(), func(ops keystore.Session) error {
		return r.destroyPairs(ctx, ops, s.object, s.key)
	})
}

// destroyPairs destroys every wrapping pair of a key.
func (r *importedKeyReconciler) destroyPairs(ctx context.Context, ops kms.Service, object *v1alpha1.ImportedKey, key kms.Key) error {
	return r.recorded(keyLine(audit.DestroyImportParameters, object, key), func(*audit.Record) error {
		_, err := ops.DestroyImportParameters(ctx, key.ID, true)
		return err
	})
}

// followDesire is that of all master keys.
func (r *importedKeyReconciler) followDesire(ctx context.Context, s *importScope) error {
	return r.shared.followDesire(ctx, &s.keyScope)
}

// explainState reports what a key that is not usable is waiting for. Reasons: PendingImport,
// ForbiddenKeyNotFound.
func (r *importedKeyReconciler) explainState(_ context.Context, s *importScope) error {
	switch {
	case s.key.State == kms.StateDeleted:
		return errDeleted
	case s.key.State != kms.StatePendingImport:
		return nil
	case !keyring.Of(s.object).Holds():
		// What is in the module cannot be watched.
		return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonPendingImport, After: lookAgainInterval, Message: fmt.Sprintf(
			"The module does not have key version %s. Restore it in the module, or import its material again: wrap the material with fingerprint %s "+
				"under status.importParameters (keyconvoy wrap --key %s -n %s --apply).",
			s.key.Primary.ID, s.key.Primary.Fingerprint, s.object.Name, s.object.Namespace)}
	case s.key.Primary.Fingerprint != nil:
		return reconciler.Wait(v1alpha1.ReasonPendingImport, fmt.Sprintf(
			"The key material has expired or was deleted. Import the same material again. If status.importParameters is empty, set the annotation %s to request new parameters.",
			v1alpha1.AnnotationRenewImportParameters))
	}
	return reconciler.Wait(v1alpha1.ReasonPendingImport, fmt.Sprintf(
		"The key is waiting for its material. Wrap %d bytes under status.importParameters.publicKey (keyconvoy wrap --key %s -n %s --apply, or openssl) and put them into spec.material.",
		s.key.Spec.Len(), s.object.Name, s.object.Namespace))
}
