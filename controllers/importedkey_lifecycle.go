package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// happen moves the key to its next state.
func (s *importScope) happen(event kms.Event) error {
	next, err := kms.Next(s.key.State, event, s.object.HasMaterial())
	if err != nil {
		return err
	}
	s.object.Status.KeyState = v1alpha1.KeyState(next)
	s.key, err = keyOf(s.object)
	return err
}

// forgetMaterial says in the status that the module has no material any more. The fingerprint stays: the
// first material binds the key for ever.
func (s *importScope) forgetMaterial() {
	s.object.Status.Custody = ""
	s.object.Status.MaterialExpireTime = nil
	s.key.MaterialExpireTime = time.Time{}
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

// noteState tells of every change of state; that a key begins by waiting is none.
func (s *importScope) noteState(was v1alpha1.KeyState) {
	is := s.object.Status.KeyState
	if is == was || (was == "" && kms.KeyState(is) == kms.StatePendingImport) {
		return
	}
	kind := corev1.EventTypeNormal
	if kms.KeyState(is) == kms.StatePendingImport || kms.KeyState(is) == kms.StateDeleted {
		kind = corev1.EventTypeWarning
	}
	s.notes = append(s.notes, note{kind, "KeyState", "ChangeState", fmt.Sprintf("The key was %s and is %s.", was, is)})
}

// adopt takes a key over that is in the module already, once. Reasons: KeyVersionTaken,
// ForbiddenKeyVersionNotFound, InvalidKeyMaterial, InvalidParameter, and those of operations.
func (r *importedKeyReconciler) adopt(ctx context.Context, s *importScope) error {
	spec, status := s.object.Spec.Adopt, &s.object.Status
	if spec == nil || status.MaterialFingerprint != "" {
		return nil
	}
	if err := r.checkSoleHolder(ctx, s); err != nil {
		return err
	}
	if spec.MaterialFingerprint != "" {
		want, ok := hsm.ParseFingerprint(spec.MaterialFingerprint)
		if !ok {
			return &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.materialFingerprint", Detail: "It is not a fingerprint: give 32 hexadecimal digits."}
		}
		s.key.Fingerprint = &want
	}
	ops, giveBack, err := r.operations(ctx, s.object.Namespace, s.object.Spec.KeyStoreRef)
	if err != nil {
		return err
	}
	defer giveBack()
	found, err := ops.AdoptKey(ctx, s.key)
	if err != nil {
		// What is in the module cannot be watched.
		e := reconciler.From(err)
		e.After = healthInterval
		return e
	}
	// Wrapped material in a spec that was restored is what is in the module already.
	inputs := ""
	if s.object.Spec.Material != nil {
		if inputs, err = r.inputsOf(ctx, s); err != nil {
			return err
		}
		status.MaterialExpireTime = s.object.Spec.Material.ExpireTime
	}
	status.InputsDigest, status.SourcesVersion = inputs, s.sources
	// An annotation that was restored asks for what was done to the former object.
	status.MaterialDeletedFor = annotationValue(s.object, v1alpha1.AnnotationDeleteKeyMaterial)
	status.MaterialFingerprint = found.Fingerprint.String()
	status.Custody = v1alpha1.CustodyUnknown
	return s.happen(kms.EventImportKeyMaterial)
}

// checkSoleHolder lets only one of the objects that name one key in one key store have it: the one that does,
// or else the oldest. Those of other namespaces stand in nobody's way: the module gives them no such key.
func (r *importedKeyReconciler) checkSoleHolder(ctx context.Context, s *importScope) error {
	var holders v1alpha1.ImportedKeyList
	err := r.client.List(ctx, &holders, client.InNamespace(s.object.Namespace), client.MatchingFields{indexVersion: s.key.VersionID().String()})
	if err != nil {
		return err
	}
	store := idOf(s.object.Namespace, s.object.Spec.KeyStoreRef)
	for i := range holders.Items {
		other := &holders.Items[i]
		first := holdsKey(other) || older(other, s.object)
		if other.UID != s.object.UID && first && idOf(other.Namespace, other.Spec.KeyStoreRef) == store {
			return reconciler.Stall(v1alpha1.ReasonKeyVersionTaken,
				"Another ImportedKey holds this key version already. Delete that object, or this one.")
		}
	}
	return nil
}

// holdsKey says whether the key version that an object names is its own, by its import or by adoption. Anybody
// may ask to adopt any key version; who only asks has no say over it.
func holdsKey(k *v1alpha1.ImportedKey) bool {
	return k.Spec.Adopt == nil || k.Status.MaterialFingerprint != ""
}

// older orders objects by their creation, and those of one second by their UIDs.
func older(a, b client.Object) bool {
	at, bt := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if at.Equal(&bt) {
		return a.GetUID() < b.GetUID()
	}
	return at.Before(&bt)
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
		if err := r.destroy(ctx, s); err != nil {
			return err
		}
	}
	// A deletion that was called off while nobody looked is not carried out, however late: the key is
	// still there, and its owner wants it.
	wanted := s.object.Spec.DesiredState == v1alpha1.DesiredPendingDeletion
	if at := status.DeletionTime; wanted && at != nil && !s.now.Before(at.Time) && s.key.State == kms.StatePendingDeletion {
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
	if asked != "" && s.object.HasMaterial() {
		if err := r.destroy(ctx, s); err != nil {
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
func (r *importedKeyReconciler) destroy(ctx context.Context, s *importScope) error {
	ops, giveBack, err := r.borrow(ctx, idOf(s.object.Namespace, s.object.Spec.KeyStoreRef))
	if err != nil {
		return err
	}
	defer giveBack()
	if err := ops.DeleteKeyMaterial(ctx, s.key); err != nil {
		return err
	}
	s.forgetMaterial()
	return nil
}

// destroyAll destroys the material and every wrapping pair.
func (r *importedKeyReconciler) destroyAll(ctx context.Context, s *importScope) error {
	if err := r.destroy(ctx, s); err != nil {
		return err
	}
	ops, giveBack, err := r.borrow(ctx, idOf(s.object.Namespace, s.object.Spec.KeyStoreRef))
	if err != nil {
		return err
	}
	defer giveBack()
	_, err = ops.DestroyImportParameters(ctx, s.key.ID, true)
	return err
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

// noteUse warns that data keys still need a key that is about to be destroyed.
func (r *importedKeyReconciler) noteUse(ctx context.Context, object *v1alpha1.ImportedKey) []note {
	users := r.findDataKeys(ctx, nil, client.InNamespace(object.Namespace), client.MatchingFields{indexKey: object.Name})
	if len(users) == 0 {
		return nil
	}
	return []note{{corev1.EventTypeWarning, "KeyInUse", "Delete",
		"DataKeys still need this key: they are lost for ever when it is destroyed. kubectl get datakeys shows them."}}
}

// explainState says what a key that is not usable waits for. Reasons: PendingImport,
// ForbiddenKeyNotFound.
func (r *importedKeyReconciler) explainState(_ context.Context, s *importScope) error {
	switch {
	case s.key.State == kms.StateDeleted:
		return &kms.Error{Code: kms.ForbiddenKeyNotFound, Detail: "The key was destroyed when its deletion window was over. Delete this object."}
	case s.key.State != kms.StatePendingImport:
		return nil
	case s.key.Fingerprint != nil:
		return reconciler.Wait(v1alpha1.ReasonPendingImport, fmt.Sprintf(
			"The key's material has ended or was deleted. Import the same material again: ask for import parameters with the annotation %s where there are none, wrap it and put it into spec.material.",
			v1alpha1.AnnotationRenewImportParameters))
	}
	return reconciler.Wait(v1alpha1.ReasonPendingImport, fmt.Sprintf(
		"The key waits for its material. Wrap %d bytes under status.importParameters.publicKey (keyconvoy wrap --key %s -n %s --apply, or openssl) and put them into spec.material.",
		s.key.Spec.Len(), s.object.Name, s.object.Namespace))
}
