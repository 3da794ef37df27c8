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

func (r *exportedDataKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	mapped := handler.EnqueueRequestsFromMapFunc
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.ExportedDataKey{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.DataKey{}, mapped(r.exportsOfDataKey), builder.WithPredicates(blobChanged)).
		Watches(&v1alpha1.ImportedKey{}, mapped(r.exportsOfKey), builder.WithPredicates(keyStateChanged)).
		Watches(&v1alpha1.GeneratedKey{}, mapped(r.exportsOfKey), builder.WithPredicates(keyStateChanged)).
		Watches(&v1alpha1.ImportedKey{}, mapped(r.exportsToKey), builder.WithPredicates(parametersChanged)).
		WatchesRawSource(r.stores.Changes(r.exportsThatWaitFor)).
		Watches(&v1alpha1.KeyStore{}, mapped(r.suspectExports), builder.WithPredicates(suspectPeriodsChanged)).
		Watches(&v1alpha1.ClusterKeyStore{}, mapped(r.suspectExports), builder.WithPredicates(suspectPeriodsChanged)).
		WatchesMetadata(secrets.Secret.Metadata(), r.secretEvents()).
		WatchesMetadata(secrets.ConfigMap.Metadata(), mapped(r.exportsOfContent(secrets.ConfigMap))).
		// Consent may be given or withdrawn by the key's owner, by the key store's, and by those who label namespaces.
		Watches(&v1alpha1.ImportedKey{}, mapped(r.exportsOfKey), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.GeneratedKey{}, mapped(r.exportsOfKey), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ClusterKeyStore{}, mapped(r.exportsOfStore), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(namespaces, mapped(r.exportsOfNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(options).
		Complete(r.observed("ExportedDataKey", reconciler.Logged(r)))
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
	return r.findExports(ctx, nil, client.MatchingFields{indexDataKey: client.ObjectKeyFromObject(dataKey).String()})
}

// exportsOf finds the exports of the data keys under a master key, by their DataKeys and by the key
// version, in every namespace.
func (r *exportedDataKeyReconciler) exportsOf(ctx context.Context, key *keyring.Key, want func(*v1alpha1.ExportedDataKey) bool) []reconcile.Request {
	var requests []reconcile.Request
	for _, dataKey := range r.dataKeysUnder(ctx, key, nil) {
		requests = append(requests, r.findExports(ctx, want, client.MatchingFields{indexDataKey: dataKey.String()})...)
	}
	for _, version := range key.Versions() {
		requests = append(requests, r.findExports(ctx, want, client.MatchingFields{indexVersion: version})...)
	}
	return requests
}

func (r *exportedDataKeyReconciler) exportsOfKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.exportsOf(ctx, keyring.Of(key), nil)
}

// exportsToKey finds the exports whose recipient is an ImportedKey.
func (r *exportedDataKeyReconciler) exportsToKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.findExports(ctx, nil, client.InNamespace(key.GetNamespace()), client.MatchingFields{indexRecipient: key.GetName()})
}

func (r *exportedDataKeyReconciler) exportsOfStore(ctx context.Context, store client.Object) []reconcile.Request {
	return r.exportsInStore(ctx, keystore.IDOfObject(store), nil)
}

// suspectExports finds the exports that were made in the suspect periods of a key store.
func (r *exportedDataKeyReconciler) suspectExports(ctx context.Context, store client.Object) []reconcile.Request {
	periods := statusOfStore(store).SuspectPeriods
	return r.exportsInStore(ctx, keystore.IDOfObject(store), func(e *v1alpha1.ExportedDataKey) bool {
		return suspectPeriod(periods, e.Status.ExportTime) != nil
	})
}

// exportsThatWaitFor finds the exports that wait for a key store whose state has changed.
func (r *exportedDataKeyReconciler) exportsThatWaitFor(ctx context.Context, change keystore.Change) []reconcile.Request {
	if change.State == keystore.Suspect {
		return nil
	}
	return r.exportsInStore(ctx, change.ID, waitingExport)
}

func (r *exportedDataKeyReconciler) exportsInStore(ctx context.Context, id keystore.ID, want func(*v1alpha1.ExportedDataKey) bool) []reconcile.Request {
	keys, err := r.keys.InStore(ctx, id, client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil // the cache has stopped, because the operator is stopping
	}
	return r.exportsOfAll(ctx, keys, want)
}

func (r *exportedDataKeyReconciler) exportsOfAll(ctx context.Context, keys []*keyring.Key, want func(*v1alpha1.ExportedDataKey) bool) []reconcile.Request {
	var requests []reconcile.Request
	for _, key := range keys {
		requests = append(requests, r.exportsOf(ctx, key, want)...)
	}
	return requests
}

// exportsOfNamespace finds the exports in a namespace, which its labels may allow, and those of its keys
// everywhere: the same labels may allow them their key store.
func (r *exportedDataKeyReconciler) exportsOfNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	requests := r.findExports(ctx, nil, client.InNamespace(namespace.GetName()))
	keys, err := r.keys.InNamespace(ctx, namespace.GetName(), client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil // the cache has stopped, because the operator is stopping
	}
	return append(requests, r.exportsOfAll(ctx, keys, nil)...)
}

func (r *exportedDataKeyReconciler) exportsOfContent(kind secrets.Kind) handler.MapFunc {
	return func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.findExports(ctx, nil, client.InNamespace(o.GetNamespace()), client.MatchingFields{indexContent: contentIndex(kind, o.GetName())})
	}
}

// secretEvents wakes the exports that read or write a Secret, but for the one that has just made it: that one puts
// it into its status now.
type secretEvents struct {
	handler.EventHandler // wakes them all

	secrets *secrets.Client
	others  handler.EventHandler
}

func (r *exportedDataKeyReconciler) secretEvents() secretEvents {
	all := handler.EnqueueRequestsFromMapFunc(r.exportsOfContent(secrets.Secret))
	others := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		isOther := func(e *v1alpha1.ExportedDataKey) bool {
			return e.Spec.DeliversInStatus() || secrets.TargetName(e, secretTarget(e)) != o.GetName()
		}
		return r.findExports(ctx, isOther, client.InNamespace(o.GetNamespace()), client.MatchingFields{indexContent: contentIndex(secrets.Secret, o.GetName())})
	})
	return secretEvents{all, r.secrets, others}
}

// Create implements handler.EventHandler.
func (h secretEvents) Create(ctx context.Context, e event.CreateEvent, q requests) {
	if h.secrets.Made(e.Object) {
		h.others.Create(ctx, e, q)
		return
	}
	h.EventHandler.Create(ctx, e, q)
}

// Delete implements handler.EventHandler.
func (h secretEvents) Delete(ctx context.Context, e event.DeleteEvent, q requests) {
	h.secrets.Made(e.Object) // so that it is not remembered for longer
	h.EventHandler.Delete(ctx, e, q)
}

func waitingExport(e *v1alpha1.ExportedDataKey) bool { return !ready(e.Status.Conditions) }
