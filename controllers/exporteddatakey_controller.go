package controllers

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=exporteddatakeys,verbs=get;list;watch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=exporteddatakeys/status,verbs=patch

// exportedDataKeyReconciler exports data keys into Secrets.
//
// RSA-OAEP and SM2 are randomised: an export is made again when an input changed, never to compare.
type exportedDataKeyReconciler struct {
	*shared
}

// exportScope is what the phases hand on.
type exportScope struct {
	object      *v1alpha1.ExportedDataKey
	target      target                // set by findDataKey
	blob        string                // set by findDataKey
	namespace   string                // set by findDataKey: where the master key is
	keyName     string                // set by findDataKey: its master key's name, unless the blob is inline
	version     uuid.UUID             // set by findDataKey: the key version that the blob names
	context     kms.EncryptionContext // set by findDataKey
	recipient   *wrapping.PublicKey   // set by findRecipient; nil when the fingerprint is known from before
	fingerprint string                // set by findRecipient: the recipient's
	source      string                // set by findRecipient: the version of where the public key is
	imported    *v1alpha1.ImportedKey // set by askConsent: the master key
	inputs      string                // set by compare: the digest of all inputs
	done        bool                  // set by compare: nothing is to be exported
	secret      *corev1.Secret        // set by compare: the Secret to replace
	exported    kms.ExportedDataKey   // set by export
}

// Reconcile exports the data key for the recipient when an input or the Secret is other than it was.
func (r *exportedDataKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.ExportedDataKey{}
	if err := r.client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // the Secret has an owner and goes with it
	}

	before := object.DeepCopy()
	scope := &exportScope{object: object}
	var err error
	phases := []func(context.Context, *exportScope) error{
		r.keepConsent, r.findDataKey, r.findRecipient, r.askConsent, r.compare, r.export, r.writeSecret,
	}
	if object.Spec.DryRun {
		phases = []func(context.Context, *exportScope) error{
			r.keepConsent, r.findDataKey, r.findRecipient, r.askConsent, r.export,
		}
	}
	for _, phase := range phases {
		if err = phase(ctx, scope); err != nil || scope.done {
			break
		}
	}
	if errors.Is(err, errOpening) {
		return r.result(err, 0, before.Status.Conditions)
	}
	if object.Spec.DryRun {
		err = kms.DryRun(err)
	}

	object.Status.ObservedGeneration = object.Generation
	reconciler.Summarize(&object.Status.Conditions, object.Generation, err, "The exported data key is in its Secret.")
	if patchErr := reconciler.PatchStatus(ctx, r.client, before, object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	r.announceStall(object, before.Status.Conditions, object.Status.Conditions)
	r.announceRotation(object, before.Status.RecipientFingerprint)
	return r.result(err, 0, before.Status.Conditions)
}

// announceRotation says that an export was made anew for another recipient key.
func (r *exportedDataKeyReconciler) announceRotation(object *v1alpha1.ExportedDataKey, was string) {
	is := object.Status.RecipientFingerprint
	if was != "" && was != is {
		r.recorder.Eventf(object, nil, corev1.EventTypeNormal, "RecipientChanged", "Export",
			"The data key was exported again, for the recipient key %s instead of %s.", is, was)
	}
}
