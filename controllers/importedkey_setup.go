package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func (r *importedKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	return r.masterKeyController(mgr, &v1alpha1.ImportedKey{}, r.find).
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.keysOfContent(secrets.Secret))).
		WatchesMetadata(secrets.ConfigMap.Metadata(), handler.EnqueueRequestsFromMapFunc(r.keysOfContent(secrets.ConfigMap))).
		WithOptions(options).
		Complete(r.observed(keyring.KindImportedKey, reconciler.Logged(r)))
}

// find implements findMasterKeys.
func (r *importedKeyReconciler) find(ctx context.Context, want func(reconciler.Object) bool, options ...client.ListOption) []reconcile.Request {
	return r.findKeys(ctx, func(k *v1alpha1.ImportedKey) bool { return want == nil || want(k) }, options...)
}

func (r *importedKeyReconciler) keysOfContent(kind secrets.Kind) handler.MapFunc {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.findKeys(ctx, nil, client.InNamespace(o.GetNamespace()), client.MatchingFields{indexContent: contentIndex(kind, o.GetName())})
	}
}
