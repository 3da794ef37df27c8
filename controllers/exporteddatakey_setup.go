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
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func (r *exportedDataKeyReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	mapped := handler.EnqueueRequestsFromMapFunc
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.ExportedDataKey{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.DataKey{}, mapped(r.exportsOfDataKey), builder.WithPredicates(blobChanged)).
		Watches(&v1alpha1.ImportedKey{}, mapped(r.exportsThatWaitForKey), builder.WithPredicates(keyStateChanged)).
		Watches(&v1alpha1.ImportedKey{}, mapped(r.exportsToKey), builder.WithPredicates(parametersChanged)).
		WatchesRawSource(source.Channel(r.modules.subscribe(), mapped(r.exportsThatWaitForStore))).
		WatchesMetadata(secrets.Secret.Metadata(), r.secretEvents()).
		WatchesMetadata(secrets.ConfigMap.Metadata(), mapped(r.exportsOfContent(secrets.ConfigMap))).
		// Who may consent, or withdraw: the key's owner, the key store's, and whoever labels namespaces.
		Watches(&v1alpha1.ImportedKey{}, mapped(r.exportsOfKey), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ClusterKeyStore{}, mapped(r.exportsOfStore), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(namespaces, mapped(r.exportsOfNamespace), builder.WithPredicates(predicate.LabelChangedPredicate{})).
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
	return r.findExports(ctx, nil, client.MatchingFields{indexDataKey: client.ObjectKeyFromObject(dataKey).String()})
}

// exportsOf finds the exports of the data keys under a master key, by their DataKeys and by the key
// version, in every namespace.
func (r *exportedDataKeyReconciler) exportsOf(ctx context.Context, key client.Object, want func(*v1alpha1.ExportedDataKey) bool) []reconcile.Request {
	var requests []reconcile.Request
	for _, dataKey := range r.findDataKeys(ctx, nil, client.InNamespace(key.GetNamespace()), client.MatchingFields{indexKey: key.GetName()}) {
		requests = append(requests, r.findExports(ctx, want, client.MatchingFields{indexDataKey: dataKey.String()})...)
	}
	for _, version := range importedKeyVersion(key) {
		requests = append(requests, r.findExports(ctx, want, client.MatchingFields{indexVersion: version})...)
	}
	return requests
}

func (r *exportedDataKeyReconciler) exportsOfKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.exportsOf(ctx, key, nil)
}

func (r *exportedDataKeyReconciler) exportsThatWaitForKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.exportsOf(ctx, key, nil)
}

// exportsToKey finds the exports whose recipient is an ImportedKey.
func (r *exportedDataKeyReconciler) exportsToKey(ctx context.Context, key client.Object) []reconcile.Request {
	return r.findExports(ctx, nil, client.InNamespace(key.GetNamespace()), client.MatchingFields{indexKey: key.GetName()})
}

func (r *exportedDataKeyReconciler) exportsOfStore(ctx context.Context, store client.Object) []reconcile.Request {
	return r.exportsInStore(ctx, store, nil)
}

// exportsThatWaitForStore is told of a key store that begins to serve.
func (r *exportedDataKeyReconciler) exportsThatWaitForStore(ctx context.Context, store client.Object) []reconcile.Request {
	return r.exportsInStore(ctx, store, waitingExport)
}

func (r *exportedDataKeyReconciler) exportsInStore(ctx context.Context, store client.Object, want func(*v1alpha1.ExportedDataKey) bool) []reconcile.Request {
	var keys v1alpha1.ImportedKeyList
	err := r.client.List(ctx, &keys, client.MatchingFields{indexStore: idOfObject(store).String()},
		client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil // the cache is gone, and the operator with it
	}
	var requests []reconcile.Request
	for i := range keys.Items {
		requests = append(requests, r.exportsOf(ctx, &keys.Items[i], want)...)
	}
	return requests
}

// exportsOfNamespace finds the exports in a namespace, which its labels may allow, and those of its keys
// everywhere: the same labels may allow them their key store.
func (r *exportedDataKeyReconciler) exportsOfNamespace(ctx context.Context, namespace client.Object) []reconcile.Request {
	requests := r.findExports(ctx, nil, client.InNamespace(namespace.GetName()))
	var keys v1alpha1.ImportedKeyList
	err := r.client.List(ctx, &keys, client.InNamespace(namespace.GetName()),
		client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil // the cache is gone, and the operator with it
	}
	for i := range keys.Items {
		requests = append(requests, r.exportsOf(ctx, &keys.Items[i], nil)...)
	}
	return requests
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
			t, err := exportTargetOf(e)
			return err != nil || t.key.Name != o.GetName()
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
	h.secrets.Made(e.Object) // never mind: nobody needs to remember it
	h.EventHandler.Delete(ctx, e, q)
}

func (s *shared) findExports(ctx context.Context, want func(*v1alpha1.ExportedDataKey) bool, options ...client.ListOption) []reconcile.Request {
	items := func(l *v1alpha1.ExportedDataKeyList) []v1alpha1.ExportedDataKey { return l.Items }
	return find(ctx, s.client, &v1alpha1.ExportedDataKeyList{}, items, want, options...)
}

func waitingExport(e *v1alpha1.ExportedDataKey) bool { return !ready(e.Status.Conditions) }
