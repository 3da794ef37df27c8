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
	now     time.Time
	key     kms.Key            // set by identify, and again after each change of the status
	sources string             // set by findMaterial: the version of what holds the material and token
	after   time.Duration      // set by publishParameters and nextDeadline: when to look again
	notes   []reconciler.Event // what people must know, once the status says it too
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
	scope := &importScope{object: object, now: r.clock.Now()}
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

// readyMessages say what it means that a key in each state is what its owner wants.
var readyMessages = map[kms.KeyState]string{
	kms.StateEnabled:         "The key is in the module and Enabled.",
	kms.StateDisabled:        "The key is in the module and Disabled, as its owner wants: no operation uses it.",
	kms.StatePendingDeletion: "The key is destroyed at status.deletionTime, unless desiredState becomes another before.",
}

func (r *importedKeyReconciler) addFinalizer(ctx context.Context, object *v1alpha1.ImportedKey) error {
	before := object.DeepCopy()
	if !controllerutil.AddFinalizer(object, finalizerKey) {
		return nil
	}
	return r.Client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

func (r *importedKeyReconciler) removeFinalizer(ctx context.Context, object *v1alpha1.ImportedKey) error {
	before := object.DeepCopy()
	controllerutil.RemoveFinalizer(object, finalizerKey)
	err := r.Client.Patch(ctx, object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return client.IgnoreNotFound(err)
}
