package controllers

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	apply "github.com/keyconvoy/keyconvoy/api/applyconfiguration/api/v1alpha1"
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
		s.exports[list.Items[i].Namespace] = &list.Items[i]
	}
	return nil
}

// makeExports sets failures. A namespace that fails does not hold up the others.
func (r *clusterExportReconciler) makeExports(ctx context.Context, s *clusterExportScope) error {
	want := exportSpec(&s.object.Spec.Template)
	var unavailable error
	for _, namespace := range s.namespaces {
		export := s.exports[namespace]
		if export != nil && equality.Semantic.DeepEqual(export.Spec, want) {
			continue
		}
		err := r.makeExport(ctx, s.object, namespace)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case apierrors.IsConflict(err) || apierrors.IsInvalid(err) || apierrors.IsForbidden(err):
			s.failures[namespace] = v1alpha1.ReasonTargetNotOwned
			if apierrors.IsForbidden(err) {
				s.failures[namespace] = kms.ForbiddenNoPermission.Reason()
			}
		default:
			s.failures[namespace] = v1alpha1.ReasonAPIServer
			unavailable = err
		}
	}
	return unavailable
}

// makeExport applies the ExportedDataKey of one namespace. It never takes over one that somebody else
// made: that one has no controller, or another, and is looked at first.
func (r *clusterExportReconciler) makeExport(ctx context.Context, object *v1alpha1.ClusterExportedDataKey, namespace string) error {
	there := &v1alpha1.ExportedDataKey{}
	err := r.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: object.Name}, there)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	export := apply.ExportedDataKey(object.Name, namespace).
		WithLabels(map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}).
		WithOwnerReferences(metav1ac.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("ClusterExportedDataKey").
			WithName(object.Name).WithUID(object.UID).WithController(true)).
		WithSpec(exportApply(&object.Spec.Template))
	if err == nil {
		if !isExportOf(there, object) {
			return apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("exporteddatakeys").GroupResource(), object.Name,
				fmt.Errorf("it is not this object's"))
		}
		export.WithUID(there.UID)
	}
	return r.client.Apply(ctx, export, client.FieldOwner(v1alpha1.ManagedBy), client.ForceOwnership)
}

// removeExports deletes the exports in namespaces that are not selected any more.
func (r *clusterExportReconciler) removeExports(ctx context.Context, s *clusterExportScope) error {
	for namespace, export := range s.exports {
		if _, selected := slices.BinarySearch(s.namespaces, namespace); selected || !export.DeletionTimestamp.IsZero() {
			continue
		}
		err := r.client.Delete(ctx, &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: export.Name}},
			client.Preconditions{UID: &export.UID})
		if client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// countExports fills the status. Reasons: NamespacesFailed, NamespacesPending.
func (r *clusterExportReconciler) countExports(_ context.Context, s *clusterExportScope) error {
	status := &s.object.Status
	status.Namespaces = int32(len(s.namespaces)) //nolint:gosec // far fewer than 2³¹
	status.ReadyNamespaces, status.FailedNamespaces, status.Failures = 0, 0, nil
	for _, namespace := range s.namespaces {
		reason, failed := s.failures[namespace]
		if export := s.exports[namespace]; export != nil && !failed {
			if ready(export.Status.Conditions) && export.Status.ObservedGeneration == export.Generation {
				status.ReadyNamespaces++
				continue
			}
			if stalled := meta.FindStatusCondition(export.Status.Conditions, v1alpha1.ConditionStalled); stalled != nil {
				reason, failed = stalled.Reason, true
			}
		}
		if failed {
			status.FailedNamespaces++
			if len(status.Failures) < maxFailures {
				status.Failures = append(status.Failures, v1alpha1.NamespaceFailure{Namespace: v1alpha1.NamespaceName(namespace), Reason: reason})
			}
		}
	}
	switch {
	case status.FailedNamespaces > 0:
		return reconciler.Stall(v1alpha1.ReasonNamespacesFailed,
			"Some of the selected namespaces have failed: status.failures names the first of them, and their ExportedDataKeys say what to do.")
	case status.ReadyNamespaces < status.Namespaces:
		return reconciler.Wait(v1alpha1.ReasonNamespacesPending, "The exports of some of the selected namespaces are on their way.")
	}
	return nil
}

// exportSpec is the spec of the ExportedDataKeys that a template makes.
func exportSpec(t *v1alpha1.ExportTemplate) v1alpha1.ExportedDataKeySpec {
	return v1alpha1.ExportedDataKeySpec{
		DataKeyRef:          &v1alpha1.DataKeyReference{Namespace: t.DataKeyRef.Namespace, Name: t.DataKeyRef.Name},
		PublicKey:           v1alpha1.PublicKeySource{Blob: t.PublicKey.Blob, SecretKeyRef: t.PublicKey.SecretKeyRef, ConfigMapKeyRef: t.PublicKey.ConfigMapKeyRef},
		WrappingKeySpec:     t.WrappingKeySpec,
		WrappingAlgorithm:   string(t.WrappingAlgorithm),
		SM2CiphertextFormat: t.SM2CiphertextFormat,
		Target:              t.Target,
	}
}

// exportApply is exportSpec for server-side apply.
func exportApply(t *v1alpha1.ExportTemplate) *apply.ExportedDataKeySpecApplyConfiguration {
	key := apply.PublicKeySource()
	entry := func(ref *v1alpha1.EntryReference) *apply.EntryReferenceApplyConfiguration {
		return apply.EntryReference().WithName(ref.Name).WithKey(ref.Key)
	}
	switch {
	case t.PublicKey.SecretKeyRef != nil:
		key.WithSecretKeyRef(entry(t.PublicKey.SecretKeyRef))
	case t.PublicKey.ConfigMapKeyRef != nil:
		key.WithConfigMapKeyRef(entry(t.PublicKey.ConfigMapKeyRef))
	default:
		key.WithBlob(t.PublicKey.Blob)
	}
	spec := apply.ExportedDataKeySpec().
		WithDataKeyRef(apply.DataKeyReference().WithNamespace(t.DataKeyRef.Namespace).WithName(t.DataKeyRef.Name)).
		WithPublicKey(key).
		WithWrappingKeySpec(t.WrappingKeySpec).
		WithWrappingAlgorithm(string(t.WrappingAlgorithm))
	if t.SM2CiphertextFormat != "" {
		spec.WithSM2CiphertextFormat(t.SM2CiphertextFormat)
	}
	if t.Target == nil {
		return spec
	}
	target := apply.ExportTarget().WithLabels(t.Target.Labels).WithAnnotations(t.Target.Annotations)
	if t.Target.Name != "" {
		target.WithName(t.Target.Name)
	}
	if t.Target.Immutable {
		target.WithImmutable(true)
	}
	return spec.WithTarget(target)
}
