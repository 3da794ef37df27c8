package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=clusterexporteddatakeys,verbs=get;list;watch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=clusterexporteddatakeys/status,verbs=patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=exporteddatakeys,verbs=create;patch;delete

// The policies in config/policy require the verb export on the DataKey from everyone who creates an ExportedDataKey, the
// operator included. It creates ExportedDataKeys only for those who created a ClusterExportedDataKey, and they needed that
// verb on the same DataKey.
// +kubebuilder:rbac:groups=keyconvoy.io,resources=datakeys,verbs=export

// clusterExportReconciler keeps an ExportedDataKey in every namespace that is selected. What each of them
// does, and whether the key's owner consents, is theirs.
type clusterExportReconciler struct {
	*shared
}

// clusterExportScope is what the phases hand on.
type clusterExportScope struct {
	object      *v1alpha1.ClusterExportedDataKey
	namespaces  []string                             // set by selectNamespaces, sorted
	exports     map[string]*v1alpha1.ExportedDataKey // set by listExports: this object's, by namespace; makeExports takes out those that it changes
	failures    map[string]string                    // set by makeExports: reasons by namespace
	refused     bool                                 // set by makeExports: the API server refused one for good
	again       bool                                 // set by makeExports: one had changed meanwhile
	unavailable error                                // set by makeExports and removeExports: one that is to be tried again
}

// Reconcile makes, repairs and removes the exports, and counts them.
func (r *clusterExportReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.ClusterExportedDataKey{}
	if err := r.Client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // the exports have an owner and go with it
	}

	scope := &clusterExportScope{object: object, failures: map[string]string{}}
	return reconciler.Run(ctx, r.Frame, object, scope, []reconciler.Phase[*clusterExportScope]{
		r.selectNamespaces, r.approveDataKey, r.listExports, r.makeExports, r.removeExports, r.countExports,
	}, func(err error) reconciler.Outcome {
		message := "The data key is exported to every selected namespace."
		if len(scope.namespaces) == 0 {
			message = "No namespace matches spec.namespaceSelector, so the data key is not exported."
		}
		return reconciler.Outcome{Err: err, ReadyMessage: message}
	})
}
