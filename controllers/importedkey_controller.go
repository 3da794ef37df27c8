package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=importedkeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=importedkeys/status,verbs=patch

// importedKeyReconciler publishes import parameters and imports key material.
type importedKeyReconciler struct {
	*shared
}

// importScope is what the phases hand on. publishParameters and nextDeadline set after.
type importScope struct {
	keyScope

	object  *v1alpha1.ImportedKey
	sources string // set by findMaterial: the version of what holds the material and token
}

// Reconcile brings the key's material into the module, and the parameters for that to the user.
func (r *importedKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.ImportedKey{}
	if err := r.Client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return r.reconcileDelete(ctx, object)
	}
	if err := r.addFinalizer(ctx, object); err != nil {
		return ctrl.Result{}, err
	}

	was := object.Status.KeyState
	scope := &importScope{keyScope: keyScope{masterKey: masterKeyOf(object), now: r.clock.Now()}, object: object}
	return reconciler.Run(ctx, r.Frame, object, scope, []reconciler.Phase[*importScope]{
		r.identify, r.adopt, r.followClock, r.deleteMaterial, r.followDesire,
		r.followClock, // a window that was shortened may be over
		r.publishParameters, r.importMaterial, r.followDesire, r.explainState,
	}, func(err error) reconciler.Outcome {
		scope.nextDeadline()
		scope.noteState(was)
		return reconciler.Outcome{
			Err: err, ReadyMessage: readyMessages[kms.KeyState(object.Status.KeyState)],
			After: scope.after, Events: scope.notes,
			Write: was != "" && was != object.Status.KeyState, // a state that has changed is news in any case
		}
	})
}
