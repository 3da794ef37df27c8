package controllers

import (
	"context"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=importedkeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=importedkeys/status,verbs=patch

// finalizerKey holds an ImportedKey until what it made in the module is cleaned up.
const finalizerKey = "keyconvoy.io/key"

// importedKeyReconciler publishes import parameters and imports key material.
type importedKeyReconciler struct {
	*shared
}

// importScope is what the phases hand on.
type importScope struct {
	object  *v1alpha1.ImportedKey
	key     kms.Key       // set by identify
	sources string        // set by findMaterial: the version of what holds the material and token
	after   time.Duration // set by publishParameters: when they end or are renewed
}

// Reconcile brings the key's material into the module, and the parameters for that to the user.
func (r *importedKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.ImportedKey{}
	if err := r.client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return r.reconcileDelete(ctx, object)
	}
	if err := r.addFinalizer(ctx, object); err != nil {
		return ctrl.Result{}, err
	}

	before := object.DeepCopy()
	scope := &importScope{object: object}
	err := r.identify(ctx, scope)
	if err == nil {
		err = r.publishParameters(ctx, scope)
	}
	if err == nil {
		err = r.importMaterial(ctx, scope)
	}

	r.summarize(object, err)
	if patchErr := reconciler.PatchStatus(ctx, r.client, before, object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	r.announceStall(object, before.Status.Conditions, object.Status.Conditions)
	return reconciler.Result(err, scope.after)
}

func (r *importedKeyReconciler) summarize(object *v1alpha1.ImportedKey, err error) {
	object.Status.ObservedGeneration = object.Generation
	reconciler.Summarize(&object.Status.Conditions, object.Generation, err, "The key is in the module and Enabled.")
}

func (r *importedKeyReconciler) addFinalizer(ctx context.Context, object *v1alpha1.ImportedKey) error {
	before := object.DeepCopy()
	if !controllerutil.AddFinalizer(object, finalizerKey) {
		return nil
	}
	return r.client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

func (r *importedKeyReconciler) removeFinalizer(ctx context.Context, object *v1alpha1.ImportedKey) error {
	before := object.DeepCopy()
	controllerutil.RemoveFinalizer(object, finalizerKey)
	err := r.client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return client.IgnoreNotFound(err)
}
