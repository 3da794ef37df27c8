package controllers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Caches says whether the manager's caches are filled and still follow the API server. Without that the operator
// works on nothing, or on what was true before.
type Caches struct {
	mu     sync.Mutex
	kinds  []*cacheOfKind
	errors *prometheus.CounterVec
}

// cacheOfKind is the cache of one kind. Caches.mu guards what changes.
type cacheOfKind struct {
	kind     string
	informer cache.Informer
	failures int                     // in a row, without progress between
	last     error                   // the last failure
	at       string                  // the resource version at the first of the failures
	position func() (version string) // the resource version now; nil before the first failure
}

// failuresInARow is how many times the list or watch of a kind that was filled fails before the cache counts as not
// followed: one failure is what each restart of the API server costs.
const failuresInARow = 3

var cacheSyncedMetric = prometheus.NewDesc("keyconvoy_cache_synced",
	"Whether the cache of a kind is filled and follows the API server (1) or not (0).", []string{"kind"}, nil)

// NewCaches returns Caches for Options.
func NewCaches() *Caches {
	return &Caches{errors: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keyconvoy_cache_errors_total", Help: "Failed lists and watches by kind.",
	}, []string{"kind"})}
}

// follow observes the caches of all kinds that the reconcilers watch. It must be called before the manager starts.
func (c *Caches) follow(ctx context.Context, informers cache.Cache) error {
	namespace := &metav1.PartialObjectMetadata{}
	namespace.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	for _, of := range []struct {
		kind   string
		object client.Object
	}{
		{keystore.KindKeyStore, &v1alpha1.KeyStore{}}, {keystore.KindClusterKeyStore, &v1alpha1.ClusterKeyStore{}},
		{"ImportedKey", &v1alpha1.ImportedKey{}}, {"GeneratedKey", &v1alpha1.GeneratedKey{}}, {"DataKey", &v1alpha1.DataKey{}},
		{"ExportedDataKey", &v1alpha1.ExportedDataKey{}}, {"ClusterExportedDataKey", &v1alpha1.ClusterExportedDataKey{}},
		{"AccessKey", &v1alpha1.AccessKey{}},
		{"Secret", secrets.Secret.Metadata()}, {"ConfigMap", secrets.ConfigMap.Metadata()}, {"Namespace", namespace},
	} {
		informer, err := informers.GetInformer(ctx, of.object, cache.BlockUntilSynced(false))
		if err != nil {
			return err
		}
		k := &cacheOfKind{kind: of.kind, informer: informer}
		c.kinds = append(c.kinds, k)
		c.errors.WithLabelValues(of.kind)
		// Caches of several namespaces have an informer for each, and do not show it.
		if one, ok := informer.(toolscache.SharedIndexInformer); ok {
			err := one.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *toolscache.Reflector, err error) {
				toolscache.DefaultWatchErrorHandler(ctx, r, err)
				c.failed(k, r.LastSyncResourceVersion, err)
			})
			if err != nil {
				return fmt.Errorf("observing the cache of %s: %w", of.kind, err)
			}
		}
	}
	return nil
}

// failed notes that a list or watch failed. A watch that ends or that begins too far in the past is no failure.
func (c *Caches) failed(k *cacheOfKind, position func() string, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return
	}
	c.errors.WithLabelValues(k.kind).Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.position == nil || position() != k.at {
		k.failures, k.at = 0, position()
	}
	k.failures, k.last, k.position = k.failures+1, err, position
}

// problem says why the cache of a kind cannot be relied on, or nothing.
func (c *Caches) problem(k *cacheOfKind) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	failing := k.position != nil && k.position() == k.at
	switch {
	case !k.informer.HasSynced() && failing:
		return fmt.Errorf("the cache of %s is not filled: %w", k.kind, k.last)
	case !k.informer.HasSynced():
		return fmt.Errorf("the cache of %s is not filled yet", k.kind)
	case failing && k.failures >= failuresInARow:
		return fmt.Errorf("the cache of %s does not follow the API server: %w", k.kind, k.last)
	}
	return nil
}

// Check returns an error that names each kind whose cache is not filled or does not follow the API server.
func (c *Caches) Check() error {
	var problems []error
	for _, k := range c.kinds {
		problems = append(problems, c.problem(k))
	}
	return errors.Join(problems...)
}

// Describe implements prometheus.Collector.
func (c *Caches) Describe(ch chan<- *prometheus.Desc) {
	ch <- cacheSyncedMetric
	c.errors.Describe(ch)
}

// Collect implements prometheus.Collector.
func (c *Caches) Collect(ch chan<- prometheus.Metric) {
	for _, k := range c.kinds {
		synced := 1.0
		if c.problem(k) != nil {
			synced = 0
		}
		ch <- prometheus.MustNewConstMetric(cacheSyncedMetric, prometheus.GaugeValue, synced, k.kind)
	}
	c.errors.Collect(ch)
}

func list(ctx context.Context, c client.Reader, into client.ObjectList) error {
	return c.List(ctx, into, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
}
