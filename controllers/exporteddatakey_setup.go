package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func (r *exportedDataKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	byKey := handler.EnqueueRequestsFromMapFunc(r.exportsOfKey)
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.ExportedDataKey{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.DataKey{}, handler.EnqueueRequestsFromMapFunc(r.exportsOfDataKey), builder.WithPredicates(blobChanged)).
		Watches(&v1alpha1.ImportedKey{}, byKey, builder.WithPredicates(keyStateChanged)).
		Watches(&v1alpha1.ImportedKey{}, handler.EnqueueRequestsFromMapFunc(r.exportsToKey), builder.WithPredicates(parametersChanged)).
		WatchesRawSource(source.Channel(r.modules.subscribe(), handler.EnqueueRequestsFromMapFunc(r.exportsOfStore))).
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.exportsOfContent(secrets.Secret))).
		WatchesMetadata(secrets.ConfigMap.Metadata(), handler.EnqueueRequestsFromMapFunc(r.exportsOfContent(secrets.ConfigMap))).
		WithOptions(options).
		Complete(r)
}

// blobChanged lets through what gives an export another data key.
var blobChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.(*v1alpha1.DataKey).Status.CiphertextBlob != e.ObjectNew.(*v1alpha1.DataKey).Status.CiphertextBlob
	},
}

// parametersChanged lets through what gives an export to an ImportedKey another recipient key.
var parametersChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		was := e.ObjectOld.(*v1alpha1.ImportedKey).Status.ImportParameters
		is := e.ObjectNew.(*v1alpha1.ImportedKey).Status.ImportParameters
		return is != nil && (was == nil || was.PublicKey != is.PublicKey)
	},
}

func (r *exportedDataKeyReconciler) exportsOfDataKey(ctx context.Context, dataKey client.Object) []reconcile.Request {
	return r.findExports(ctx, nil, client.InNamespace(dataKey.GetNamespace()), client.MatchingFields{indexDataKey: dataKey.GetName()})
}

// exportsOfKey finds the exports that wait for a master key, by their DataKeys or their inline blobs.
func (r *exportedDataKeyReconciler) exportsOfKey(ctx context.Context, key client.Object) []reconcile.Request {
	namespace := client.InNamespace(key.GetNamespace())
	var requests []reconcile.Request
	for _, dataKey := range r.findDataKeys(ctx, nil, namespace, client.MatchingFields{indexKey: key.GetName()}) {
		requests = append(requests, r.findExports(ctx, waitingExport, namespace, client.MatchingFields{indexDataKey: dataKey.Name})...)
	}
	for _, version := range importedKeyVersion(key) {
		requests = append(requests, r.findExports(ctx, waitingExport, namespace, client.MatchingFields{indexVersion: version})...)
	}
	return requests
}

// exportsToKey finds the exports whose recipient is an ImportedKey.
func (r *exportedDataKeyReconciler) exportsToKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.findExports(ctx, nil, client.InNamespace(key.GetNamespace()), client.MatchingFields{indexKey: key.GetName()})
}

// exportsOfStore finds the exports that wait for a key store that begins to serve.
func (r *exportedDataKeyReconciler) exportsOfStore(ctx context.Context, store client.Object) []reconcile.Request {
	var keys v1alpha1.ImportedKeyList
	err := r.client.List(ctx, &keys, client.MatchingFields{indexStore: idOfObject(store).String()},
		client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil // the cache is gone, and the operator with it
	}
	var requests []reconcile.Request
	for i := range keys.Items {
		requests = append(requests, r.exportsOfKey(ctx, &keys.Items[i])...)
	}
	return requests
}

func (r *exportedDataKeyReconciler) exportsOfContent(kind secrets.Kind) handler.MapFunc {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.findExports(ctx, nil, client.InNamespace(o.GetNamespace()), client.MatchingFields{indexContent: contentIndex(kind, o.GetName())})
	}
}

func (s *shared) findExports(ctx context.Context, want func(*v1alpha1.ExportedDataKey) bool, options ...client.ListOption) []reconcile.Request {
	items := func(l *v1alpha1.ExportedDataKeyList) []v1alpha1.ExportedDataKey { return l.Items }
	return find(ctx, s.client, &v1alpha1.ExportedDataKeyList{}, items, want, options...)
}

func waitingExport(e *v1alpha1.ExportedDataKey) bool { return !ready(e.Status.Conditions) }
