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

func (r *dataKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	byStore, suspects := handler.EnqueueRequestsFromMapFunc(r.dataKeysOfStore), handler.EnqueueRequestsFromMapFunc(r.suspectDataKeys)
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.DataKey{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ImportedKey{}, handler.EnqueueRequestsFromMapFunc(r.dataKeysOfKey), builder.WithPredicates(keyStateChanged)).
		Watches(&v1alpha1.GeneratedKey{}, handler.EnqueueRequestsFromMapFunc(r.dataKeysOfKey), builder.WithPredicates(keyStateChanged)).
		WatchesRawSource(r.stores.Changes(r.dataKeysThatWaitFor)).
		Watches(&v1alpha1.KeyStore{}, suspects, builder.WithPredicates(suspectPeriodsChanged)).
		Watches(&v1alpha1.ClusterKeyStore{}, suspects, builder.WithPredicates(suspectPeriodsChanged)).
		Watches(&v1alpha1.ClusterKeyStore{}, byStore, builder.WithPredicates(predicate.GenerationChangedPredicate{})). // it may allow them
		WatchesMetadata(secrets.Secret.Metadata(), handler.EnqueueRequestsFromMapFunc(r.dataKeysOfSecret)).
		WatchesMetadata(namespaces, handler.EnqueueRequestsFromMapFunc(r.dataKeysOfNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(options).
		Complete(r.observed("DataKey", reconciler.Logged(r)))
}

// keyStateChanged lets through what makes a master key usable or not. An import counts, whatever the state was:
// the material may have ended, or been lost with the module's content, before the operator noticed.
var keyStateChanged = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		was, isImported := e.ObjectOld.(*v1alpha1.ImportedKey)
		if !isImported {
			was, is := e.ObjectOld.(*v1alpha1.GeneratedKey).Status, e.ObjectNew.(*v1alpha1.GeneratedKey).Status
			return was.KeyState != is.KeyState || was.PrimaryVersion != is.PrimaryVersion
		}
		is := e.ObjectNew.(*v1alpha1.ImportedKey)
		return was.Status.KeyState != is.Status.KeyState || was.Status.KeyVersionID != is.Status.KeyVersionID ||
			was.Status.InputsDigest != is.Status.InputsDigest
	},
}

func (r *dataKeyReconciler) dataKeysOfKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.dataKeysUnder(ctx, keyring.Of(key), nil)
}

// dataKeysOfStore finds the data keys that wait for a key store, which may allow their namespace now.
func (r *dataKeyReconciler) dataKeysOfStore(ctx context.Context, store client.Object) []reconcile.Request {
	return r.dataKeysInStore(ctx, keystore.IDOfObject(store), waitingDataKey)
}

// suspectDataKeys finds the data keys that were generated or verified in the suspect periods of a key store.
func (r *dataKeyReconciler) suspectDataKeys(ctx context.Context, store client.Object) []reconcile.Request {
	periods := statusOfStore(store).SuspectPeriods
	return r.dataKeysInStore(ctx, keystore.IDOfObject(store), func(k *v1alpha1.DataKey) bool {
		return suspectPeriod(periods, doneAt(k)) != nil
	})
}

// dataKeysThatWaitFor finds the data keys that wait for a key store whose state has changed.
func (r *dataKeyReconciler) dataKeysThatWaitFor(ctx context.Context, change keystore.Change) []reconcile.Request {
	if change.State == keystore.Suspect {
		return nil
	}
	return r.dataKeysInStore(ctx, change.ID, waitingDataKey)
}

func (r *dataKeyReconciler) dataKeysInStore(ctx context.Context, id keystore.ID, want func(*v1alpha1.DataKey) bool) []reconcile.Request {
	keys, err := r.keys.InStore(ctx, id, client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil // the cache has stopped, because the operator is stopping
	}
	var requests []reconcile.Request
	for _, key := range keys {
		requests = append(requests, r.dataKeysUnder(ctx, key, want)...)
	}
	return requests
}

func (r *dataKeyReconciler) dataKeysOfSecret(ctx context.Context, secret client.Object) []reconcile.Request {
	return r.findDataKeys(ctx, nil, client.InNamespace(secret.GetNamespace()),
		client.MatchingFields{indexContent: contentIndex(secrets.Secret, secret.GetName())})
}

// dataKeysOfNamespace finds the data keys to which a namespace's labels may open a key store.
func (r *dataKeyReconciler) dataKeysOfNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	return r.findDataKeys(ctx, nil, client.InNamespace(namespace.GetName()))
}

func waitingDataKey(k *v1alpha1.DataKey) bool { return !ready(k.Status.Conditions) }
