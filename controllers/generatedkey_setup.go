package controllers

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

func (r *generatedKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	byStore, byVersion := handler.EnqueueRequestsFromMapFunc(r.keysOfStore), handler.EnqueueRequestsFromMapFunc(r.keysOfVersion)
	suspects := handler.EnqueueRequestsFromMapFunc(r.suspectKeys)
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.GeneratedKey{}, builder.WithPredicates(
			predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&v1alpha1.ImportedKey{}, byVersion, builder.WithPredicates(gone)).
		Watches(&v1alpha1.GeneratedKey{}, byVersion, builder.WithPredicates(gone)).
		Watches(&v1alpha1.KeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ClusterKeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.KeyStore{}, suspects, builder.WithPredicates(suspectPeriodsChanged)).
		Watches(&v1alpha1.ClusterKeyStore{}, suspects, builder.WithPredicates(suspectPeriodsChanged)).
		WatchesRawSource(r.stores.Changes(r.keysThatWaitFor)).
		WatchesMetadata(namespaces, handler.EnqueueRequestsFromMapFunc(r.keysOfNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(options).
		Complete(r.observed(keyring.KindGeneratedKey, reconciler.Logged(r)))
}

// keysOfVersion finds the keys that would adopt what another one held. Those that wait to adopt are few, so it finds all of the
// namespace.
func (r *generatedKeyReconciler) keysOfVersion(ctx context.Context, key client.Object) []reconcile.Request {
	return r.findGeneratedKeys(ctx, func(k *v1alpha1.GeneratedKey) bool { return k.Spec.Adopt != nil && waitingGeneratedKey(k) },
		client.InNamespace(key.GetNamespace()))
}

// keysOfStore finds the keys that wait for a key store. One that is Ready needs no store until it is rotated; one that is being
// deleted does.
func (r *generatedKeyReconciler) keysOfStore(ctx context.Context, store client.Object) []reconcile.Request {
	return r.findGeneratedKeys(ctx, waitingGeneratedKey, client.MatchingFields{keyring.IndexStore: keystore.IDOfObject(store).String()})
}

// suspectKeys finds the keys of a key store whose suspect periods have changed.
func (r *generatedKeyReconciler) suspectKeys(ctx context.Context, store client.Object) []reconcile.Request {
	return r.findGeneratedKeys(ctx, nil, client.MatchingFields{keyring.IndexStore: keystore.IDOfObject(store).String()})
}

// keysThatWaitFor finds the keys that wait for a key store whose state has changed.
func (r *generatedKeyReconciler) keysThatWaitFor(ctx context.Context, change keystore.Change) []reconcile.Request {
	if change.State == keystore.Suspect {
		return nil
	}
	return r.findGeneratedKeys(ctx, waitingGeneratedKey, client.MatchingFields{keyring.IndexStore: change.ID.String()})
}

// keysOfNamespace finds the keys to which a namespace's labels may open a key store.
func (r *generatedKeyReconciler) keysOfNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	return r.findGeneratedKeys(ctx, nil, client.InNamespace(namespace.GetName()))
}

func waitingGeneratedKey(k *v1alpha1.GeneratedKey) bool {
	return !k.DeletionTimestamp.IsZero() || !ready(k.Status.Conditions)
}
