package controllers

import (
	"context"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Namespaces limits an operator to some namespaces, its own among them. It needs no rights in others, and what is
// there does not exist for it. None means all.
type Namespaces []string

// Has says whether the operator serves a namespace.
func (n Namespaces) Has(namespace string) bool {
	return len(n) == 0 || slices.Contains(n, namespace)
}

// Limit limits a manager that has CacheOptions and ClientOptions.
func (n Namespaces) Limit(options *ctrl.Options) {
	if len(n) == 0 {
		return
	}
	options.Cache.DefaultNamespaces = map[string]cache.Config{}
	for _, namespace := range n {
		options.Cache.DefaultNamespaces[namespace] = cache.Config{}
	}
	options.NewClient = func(cfg *rest.Config, o client.Options) (client.Client, error) {
		// It takes what one namespace's cache has seen for what all have (client.CacheOptions).
		withCache := *o.Cache
		withCache.EnableReadYourWritesConsistency = nil
		o.Cache = &withCache
		cached, err := client.New(cfg, o)
		if err != nil {
			return nil, err
		}
		o.Cache = nil
		live, err := client.New(cfg, o)
		return limitedClient{cached, n.limit(cached, o.Scheme), n.limit(live, o.Scheme)}, err
	}
}

func (n Namespaces) limit(r client.Reader, scheme *runtime.Scheme) limitedReader {
	return limitedReader{r, scheme, n}
}

// limitedReader finds nothing outside the namespaces that the operator is limited to.
type limitedReader struct {
	client.Reader

	scheme     *runtime.Scheme
	namespaces Namespaces
}

// Get implements client.Reader.
func (r limitedReader) Get(ctx context.Context, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
	if key.Namespace == "" || r.namespaces.Has(key.Namespace) {
		return r.Reader.Get(ctx, key, object, options...)
	}
	gvk, err := apiutil.GVKForObject(object, r.scheme)
	if err != nil {
		return err
	}
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	return apierrors.NewNotFound(resource.GroupResource(), key.Name)
}

// List implements client.Reader.
func (r limitedReader) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	o := (&client.ListOptions{}).ApplyOptions(options)
	if o.Namespace != "" && !r.namespaces.Has(o.Namespace) {
		return nil
	}
	return r.Reader.List(ctx, list, options...)
}

// limitedClient reads the namespaces that the operator serves. There is a cache for each namespace, and reading one's
// own writes from it does not work with several, so single objects of ours are read live: that is one more request in
// a reconcile, and none is decided on a status that the operator has already replaced.
type limitedClient struct {
	client.Client

	cached, live limitedReader
}

// Get implements client.Client.
func (c limitedClient) Get(ctx context.Context, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
	switch object.(type) {
	case *v1alpha1.ImportedKey, *v1alpha1.GeneratedKey, *v1alpha1.DataKey, *v1alpha1.ExportedDataKey, *v1alpha1.KeyStore,
		*v1alpha1.ClusterKeyStore, *v1alpha1.ClusterExportedDataKey, *v1alpha1.AccessKey:
		return c.live.Get(ctx, key, object, options...)
	}
	return c.cached.Get(ctx, key, object, options...)
}

// List implements client.Client.
func (c limitedClient) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	return c.cached.List(ctx, list, options...)
}
