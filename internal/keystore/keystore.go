// Package keystore is the registry of the modules that KeyStores and ClusterKeyStores have open. Their reconcilers open,
// check and close modules; all other code works with a module inside Registry.Use, during one call.
package keystore

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// The kinds of key store.
const (
	KindKeyStore        = "KeyStore"
	KindClusterKeyStore = "ClusterKeyStore"
)

// ID identifies a key store of either kind. Namespace is empty for a ClusterKeyStore.
type ID struct{ Kind, Namespace, Name string }

// IDOf returns the key store that a reference from a namespace names.
func IDOf(namespace string, ref v1alpha1.KeyStoreReference) ID {
	if ref.Kind == KindClusterKeyStore {
		namespace = ""
	}
	return ID{Kind: ref.Kind, Namespace: namespace, Name: string(ref.Name)}
}

// IDOfObject returns the identity of a KeyStore or ClusterKeyStore.
func IDOfObject(o client.Object) ID {
	if _, ok := o.(*v1alpha1.ClusterKeyStore); ok {
		return ID{Kind: KindClusterKeyStore, Name: o.GetName()}
	}
	return ID{Kind: KindKeyStore, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// String returns the identity as kind/namespace/name, which is what indexes and logs use.
func (id ID) String() string { return id.Kind + "/" + id.Namespace + "/" + id.Name }

// Reference returns the reference that IDOf resolves to this key store from its own namespace.
func (id ID) Reference() v1alpha1.KeyStoreReference {
	return v1alpha1.KeyStoreReference{Kind: id.Kind, Name: v1alpha1.ObjectName(id.Name)}
}

// Key returns the object's namespace and name.
func (id ID) Key() client.ObjectKey { return client.ObjectKey{Namespace: id.Namespace, Name: id.Name} }

// Object is a KeyStore or a ClusterKeyStore.
type Object interface {
	client.Object
	Invalid() []v1alpha1.InvalidField
	GetConditions() []metav1.Condition
	SetConditions(conditions []metav1.Condition)
	SetObservedGeneration(generation int64)
	GetStatus() any
}

// Store is a key store of either kind, as the cache has it.
type Store struct {
	Object
	ID      ID
	Spec    *v1alpha1.KeyStoreSpec
	Allowed *v1alpha1.LabelSelector
	Status  *v1alpha1.KeyStoreStatus
}

// Get reads a key store of either kind.
func Get(ctx context.Context, reader client.Reader, id ID, options ...client.GetOption) (Store, error) {
	if id.Kind == KindClusterKeyStore {
		o := &v1alpha1.ClusterKeyStore{}
		err := reader.Get(ctx, id.Key(), o, options...)
		return ofCluster(o, id), err
	}
	o := &v1alpha1.KeyStore{}
	err := reader.Get(ctx, id.Key(), o, options...)
	return ofNamespace(o, id), err
}

// List lists the key stores of a kind. They are the cache's own and must not be changed.
func List(ctx context.Context, reader client.Reader, kind string) ([]Store, error) {
	var stores []Store
	options := []client.ListOption{client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency}
	if kind == KindClusterKeyStore {
		var all v1alpha1.ClusterKeyStoreList
		err := reader.List(ctx, &all, options...)
		for i := range all.Items {
			o := &all.Items[i]
			stores = append(stores, ofCluster(o, IDOfObject(o)))
		}
		return stores, err
	}
	var all v1alpha1.KeyStoreList
	err := reader.List(ctx, &all, options...)
	for i := range all.Items {
		o := &all.Items[i]
		stores = append(stores, ofNamespace(o, IDOfObject(o)))
	}
	return stores, err
}

func ofCluster(o *v1alpha1.ClusterKeyStore, id ID) Store {
	return Store{o, id, &o.Spec.KeyStoreSpec, o.Spec.AllowedNamespaces, &o.Status}
}

func ofNamespace(o *v1alpha1.KeyStore, id ID) Store { return Store{o, id, &o.Spec, nil, &o.Status} }

// Allows is the one place that decides which namespaces may use a key store. It returns nil for those that may. Errors:
// *NotReadyError where the key store cannot be read, *kms.Error with ForbiddenNoPermission or InvalidParameter.
func (s Store) Allows(ctx context.Context, reader client.Reader, namespace string) error {
	if len(s.Invalid()) > 0 {
		return &NotReadyError{ID: s.ID, State: Invalid}
	}
	if s.Allowed == nil {
		return nil
	}
	selected, err := Selects(ctx, reader, s.Allowed, namespace)
	if err != nil || selected {
		return err
	}
	return &kms.Error{Code: kms.ForbiddenNoPermission, Detail: fmt.Sprintf(
		"ClusterKeyStore %q does not allow this namespace. Ask its administrator to add it to spec.allowedNamespaces.", s.ID.Name)}
}

// Selects reports whether a selector matches the labels of a namespace. A namespace that does not exist matches none.
// An invalid selector is an error and not a refusal: a mistake of its owner must not take Secrets away. Errors:
// *kms.Error with InvalidParameter, and those of reader.
func Selects(ctx context.Context, reader client.Reader, selector *v1alpha1.LabelSelector, namespace string) (bool, error) {
	wanted, err := selector.AsSelector()
	if err != nil {
		return false, &kms.Error{Code: kms.InvalidParameter, Parameter: "selector", Err: err, Detail: "The label selector in exportPolicy " +
			"or allowedNamespaces is invalid. Operators are In, NotIn, Exists and DoesNotExist; only In and NotIn take values."}
	}
	ns := &metav1.PartialObjectMetadata{}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	if err := reader.Get(ctx, client.ObjectKey{Name: namespace}, ns); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return wanted.Matches(labels.Set(ns.Labels)), nil
}
