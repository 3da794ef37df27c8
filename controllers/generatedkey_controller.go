package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=generatedkeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=generatedkeys/status,verbs=patch

// generatedKeyReconciler has modules generate keys and their further versions.
type generatedKeyReconciler struct {
	*shared
}

// generatedScope is what the phases hand on.
type generatedScope struct {
	keyScope

	object *v1alpha1.GeneratedKey
}

// Reconcile has the module generate the key, and a new version whenever the key is to be rotated.
func (r *generatedKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.GeneratedKey{}
	if err := r.Client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return r.reconcileDelete(ctx, object)
	}
	if err := r.addFinalizer(ctx, object); err != nil {
		return ctrl.Result{}, err
	}

	was, versions := object.Status.KeyState, len(object.Status.Versions)
	scope := &generatedScope{keyScope: keyScope{masterKey: masterKeyOf(object), now: r.clock.Now()}, object: object}
	return reconciler.Run(ctx, r.Frame, object, scope, []reconciler.Phase[*generatedScope]{
		r.identify, r.adopt, r.generate, r.followClock, r.followDesire,
		r.followClock, // a window that was shortened may be over
		r.generate,    // a deletion may have been called off before the key was generated
		r.noteSuspect, r.rotate, r.explainState,
	}, func(err error) reconciler.Outcome {
		scope.lookAgainAt(object.Status.DeletionTime, object.Status.NextRotationTime)
		scope.noteState(was)
		return reconciler.Outcome{
			Err: err, ReadyMessage: readyMessages[kms.KeyState(object.Status.KeyState)],
			After: scope.after, Events: scope.notes, OnlyIfUnchanged: len(object.Status.Versions) != versions,
			Write: was != "" && was != object.Status.KeyState, // a state that has changed is news in any case
		}
	})
}
