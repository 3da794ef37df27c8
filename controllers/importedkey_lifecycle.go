package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// happen moves the key to its next state.
func (s *importScope) happen(event kms.Event) error {
	next, err := kms.Next(s.key.Origin, s.key.State, event, s.object.Status.HasMaterial)
	if err != nil {
		return err
	}
	s.object.Status.KeyState = v1alpha1.KeyState(next)
	s.key, err = keyring.Of(s.object).KMS()
	return err
}

// forgetMaterial records in the status that the module no longer has the material. The fingerprint stays: the first
// material binds the key permanently.
func (s *importScope) forgetMaterial() {
	s.object.Status.HasMaterial, s.object.Status.Custody = false, ""
	s.object.Status.MaterialExpireTime = nil
	s.key.Primary.ExpireTime = time.Time{}
}

// lookAgain asks for another reconcile at a time.
func (s *importScope) lookAgain(at time.Time) {
	d := max(at.Sub(s.now), time.Second)
	if s.after == 0 || d < s.after {
		s.after = d
	}
}

// nextDeadline asks for another reconcile when the material or former parameters end, or the window is over.
func (s *importScope) nextDeadline() {
	status := &s.object.Status
	for _, at := range []*metav1.Time{status.MaterialExpireTime, status.FormerParametersExpireTime, status.DeletionTime} {
		if at != nil && at.After(s.now) {
			s.lookAgain(at.Time)
		}
	}
}

// noteState reports every change of state. A new key that waits for its material has not changed.
func (s *importScope) noteState(was v1alpha1.KeyState) {
	is := s.object.Status.KeyState
	if is == was || (was == "" && kms.KeyState(is) == kms.StatePendingImport) {
		return
	}
	kind := corev1.EventTypeNormal
	if kms.KeyState(is) == kms.StatePendingImport || kms.KeyState(is) == kms.StateDeleted {
		kind = corev1.EventTypeWarning
	}
	s.notes = append(s.notes, reconciler.Event{Type: kind, Reason: "KeyState", Action: "ChangeState", Message: changeOfState(was, is)})
}

func changeOfState(was, is v1alpha1.KeyState) string {
	if was == "" {
		return fmt.Sprintf("The key is %s.", is)
	}
	return fmt.Sprintf("The key was %s and is %s.", was, is)
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
	// A deletion that was called off while the operator was down is not carried out, however late: the key still exists,
	// and its owner wants it.
	wanted := s.object.Spec.DesiredState == v1alpha1.DesiredPendingDeletion
	if at := status.DeletionTime; wanted && at != nil && !s.now.Before(at.Time) && s.key.State == kms.StatePendingDeletion {
		if err := r.stillSo(ctx, s.object); err != nil {
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
	err := r.stores.CleanUp(ctx, storeOf(s.object), func(ops keystore.Session) error {
		_, err := r.destroyKey(ctx, ops, s.object, s.key, operation)
		return err
	})
	if err != nil {
		return err
	}
	s.forgetMaterial()
	return nil
}

// destroyKey destroys a key in its module, unless its object does not hold it or another object holds it there. If the key store has another token than
// the one with the key, it reports what may be left in that one.
func (r *importedKeyReconciler) destroyKey(ctx context.Context, ops keystore.Session, object *v1alpha1.ImportedKey, key kms.Key, operation audit.Operation) (destroyed bool, err error) {
	if !keyring.Of(object).Holds() { // what it asked to adopt belongs to someone else
		return false, nil
	}
	other, err := r.keys.Rival(ctx, keyring.Of(object), key.Primary.ID.String(), ops.Token)
	if err != nil || other != nil {
		return false, err
	}
	err = r.recorded(keyLine(operation, object, key), func(*audit.Record) error { return ops.DeleteKeyMaterial(ctx, key) })
	if former := object.Status.Token; err == nil && former != "" && former != ops.Token {
		r.leftInModule.Inc()
		log.FromContext(ctx).Info("Destroyed a key in another token than the one that it was imported into, which may still have it",
			"keyStore", storeName(object), "keyVersionID", object.Status.KeyVersionID, "token", former)
		r.Announce(object, []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "LeftInModule", Action: "Destroy", Message: fmt.Sprintf(
			"%s now has another token, so key %s may be left in the token that it was imported into.", storeName(object), object.Status.KeyVersionID)}})
	}
	return err == nil, err
}

