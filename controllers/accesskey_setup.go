package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func (r *accessKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.AccessKey{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.accessKeyOf)).
		WithOptions(options).
		Complete(r.observed("AccessKey", reconciler.Logged(r)))
}

// accessKeyOf finds the access key whose Secret has the name of this one.
func (r *accessKeyReconciler) accessKeyOf(ctx context.Context, secret client.Object) []reconcile.Request {
	key := client.ObjectKeyFromObject(secret)
	if r.Client.Get(ctx, key, &v1alpha1.AccessKey{}, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency) != nil {
		return nil
	}
	return []reconcile.Request{{NamespacedName: key}}
}
