package controllers

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func (r *keyStoreReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	var kind client.Object = &v1alpha1.KeyStore{}
	if r.kind == kindClusterKeyStore {
		kind = &v1alpha1.ClusterKeyStore{}
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(kind, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.storesOfPIN)).
		WatchesRawSource(source.Channel(r.modules.suspected(), handler.EnqueueRequestsFromMapFunc(r.ofThisKind))).
		WithOptions(options).
		Complete(r)
}

// ofThisKind lets a key store through that this reconciler serves.
func (r *keyStoreReconciler) ofThisKind(_ context.Context, store client.Object) []reconcile.Request {
	if idOfObject(store).kind != r.kind {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKeyFromObject(store)}}
}

// storesOfPIN finds the key stores whose PIN is in a Secret. There are few key stores, so it looks at
// each.
func (r *keyStoreReconciler) storesOfPIN(ctx context.Context, secret client.Object) []reconcile.Request {
	var requests []reconcile.Request
	for _, store := range r.listStores(ctx) {
		if pinRef(store.spec) != nil && r.pinKey(store) == client.ObjectKeyFromObject(secret) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(store)})
		}
	}
	return requests
}

// listStores lists the key stores of this reconciler's kind from the cache, for reading only. Should the cache be gone,
// the operator is about to end, and nobody needs the answer.
func (r *keyStoreReconciler) listStores(ctx context.Context) []storeObject {
	var stores []storeObject
	if r.kind == kindClusterKeyStore {
		var all v1alpha1.ClusterKeyStoreList
		_ = list(ctx, r.client, &all)
		for i := range all.Items {
			o := &all.Items[i]
			stores = append(stores, storeObject{o, idOfObject(o), &o.Spec.KeyStoreSpec, o.Spec.AllowedNamespaces, &o.Status})
		}
		return stores
	}
	var all v1alpha1.KeyStoreList
	_ = list(ctx, r.client, &all)
	for i := range all.Items {
		o := &all.Items[i]
		stores = append(stores, storeObject{o, idOfObject(o), &o.Spec, nil, &o.Status})
	}
	return stores
}

func ready(conditions []metav1.Condition) bool {
	return meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady)
}
