package controllers

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
)

// requests is the queue of a controller.
type requests = workqueue.TypedRateLimitingInterface[reconcile.Request]

// ready reports whether the condition Ready is true.
func ready(conditions []metav1.Condition) bool {
	return meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady)
}

func (s *shared) findKeys(ctx context.Context, want func(*v1alpha1.ImportedKey) bool, options ...client.ListOption) []reconcile.Request {
	items := func(l *v1alpha1.ImportedKeyList) []v1alpha1.ImportedKey { return l.Items }
	return find(ctx, s.Client, &v1alpha1.ImportedKeyList{}, items, want, options...)
}

// dataKeysUnder finds the data keys of a master key: those that name it, and those that are under one of its versions.
func (s *shared) dataKeysUnder(ctx context.Context, key *keyring.Key, want func(*v1alpha1.DataKey) bool) []reconcile.Request {
	ref, in := key.Ref(), client.InNamespace(key.Ref().Namespace)
	requests := s.findDataKeys(ctx, want, in, client.MatchingFields{indexKey: keyIndex(ref.Kind, ref.Name)})
	for _, version := range key.Versions() {
		requests = append(requests, s.findDataKeys(ctx, want, in, client.MatchingFields{indexVersion: version})...)
	}
	return requests
}

func (s *shared) findDataKeys(ctx context.Context, want func(*v1alpha1.DataKey) bool, options ...client.ListOption) []reconcile.Request {
	items := func(l *v1alpha1.DataKeyList) []v1alpha1.DataKey { return l.Items }
	return find(ctx, s.Client, &v1alpha1.DataKeyList{}, items, want, options...)
}

func (s *shared) findGeneratedKeys(ctx context.Context, want func(*v1alpha1.GeneratedKey) bool, options ...client.ListOption) []reconcile.Request {
	items := func(l *v1alpha1.GeneratedKeyList) []v1alpha1.GeneratedKey { return l.Items }
	return find(ctx, s.Client, &v1alpha1.GeneratedKeyList{}, items, want, options...)
}

func (s *shared) findExports(ctx context.Context, want func(*v1alpha1.ExportedDataKey) bool, options ...client.ListOption) []reconcile.Request {
	items := func(l *v1alpha1.ExportedDataKeyList) []v1alpha1.ExportedDataKey { return l.Items }
	return find(ctx, s.Client, &v1alpha1.ExportedDataKeyList{}, items, want, options...)
}

// find lists objects by an index and asks for those that are wanted. The items are the cache's own and
// must not be changed. An error means that the cache has stopped, because the operator is stopping.
func find[L client.ObjectList, T any, P interface {
	*T
	client.Object
}](ctx context.Context, c client.Reader, list L, items func(L) []T, want func(P) bool, options ...client.ListOption) []reconcile.Request {
	if err := c.List(ctx, list, append(options, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)...); err != nil {
		return nil
	}
	var requests []reconcile.Request
	found := items(list)
	for i := range found {
		if o := P(&found[i]); want == nil || want(o) {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)})
		}
	}
	return requests
}
