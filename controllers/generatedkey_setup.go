package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

func (r *generatedKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	suspects := handler.EnqueueRequestsFromMapFunc(r.suspectKeys)
	return r.masterKeyController(mgr, &v1alpha1.GeneratedKey{}, r.find).
		Watches(&v1alpha1.KeyStore{}, suspects, builder.WithPredicates(suspectPeriodsChanged)).
		Watches(&v1alpha1.ClusterKeyStore{}, suspects, builder.WithPredicates(suspectPeriodsChanged)).
		WithOptions(options).
		Complete(r.observed(keyring.KindGeneratedKey, reconciler.Logged(r)))
}

// find implements findMasterKeys.
func (r *generatedKeyReconciler) find(ctx context.Context, want func(reconciler.Object) bool, options ...client.ListOption) []reconcile.Request {
	return r.findGeneratedKeys(ctx, func(k *v1alpha1.GeneratedKey) bool { return want == nil || want(k) }, options...)
}

// suspectKeys finds the keys of a key store whose suspect periods have changed.
func (r *generatedKeyReconciler) suspectKeys(ctx context.Context, store client.Object) []reconcile.Request {
	return r.find(ctx, nil, inStore(keystore.IDOfObject(store)))
}
