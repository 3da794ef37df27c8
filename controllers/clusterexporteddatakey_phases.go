package controllers

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// maxFailures bounds the namespaces that a status names.
const maxFailures = 10

// selectNamespaces sets namespaces. One that is being deleted takes nothing any more. Reasons:
// InvalidParameter.
func (r *clusterExportReconciler) selectNamespaces(ctx context.Context, s *clusterExportScope) error {
	selector, err := metav1.LabelSelectorAsSelector(&s.object.Spec.NamespaceSelector)
	if err != nil {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "namespaceSelector", Err: err,
			Detail: "It is not a label selector: an operator is In, NotIn, Exists or DoesNotExist, and its values fit it."}
	}
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := r.client.List(ctx, &list, client.MatchingLabelsSelector{Selector: selector}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp.IsZero() {
			s.namespaces = append(s.namespaces, list.Items[i].Name)
		}
	}
	slices.Sort(s.namespaces)
	return nil
}

// listExports sets exports from the cache.
func (r *clusterExportReconciler) listExports(ctx context.Context, s *clusterExportScope) error {
	var list v1alpha1.ExportedDataKeyList
	if err := r.client.List(ctx, &list, client.MatchingFields{indexController: string(s.object.UID)}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	s.exports = make(map[string]*v1alpha1.ExportedDataKey, len(list.Items))
	for i := range list.Items {
		if export := &list.Items[i]; export.Name == s.object.Name { // anybody can write an owner reference
			s.exports[export.Namespace] = export
		}
	}
	return nil
}

// makeExports sets failures, refused, again and unavailable. A namespace that fails does not hold up the
// others.
func (r *clusterExportReconciler) makeExports(ctx context.Context, s *clusterExportScope) error {
	for _, namespace := range s.namespaces {
		want := exportOf(s.object, namespace)
		there := s.exports[namespace]
		if there != nil && (equality.Semantic.DeepEqual(there.Spec, want.Spec) || !there.DeletionTimestamp.IsZero()) {
			continue
		}
		// Whatever becomes of it: the status that is known speaks of another spec.
		delete(s.exports, namespace)
		err := r.makeExport(ctx, there, want)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case apierrors.IsConflict(err):
			s.again = true
		case apierrors.IsAlreadyExists(err):
			s.failures[namespace] = v1alpha1.ReasonTargetNotOwned
		case apierrors.IsForbidden(err):
			s.failures[namespace], s.refused = kms.ForbiddenNoPermission.Reason(), true
		case apierrors.IsInvalid(err):
			s.failures[namespace], s.refused = kms.InvalidParameter.Reason(), true
		default:
			s.failures[namespace], s.unavailable = v1alpha1.ReasonAPIServer, err
		}
	}
	return nil
}

// makeExport makes the ExportedDataKey of one namespace, or makes its spec what it should be again: with a
// patch of all that differs, for an apply would leave the fields that others added. It never takes over one
// that somebody else made.
func (r *clusterExportReconciler) makeExport(ctx context.Context, there, want *v1alpha1.ExportedDataKey) error {
	if there != nil {
		repaired := there.DeepCopy()
		repaired.Spec = want.Spec
		return r.client.Patch(ctx, repaired, client.MergeFromWithOptions(there, client.MergeFromWithOptimisticLock{}), client.FieldOwner(v1alpha1.ManagedBy))
	}
	// The cache knows of one in the way without a request.
	err := r.client.Get(ctx, client.ObjectKeyFromObject(want), &v1alpha1.ExportedDataKey{})
	if err == nil {
		return apierrors.NewAlreadyExists(v1alpha1.GroupVersion.WithResource("exporteddatakeys").GroupResource(), want.Name)
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	return r.client.Create(ctx, want, client.FieldOwner(v1alpha1.ManagedBy))
}

// removeExports deletes the exports in namespaces that are not selected any more, and may set unavailable.
func (r *clusterExportReconciler) removeExports(ctx context.Context, s *clusterExportScope) error {
	for namespace, export := range s.exports {
		if _, selected := slices.BinarySearch(s.namespaces, namespace); selected || !export.DeletionTimestamp.IsZero() {
			continue
		}
		err := r.client.Delete(ctx, &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: export.Name}},
			client.Preconditions{UID: &export.UID})
		if client.IgnoreNotFound(err) != nil {
			s.unavailable = err
		}
	}
	return nil
}

// refusedInterval is how often an export is tried again that the API server refused: what made it refuse (a
// quota, a policy) is not watched.
const refusedInterval = 5 * time.Minute

// countExports fills the status. Reasons: APIServer, NamespacesFailed, NamespacesPending.
func (r *clusterExportReconciler) countExports(_ context.Context, s *clusterExportScope) error {
	status := &s.object.Status
	status.Namespaces = int32(len(s.namespaces)) //nolint:gosec // far fewer than 2³¹
	status.ReadyNamespaces, status.FailedNamespaces, status.Failures = 0, 0, nil
	for _, namespace := range s.namespaces {
		reason := s.failures[namespace]
		if export := s.exports[namespace]; export != nil && export.Status.ObservedGeneration == export.Generation {
			if ready(export.Status.Conditions) {
				status.ReadyNamespaces++
				continue
			}
			reason = stallReason(export)
		}
		if reason == "" {
			continue // on its way
		}
		status.FailedNamespaces++
		if len(status.Failures) < maxFailures {
			status.Failures = append(status.Failures, v1alpha1.NamespaceFailure{Namespace: v1alpha1.NamespaceName(namespace), Reason: reason})
		}
	}
	pending := reconciler.Wait(v1alpha1.ReasonNamespacesPending, "The exports of some of the selected namespaces are on their way.")
	switch {
	case s.unavailable != nil:
		return s.unavailable
	case s.again:
		pending.After = countInterval
		return pending
	case status.FailedNamespaces > 0:
		failed := reconciler.Stall(v1alpha1.ReasonNamespacesFailed,
			"Some of the selected namespaces have failed: status.failures names the first of them, and their ExportedDataKeys say what to do.")
		if s.refused {
			failed.After = refusedInterval
		}
		return failed
	case status.ReadyNamespaces < status.Namespaces:
		return pending
	}
	return nil
}

// exportOf is the ExportedDataKey of one namespace.
func exportOf(object *v1alpha1.ClusterExportedDataKey, namespace string) *v1alpha1.ExportedDataKey {
	t := &object.Spec.Template
	return &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: object.Name,
			Labels:          map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			OwnerReferences: []metav1.OwnerReference{ownedBy(object)},
		},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:          &v1alpha1.DataKeyReference{Namespace: t.DataKeyRef.Namespace, Name: t.DataKeyRef.Name},
			PublicKey:           v1alpha1.PublicKeySource{Blob: t.PublicKey.Blob, SecretKeyRef: t.PublicKey.SecretKeyRef, ConfigMapKeyRef: t.PublicKey.ConfigMapKeyRef},
			WrappingKeySpec:     t.WrappingKeySpec,
			WrappingAlgorithm:   string(t.WrappingAlgorithm),
			SM2CiphertextFormat: t.SM2CiphertextFormat,
			Target:              t.Target,
		},
	}
}

// ownedBy is the reference to the object that made an export. It does not block the owner's deletion: that
// takes a permission on its finalizers where it is enforced, and gains nothing.
func ownedBy(object *v1alpha1.ClusterExportedDataKey) metav1.OwnerReference {
	ref := *metav1.NewControllerRef(object, v1alpha1.GroupVersion.WithKind("ClusterExportedDataKey"))
	ref.BlockOwnerDeletion = nil
	return ref
}
