package keyring

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
)

// Field indexes of the cache.
const (
	// IndexStore lists master keys by key store (keystore.ID).
	IndexStore = "keyStore"
	// IndexVersion lists master keys by key version.
	IndexVersion = "keyVersion"
)

// AddIndexes adds the indexes that a Ring needs to a cache.
func AddIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	err := indexer.IndexField(ctx, &v1alpha1.ImportedKey{}, IndexStore, func(o client.Object) []string {
		return []string{Of(o.(*v1alpha1.ImportedKey)).Store().String()}
	})
	if err != nil {
		return err
	}
	return indexer.IndexField(ctx, &v1alpha1.ImportedKey{}, IndexVersion, func(o client.Object) []string {
		return Of(o.(*v1alpha1.ImportedKey)).Versions()
	})
}

// Versions returns the key versions that the object names. There are none where it is not Bound, or invalid, which its
// reconciler reports.
func (k *Key) Versions() []string {
	key, err := k.KMS()
	if err != nil || !k.Bound() {
		return nil
	}
	ids := []string{key.Primary.ID.String()}
	for _, version := range key.Former {
		ids = append(ids, version.ID.String())
	}
	return ids
}

// Ring finds master keys.
type Ring struct {
	cached client.Reader // has the indexes
	live   client.Reader // reads from the API server
	stores *keystore.Registry
}

// New returns a Ring over a cache with AddIndexes, and a reader that bypasses it.
func New(cached, live client.Reader, stores *keystore.Registry) *Ring {
	return &Ring{cached, live, stores}
}

// Get reads a master key from the cache. It returns nil where none of the name exists.
func (r *Ring) Get(ctx context.Context, name types.NamespacedName, options ...client.GetOption) (*Key, error) {
	return get(ctx, r.cached, name, options...)
}

// Live reads a master key again, from the API server. It returns nil where that key no longer exists.
func (r *Ring) Live(ctx context.Context, was *Key) (*Key, error) {
	is, err := get(ctx, r.live, was.Name())
	if err != nil || is == nil || is.ID() != was.ID() {
		return nil, err
	}
	return is, nil
}

// Unchanged reports whether a master key's object is the same and has the same spec as it was read with, as the cache
// has it.
func (r *Ring) Unchanged(ctx context.Context, was *Key) (bool, error) {
	return unchanged(ctx, r.cached, was)
}

// UnchangedLive is Unchanged as the API server has it.
func (r *Ring) UnchangedLive(ctx context.Context, was *Key) (bool, error) {
	return unchanged(ctx, r.live, was)
}

func unchanged(ctx context.Context, from client.Reader, was *Key) (bool, error) {
	is, err := get(ctx, from, was.Name())
	return is != nil && is.ID() == was.ID() && is.object.Generation == was.object.Generation, err
}

func get(ctx context.Context, from client.Reader, name types.NamespacedName, options ...client.GetOption) (*Key, error) {
	object := &v1alpha1.ImportedKey{}
	err := from.Get(ctx, name, object, options...)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // documented: there is none
	}
	if err != nil {
		return nil, err
	}
	return Of(object), nil
}

// InStore lists the master keys of a key store. They are the cache's own.
func (r *Ring) InStore(ctx context.Context, id keystore.ID, options ...client.ListOption) ([]*Key, error) {
	return r.list(ctx, append(options, client.MatchingFields{IndexStore: id.String()})...)
}

// InNamespace lists the master keys of a namespace. They are the cache's own.
func (r *Ring) InNamespace(ctx context.Context, namespace string, options ...client.ListOption) ([]*Key, error) {
	return r.list(ctx, append(options, client.InNamespace(namespace))...)
}

// ofVersion lists the master keys that name a key version. They are the cache's own.
func (r *Ring) ofVersion(ctx context.Context, version string, options ...client.ListOption) ([]*Key, error) {
	return r.list(ctx, append(options, client.MatchingFields{IndexVersion: version})...)
}

func (r *Ring) list(ctx context.Context, options ...client.ListOption) ([]*Key, error) {
	var list v1alpha1.ImportedKeyList
	if err := r.cached.List(ctx, &list, append(options, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil, err
	}
	keys := make([]*Key, len(list.Items))
	for i := range list.Items {
		keys[i] = Of(&list.Items[i])
	}
	return keys, nil
}
