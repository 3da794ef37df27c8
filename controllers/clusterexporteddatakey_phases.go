package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// selectNamespaces sets namespaces. One that is being deleted takes nothing any more, and the operator's own takes no
// export: a Secret there could take the name of one that the operator is about to write. Reasons: InvalidParameter.
func (r *clusterExportReconciler) selectNamespaces(ctx context.Context, s *clusterExportScope) error {
	if err := readable(s.object); err != nil {
		return err
	}
	selector, err := s.object.Spec.NamespaceSelector.AsSelector()
	if err != nil {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "namespaceSelector", Err: err,
			Detail: "The label selector is invalid. Operators are In, NotIn, Exists and DoesNotExist; only In and NotIn take values."}
	}
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := r.Client.List(ctx, &list, client.MatchingLabelsSelector{Selector: selector}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for i := range list.Items {
		name := list.Items[i].Name
		if list.Items[i].DeletionTimestamp.IsZero() && r.namespaces.Has(name) && name != r.operatorNamespace {
			s.namespaces = append(s.namespaces, name)
		}
	}
	slices.Sort(s.namespaces)
	return nil
}

// listExports sets exports from the cache.
func (r *clusterExportReconciler) listExports(ctx context.Context, s *clusterExportScope) error {
	var list v1alpha1.ExportedDataKeyList
	if err := r.Client.List(ctx, &list, client.MatchingFields{indexController: string(s.object.UID)}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	s.exports = make(map[string]*v1alpha1.ExportedDataKey, len(list.Items))
	for i := range list.Items {
		if export := &list.Items[i]; export.Name == s.object.Name { // anyone who may write exports can write an owner reference
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
		if there != nil && (isAsMade(there, want) || !there.DeletionTimestamp.IsZero()) {
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

// isAsMade says whether an export still has the spec and the owner that it was made with.
func isAsMade(there, made *v1alpha1.ExportedDataKey) bool {
	owner := metav1.GetControllerOf(there)
	spec := made.Spec
	if there.Spec.DataKeyRef != nil && there.Spec.DataKeyRef.Digest == "" {
		spec = *made.Spec.DeepCopy() // made before the data key was, and it keeps the one that it found
		spec.DataKeyRef.Digest = ""
	}
	return equality.Semantic.DeepEqual(there.Spec, spec) && owner != nil && owner.UID == made.OwnerReferences[0].UID
}

// makeExport makes the ExportedDataKey of one namespace, or gives it its spec and owner again: with a
// patch of all that differs, for an apply would leave the fields that others added. It never takes over one
// that someone else made.
func (r *clusterExportReconciler) makeExport(ctx context.Context, there, want *v1alpha1.ExportedDataKey) error {
	if there != nil {
		repaired := there.DeepCopy()
		repaired.Spec, repaired.OwnerReferences = want.Spec, want.OwnerReferences
		return r.Client.Patch(ctx, repaired, client.MergeFromWithOptions(there, client.MergeFromWithOptimisticLock{}), client.FieldOwner(v1alpha1.ManagedBy))
	}
	// The cache knows of one in the way without a request.
	err := r.Client.Get(ctx, client.ObjectKeyFromObject(want), &v1alpha1.ExportedDataKey{})
	if err == nil {
		return apierrors.NewAlreadyExists(v1alpha1.GroupVersion.WithResource("exporteddatakeys").GroupResource(), want.Name)
	}
	if !apierrors.IsNotFound(err) {
		return err
	}
	return r.Client.Create(ctx, want, client.FieldOwner(v1alpha1.ManagedBy))
}

// removeExports deletes the exports in namespaces that are not selected any more, and may set unavailable.
func (r *clusterExportReconciler) removeExports(ctx context.Context, s *clusterExportScope) error {
	for namespace, export := range s.exports {
		if _, selected := slices.BinarySearch(s.namespaces, namespace); selected || !export.DeletionTimestamp.IsZero() {
			continue
		}
		err := r.Client.Delete(ctx, &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: export.Name}},
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
	status.SelectedNamespaces = int32(len(s.namespaces)) //nolint:gosec // far fewer than 2³¹
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
	pending := reconciler.Wait(v1alpha1.ReasonNamespacesPending, "The exports to some of the selected namespaces are not ready yet.")
	switch {
	case s.unavailable != nil:
		return s.unavailable
	case s.again:
		pending.After = countInterval
		return pending
	case status.FailedNamespaces > 0:
		failed := reconciler.Stall(v1alpha1.ReasonNamespacesFailed, failureMessage(status))
		if s.refused {
			return reconciler.RetryAfter(failed, refusedInterval)
		}
		return failed
	case status.ReadyNamespaces < status.SelectedNamespaces:
		return pending
	}
	return nil
}

// failureMessage says in how many of the namespaces the export failed, and why.
func failureMessage(status *v1alpha1.ClusterExportedDataKeyStatus) string {
	where := "some"
	if status.FailedNamespaces == status.SelectedNamespaces {
		where = "all"
	}
	var reasons []string
	for _, failure := range status.Failures {
		reasons = append(reasons, failure.Reason)
	}
	slices.Sort(reasons)
	return fmt.Sprintf("The export failed in %s of the selected namespaces (%s). See status.failures, and the conditions of the ExportedDataKeys there.",
		where, strings.Join(slices.Compact(reasons), ", "))
}

// exportOf is the ExportedDataKey of one namespace.
func exportOf(object *v1alpha1.ClusterExportedDataKey, namespace string) *v1alpha1.ExportedDataKey {
	t := &object.Spec.Template
	var digest string
	if approved := object.Status.Approved; approved != nil {
		digest = approved.DataKeyDigest
	}
	return &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: object.Name,
			Labels:          map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			OwnerReferences: []metav1.OwnerReference{ownedBy(object)},
		},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:          &v1alpha1.DataKeyReference{Namespace: t.DataKeyRef.Namespace, Name: t.DataKeyRef.Name, Digest: digest},
			PublicKey:           v1alpha1.PublicKeySource{Type: t.PublicKey.Type, Blob: t.PublicKey.Blob, SecretKeyRef: t.PublicKey.SecretKeyRef, ConfigMapKeyRef: t.PublicKey.ConfigMapKeyRef},
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
