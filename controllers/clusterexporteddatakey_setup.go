package controllers

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// countInterval gathers the changes of many exports into one look at them all.
const countInterval = time.Second

func (r *clusterExportReconciler) setup(mgr ctrl.Manager, options controller.Options) error {
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.ClusterExportedDataKey{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ExportedDataKey{}, gathered{r.Client}, builder.WithPredicates(exportCounts)).
		WatchesMetadata(namespaces, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(
			predicate.Or[client.Object](predicate.LabelChangedPredicate{}, deletionBegan))).
		WithOptions(options).
		Complete(r.observed("ClusterExportedDataKey", reconciler.Logged(r)))
}

// exportCounts lets through what changes a count, or must be repaired.
var exportCounts = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		was, is := e.ObjectOld.(*v1alpha1.ExportedDataKey), e.ObjectNew.(*v1alpha1.ExportedDataKey)
		return was.Generation != is.Generation || !equality.Semantic.DeepEqual(was.OwnerReferences, is.OwnerReferences) || was.Status.ObservedGeneration != is.Status.ObservedGeneration ||
			ready(was.Status.Conditions) != ready(is.Status.Conditions) || stallReason(was) != stallReason(is)
	},
}

var deletionBegan = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.GetDeletionTimestamp().IsZero() != e.ObjectNew.GetDeletionTimestamp().IsZero()
	},
}

func stallReason(e *v1alpha1.ExportedDataKey) string {
	for _, c := range e.Status.Conditions {
		if c.Type == v1alpha1.ConditionStalled {
			return c.Reason
		}
	}
	return ""
}

// all finds every ClusterExportedDataKey: any of them may select a namespace, or have selected it.
func (r *clusterExportReconciler) all(ctx context.Context, _ client.Object) []reconcile.Request {
	items := func(l *v1alpha1.ClusterExportedDataKeyList) []v1alpha1.ClusterExportedDataKey { return l.Items }
	return find(ctx, r.Client, &v1alpha1.ClusterExportedDataKeyList{}, items, nil)
}

// gathered wakes the controller of an ExportedDataKey a little later, so that a thousand exports that
// become Ready are counted a few times and not a thousand times.
type gathered struct{ client client.Reader }

func (g gathered) wake(ctx context.Context, o client.Object, q requests) {
	if owner := metav1.GetControllerOf(o); owner != nil && owner.Kind == "ClusterExportedDataKey" {
		q.AddAfter(reconcile.Request{NamespacedName: client.ObjectKey{Name: owner.Name}}, countInterval)
		return
	}
	// An export that has the name of a ClusterExportedDataKey may be in its way, or may have been. Most are not.
	key := client.ObjectKey{Name: o.GetName()}
	err := g.client.Get(ctx, key, &v1alpha1.ClusterExportedDataKey{}, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if !apierrors.IsNotFound(err) {
		q.AddAfter(reconcile.Request{NamespacedName: key}, countInterval)
	}
}

// Create implements handler.EventHandler.
func (g gathered) Create(ctx context.Context, e event.CreateEvent, q requests) {
	g.wake(ctx, e.Object, q)
}

// Update implements handler.EventHandler. An export may have lost its owner.
func (g gathered) Update(ctx context.Context, e event.UpdateEvent, q requests) {
	if !equality.Semantic.DeepEqual(e.ObjectOld.GetOwnerReferences(), e.ObjectNew.GetOwnerReferences()) {
		g.wake(ctx, e.ObjectOld, q)
	}
	g.wake(ctx, e.ObjectNew, q)
}

// Delete implements handler.EventHandler.
func (g gathered) Delete(ctx context.Context, e event.DeleteEvent, q requests) {
	g.wake(ctx, e.Object, q)
}

// Generic implements handler.EventHandler.
func (g gathered) Generic(ctx context.Context, e event.GenericEvent, q requests) {
	g.wake(ctx, e.Object, q)
}
