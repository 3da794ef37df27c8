package harness

import (
	"context"
	"maps"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/controllers"
)

const (
	// LabelOperator is on every Keyconvoy object that a test creates: an operator serves those with its own mark.
	//
	// One process runs many operators on one API server, and each must see its own objects only. A cache that is limited
	// to namespaces cannot do that: cluster-wide kinds have none, and reading one's own writes does not work with several
	// namespaces (client.CacheOptions). A label selector does it for every kind and any number of namespaces. Secrets,
	// ConfigMaps and Namespaces are watched whole, as in the product: those of other tests lead to no object here.
	LabelOperator = "test.keyconvoy.io/operator"

	// AnnotationTouched wakes the reconciler of an object. The tests' cache keeps it, besides the annotations that the
	// product's cache keeps.
	AnnotationTouched = "test.keyconvoy.io/touched"
)

// Mark is the label of the objects that the operator serves.
func (o *Operator) Mark() map[string]string { return map[string]string{LabelOperator: o.OwnNamespace} }

// cacheOptions are the product's, limited to the objects with the operator's mark.
func (o *Operator) cacheOptions() cache.Options {
	options := controllers.CacheOptions()
	product := options.DefaultTransform
	options.DefaultTransform = func(in any) (any, error) {
		object, isObject := in.(client.Object)
		if !isObject || object.GetAnnotations()[AnnotationTouched] == "" {
			return product(in)
		}
		// What is in the cache may come again, and must not be written to.
		kept := object.DeepCopyObject().(client.Object)
		if _, err := product(kept); err != nil {
			return nil, err
		}
		all := maps.Clone(kept.GetAnnotations())
		all[AnnotationTouched] = object.GetAnnotations()[AnnotationTouched]
		kept.SetAnnotations(all)
		return kept, nil
	}
	options.ByObject = maps.Clone(options.ByObject)
	for _, kind := range kinds() {
		options.ByObject[kind] = cache.ByObject{Label: labels.SelectorFromSet(o.Mark())}
	}
	return options
}

func kinds() []client.Object {
	return []client.Object{
		&v1alpha1.KeyStore{}, &v1alpha1.ClusterKeyStore{}, &v1alpha1.ImportedKey{}, &v1alpha1.GeneratedKey{},
		&v1alpha1.DataKey{}, &v1alpha1.ExportedDataKey{}, &v1alpha1.ClusterExportedDataKey{},
		&v1alpha1.AccessKey{},
	}
}

func (o *Operator) newClient(cfg *rest.Config, options client.Options) (client.Client, error) {
	c, err := client.New(cfg, options)
	return marking{c, o.Mark()}, err
}

// marking gives the operator's mark to the Keyconvoy objects that the operator creates itself.
type marking struct {
	client.Client
	mark map[string]string
}

// Create implements client.Client.
func (m marking) Create(ctx context.Context, object client.Object, options ...client.CreateOption) error {
	if export, ok := object.(*v1alpha1.ExportedDataKey); ok {
		maps.Copy(export.Labels, m.mark)
	}
	return m.Client.Create(ctx, object, options...)
}