// stillSo returns an error when an object's spec is no longer as the cache has it. A key that is destroyed cannot be made
// again, so its owner's last word is asked for, and not the one that the operator has heard of.
func (r *importedKeyReconciler) stillSo(ctx context.Context, object *v1alpha1.ImportedKey) error {
	same, err := r.keys.UnchangedLive(ctx, keyring.Of(object))
	if err != nil || same {
		return err
	}
	return apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("importedkeys").GroupResource(), object.Name,
		errors.New("it changed while its key was about to be destroyed"))
}

// destroyAll destroys the material and every wrapping pair.
func (r *importedKeyReconciler) destroyAll(ctx context.Context, s *importScope) error {
	if err := r.destroy(ctx, s, audit.DestroyKey); err != nil {
		return err
	}
	return r.stores.CleanUp(ctx, storeOf(s.object), func(ops keystore.Session) error {
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

// followDesire brings the key into the state that its owner wants, as far as it can be. It needs no
// module.
func (r *importedKeyReconciler) followDesire(ctx context.Context, s *importScope) error {
	desired := s.object.Spec.DesiredState
	switch {
	case s.key.State == kms.StateDeleted:
		return nil
	case desired == v1alpha1.DesiredPendingDeletion:
		return r.scheduleDeletion(ctx, s)
	case s.key.State == kms.StatePendingDeletion:
		s.object.Status.DeletionTime, s.object.Status.DeletionRequestTime = nil, nil
		if err := s.happen(kms.EventCancelKeyDeletion); err != nil {
			return err
		}
		return r.followDesire(ctx, s)
	case desired == v1alpha1.DesiredDisabled && s.key.State == kms.StateEnabled:
		return s.happen(kms.EventDisableKey)
	case desired != v1alpha1.DesiredDisabled && s.key.State == kms.StateDisabled:
		return s.happen(kms.EventEnableKey)
	}
	return nil
}

// scheduleDeletion begins a pending deletion, or follows another window.
func (r *importedKeyReconciler) scheduleDeletion(ctx context.Context, s *importScope) error {
	status := &s.object.Status
	if s.key.State != kms.StatePendingDeletion {
		if err := s.happen(kms.EventScheduleKeyDeletion); err != nil {
			return err
		}
		asked := metav1.NewTime(s.now.UTC().Truncate(time.Second))
		status.DeletionRequestTime = &asked
		s.notes = append(s.notes, r.noteUse(ctx, s.object)...)
	}
	days := s.object.Spec.PendingWindowInDays
	if days == 0 {
		days = kms.DefaultPendingWindowInDays
	}
	at := metav1.NewTime(status.DeletionRequestTime.AddDate(0, 0, int(days)))
	status.DeletionTime = &at
	return nil
}

// noteUse warns that data keys still depend on a key that is about to be destroyed.
func (r *importedKeyReconciler) noteUse(ctx context.Context, object *v1alpha1.ImportedKey) []reconciler.Event {
	users := r.findDataKeys(ctx, nil, client.InNamespace(object.Namespace), client.MatchingFields{indexKey: object.Name})
	if len(users) == 0 {
		return nil
	}
	return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "KeyInUse", Action: "Delete", Message: "DataKeys still depend on this key " +
		"and will be permanently lost when it is destroyed. kubectl get datakeys shows them."}}
}

// explainState reports what a key that is not usable is waiting for. Reasons: PendingImport,
// ForbiddenKeyNotFound.
func (r *importedKeyReconciler) explainState(_ context.Context, s *importScope) error {
	switch {
	case s.key.State == kms.StateDeleted:
		return &kms.Error{Code: kms.ForbiddenKeyNotFound, Detail: "The key was destroyed at the end of its deletion window. Delete this object."}
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
