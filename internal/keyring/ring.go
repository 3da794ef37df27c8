package keyring

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	for _, object := range Objects() {
		err := errors.Join(
			indexer.IndexField(ctx, object, IndexStore, func(o client.Object) []string { return []string{Of(o).Store().String()} }),
			indexer.IndexField(ctx, object, IndexVersion, func(o client.Object) []string { return Of(o).Versions() }),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// Objects returns an empty object of each kind of master keys.
func Objects() []client.Object {
	return []client.Object{&v1alpha1.ImportedKey{}, &v1alpha1.GeneratedKey{}}
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
func (r *Ring) Get(ctx context.Context, ref Ref, options ...client.GetOption) (*Key, error) {
	return get(ctx, r.cached, ref, options...)
}

// Live reads a master key again, from the API server. It returns nil where that key no longer exists.
func (r *Ring) Live(ctx context.Context, was *Key) (*Key, error) {
	is, err := get(ctx, r.live, was.Ref())
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
	is, err := get(ctx, from, was.Ref())
	return is != nil && is.ID() == was.ID() && is.object.GetGeneration() == was.object.GetGeneration(), err
}

func get(ctx context.Context, from client.Reader, ref Ref, options ...client.GetOption) (*Key, error) {
	var object client.Object = &v1alpha1.ImportedKey{}
	if ref.Kind == KindGeneratedKey {
		object = &v1alpha1.GeneratedKey{}
	}
	err := from.Get(ctx, ref.NamespacedName, object, options...)
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
	options = append(options, client.UnsafeDisableDeepCopy)
	var imported v1alpha1.ImportedKeyList
	var generated v1alpha1.GeneratedKeyList
	if err := r.cached.List(ctx, &imported, options...); err != nil {
		return nil, err
	}
	if err := r.cached.List(ctx, &generated, options...); err != nil {
		return nil, err
	}
	keys := make([]*Key, 0, len(imported.Items)+len(generated.Items))
	for i := range imported.Items {
		keys = append(keys, Of(&imported.Items[i]))
	}
	for i := range generated.Items {
		keys = append(keys, Of(&generated.Items[i]))
	}
	return keys, nil
}
