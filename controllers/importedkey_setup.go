package controllers

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

func (r *importedKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	byStore, byVersion := handler.EnqueueRequestsFromMapFunc(r.keysOfStore), handler.EnqueueRequestsFromMapFunc(r.keysOfVersion)
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.ImportedKey{}, builder.WithPredicates(
			predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&v1alpha1.ImportedKey{}, byVersion, builder.WithPredicates(gone)).
		Watches(&v1alpha1.GeneratedKey{}, byVersion, builder.WithPredicates(gone)).
		Watches(&v1alpha1.KeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ClusterKeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(r.stores.Changes(r.keysThatWaitFor)).
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.keysOfContent(secrets.Secret))).
		WatchesMetadata(secrets.ConfigMap.Metadata(), handler.EnqueueRequestsFromMapFunc(r.keysOfContent(secrets.ConfigMap))).
		WatchesMetadata(namespaces, handler.EnqueueRequestsFromMapFunc(r.keysOfNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(options).
		Complete(r.observed("ImportedKey", reconciler.Logged(r)))
}

// gone lets deletions through only.
var gone = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	UpdateFunc: func(event.UpdateEvent) bool { return false },
}

// keysOfVersion finds the keys that would adopt what another one held or was about to adopt. Those that adopt by name do not
// know the version yet.
func (r *importedKeyReconciler) keysOfVersion(ctx context.Context, key client.Object) []reconcile.Request {
	requests := r.findKeys(ctx, waitingAdopter, client.InNamespace(key.GetNamespace()))
	for _, version := range keyring.Of(key).Versions() {
		requests = append(requests, r.findKeys(ctx, waitingKey, client.MatchingFields{keyring.IndexVersion: version})...)
	}
	return requests
}

// keysOfStore finds the keys that wait for a key store. One that is Ready needs no store until it
// changes itself; one that is being deleted does.
func (r *importedKeyReconciler) keysOfStore(ctx context.Context, store client.Object) []reconcile.Request {
	return r.findKeys(ctx, waitingKey, client.MatchingFields{keyring.IndexStore: keystore.IDOfObject(store).String()})
}

// keysThatWaitFor finds the keys that wait for a key store whose state has changed.
func (r *importedKeyReconciler) keysThatWaitFor(ctx context.Context, change keystore.Change) []reconcile.Request {
	if change.State == keystore.Suspect {
		return nil
	}
	return r.findKeys(ctx, waitingKey, client.MatchingFields{keyring.IndexStore: change.ID.String()})
}

func (r *importedKeyReconciler) keysOfContent(kind secrets.Kind) handler.MapFunc {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.findKeys(ctx, nil, client.InNamespace(o.GetNamespace()), client.MatchingFields{indexContent: contentIndex(kind, o.GetName())})
	}
}

// keysOfNamespace finds the keys to which a namespace's labels may open a key store.
func (r *importedKeyReconciler) keysOfNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	return r.findKeys(ctx, nil, client.InNamespace(namespace.GetName()))
}

func waitingAdopter(k *v1alpha1.ImportedKey) bool { return k.Spec.Adopt != nil && waitingKey(k) }

func waitingKey(k *v1alpha1.ImportedKey) bool {
	return !k.DeletionTimestamp.IsZero() || !ready(k.Status.Conditions)
}
