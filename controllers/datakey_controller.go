package controllers

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=datakeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=datakeys/status,verbs=patch

// dataKeyReconciler generates data keys and keeps their blobs.
//
// A data key that is lost cannot be made again. So its Secret has no owner and outlives the object, a
// blob that is found is taken over, and a blob that cannot be read is never replaced.
type dataKeyReconciler struct {
	*shared
}

// dataKeyScope is what the phases hand on.
type dataKeyScope struct {
	object   *v1alpha1.DataKey
	target   target                // set by findKey
	imported *v1alpha1.ImportedKey // set by findKey
	key      kms.Key               // set by findKey
	done     bool                  // set by findUnchanged: there is nothing to do
	secret   *corev1.Secret        // set by findBlob; nil when there is none
	blob     string                // set by findBlob or generate
	custody  v1alpha1.Custody      // set with blob
}

// Reconcile finds the data key or generates it, and keeps it in the Secret and in the status.
func (r *dataKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.DataKey{}
	if err := r.client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}

	before := object.DeepCopy()
	scope := &dataKeyScope{object: object}
	var err error
	for _, phase := range []func(context.Context, *dataKeyScope) error{
		r.findKey, r.findUnchanged, r.findBlob, r.generate, r.keepBlob, r.markMade,
	} {
		if err = phase(ctx, scope); err != nil || scope.done {
			break
		}
	}

	if errors.Is(err, errOpening) {
		return r.result(err, 0, before.Status.Conditions)
	}
	object.Status.ObservedGeneration = object.Generation
	reconciler.Summarize(&object.Status.Conditions, object.Generation, err, "The data key is in status.ciphertextBlob and in its Secret.")
	if patchErr := reconciler.PatchStatus(ctx, r.client, before, object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	r.announceStall(object, before.Status.Conditions, object.Status.Conditions)
	return r.result(err, 0, before.Status.Conditions)
}
