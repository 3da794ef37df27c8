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

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func (r *keyStoreReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	var kind client.Object = &v1alpha1.KeyStore{}
	if r.kind == keystore.KindClusterKeyStore {
		kind = &v1alpha1.ClusterKeyStore{}
	}
	return ctrl.NewControllerManagedBy(mgr).
		For(kind, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.storesOfPIN)).
		Watches(&v1alpha1.ImportedKey{}, handler.EnqueueRequestsFromMapFunc(r.storeOfKey), builder.WithPredicates(goneOrAdopted)).
		Watches(&v1alpha1.GeneratedKey{}, handler.EnqueueRequestsFromMapFunc(r.storeOfKey), builder.WithPredicates(goneOrAdopted)).
		WatchesRawSource(r.stores.Changes(r.suspects)).
		WithOptions(options).
		Complete(r.observed(r.kind, reconciler.Logged(r)))
}

// goneOrAdopted lets the end of a key through, for which its key store may wait, and an adoption, after which a key
// has a holder.
var goneOrAdopted = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return !keyring.Of(e.ObjectOld).Holds() && keyring.Of(e.ObjectNew).Holds()
	},
}

// storeOfKey finds the key store that may have been waiting for a key's end.
func (r *keyStoreReconciler) storeOfKey(_ context.Context, key client.Object) []reconcile.Request {
	id := keyring.Of(key).Store()
	if id.Kind != r.kind {
		return nil
	}
	return []reconcile.Request{{NamespacedName: id.Key()}}
}

// suspects finds the key stores of this kind whose module did not answer a call.
func (r *keyStoreReconciler) suspects(_ context.Context, change keystore.Change) []reconcile.Request {
	if change.State != keystore.Suspect || change.ID.Kind != r.kind {
		return nil
	}
	return []reconcile.Request{{NamespacedName: change.ID.Key()}}
}

// storesOfPIN finds the key stores whose PIN is in a Secret. There are few key stores, so it looks at
// each.
func (r *keyStoreReconciler) storesOfPIN(ctx context.Context, secret client.Object) []reconcile.Request {
	var requests []reconcile.Request
	stores, err := keystore.List(ctx, r.Client, r.kind)
	if err != nil {
		return nil // the cache has stopped, because the operator is stopping
	}
	for _, store := range stores {
		if pinRef(store.Spec) != nil && r.pinSecret(store) == r.secrets.Ref(secret, secrets.Secret, secret.GetName()) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(store)})
		}
	}
	return requests
}
