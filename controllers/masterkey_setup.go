package controllers

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// findMasterKeys finds the master keys of one kind that are wanted; nil means all.
type findMasterKeys func(ctx context.Context, want func(reconciler.Object) bool, options ...client.ListOption) []reconcile.Request

// masterKeyController returns a controller of a kind of master keys, with the watches that all kinds need.
func (s *shared) masterKeyController(mgr ctrl.Manager, kind client.Object, find findMasterKeys) *builder.Builder {
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	byVersion, byStore := handler.EnqueueRequestsFromMapFunc(find.ofVersion), handler.EnqueueRequestsFromMapFunc(find.ofStore)
	return ctrl.NewControllerManagedBy(mgr).
		For(kind, builder.WithPredicates(
			predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&v1alpha1.ImportedKey{}, byVersion, builder.WithPredicates(gone)).
		Watches(&v1alpha1.GeneratedKey{}, byVersion, builder.WithPredicates(gone)).
		Watches(&v1alpha1.KeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ClusterKeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(s.stores.Changes(find.thatWaitFor)).
		WatchesMetadata(namespaces, handler.EnqueueRequestsFromMapFunc(find.ofNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{}))
}

// gone lets deletions through only.
var gone = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(event.UpdateEvent) bool { return false },
}

// ofVersion finds the keys that would adopt what another one held or was about to adopt. Those that adopt by name do not
// know the version yet.
func (find findMasterKeys) ofVersion(ctx context.Context, key client.Object) []reconcile.Request {
	requests := find(ctx, waitsToAdopt, client.InNamespace(key.GetNamespace()))
	for _, version := range keyring.Of(key).Versions() {
		requests = append(requests, find(ctx, waits, client.MatchingFields{keyring.IndexVersion: version})...)
	}
	return requests
}

// ofStore finds the keys that wait for a key store. One that is Ready needs no store until it changes; one that is being deleted
// does.
func (find findMasterKeys) ofStore(ctx context.Context, store client.Object) []reconcile.Request {
	return find(ctx, waits, inStore(keystore.IDOfObject(store)))
}

// thatWaitFor finds the keys that wait for a key store whose state has changed.
func (find findMasterKeys) thatWaitFor(ctx context.Context, change keystore.Change) []reconcile.Request {
	if change.State == keystore.Suspect {
		return nil
	}
	return find(ctx, waits, inStore(change.ID))
}

// ofNamespace finds the keys to which a namespace's labels may open a key store.
func (find findMasterKeys) ofNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	return find(ctx, nil, client.InNamespace(namespace.GetName()))
}

// inStore selects the master keys of a key store.
func inStore(id keystore.ID) client.ListOption {
	return client.MatchingFields{keyring.IndexStore: id.String()}
}

// waits reports whether an object is not Ready, or is being deleted.
func waits(o reconciler.Object) bool {
	return !o.GetDeletionTimestamp().IsZero() || !ready(o.GetConditions())
}

func waitsToAdopt(o reconciler.Object) bool { return keyring.Of(o).Adopts() && waits(o) }
