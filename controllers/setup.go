package controllers

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apimachinery "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Options are what the reconcilers need from the outside.
type Options struct {
	// Modules opens the modules of key stores.
	Modules hsm.Provider
	// OperatorNamespace is where software stores keep their keys, and where the PINs of
	// ClusterKeyStores are read.
	OperatorNamespace string
	// ReadPIN reads the PINs of key stores; nil means the manager's client.
	ReadPIN secrets.EntryReader
	// Namespaces are those that the manager is limited to (Namespaces.Limit).
	Namespaces Namespaces
	// Metrics is where the operator's own metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// Audit is where operations on keys are recorded; nil for nowhere.
	Audit *audit.Log
	// Caches observes the manager's caches; nil if nothing observes them.
	Caches *Caches
	// Clock defaults to the wall clock.
	Clock clock.PassiveClock
	// HealthInterval is how often an open module is asked whether it still works; it defaults to a
	// minute.
	HealthInterval time.Duration
	// Observe is told of each reconcile when it begins, by kind, and returns what is called when it is over; nil for
	// nothing. Tests count with it.
	Observe func(kind string, object types.NamespacedName) (over func())
	// ReconcileTimeout bounds one reconcile, and with it the wait for a module; it defaults to two minutes.
	ReconcileTimeout time.Duration
}

// Scheme returns the types that the operator reads and writes.
func Scheme() (*apimachinery.Scheme, error) {
	scheme := apimachinery.NewScheme()
	return scheme, errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}

// CacheOptions are how the manager's cache must be: of Secrets and ConfigMaps it holds some metadata, of
// everything else not what API server and kubectl keep for themselves.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: stripUnread,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Secret{}:    {Transform: secrets.StripMetadata},
			&corev1.ConfigMap{}: {Transform: secrets.StripMetadata},
		},
	}
}

// stripUnread is a cache transform that drops what the operator does not read: managed fields, labels (but those of
// namespaces, which selectors ask for), and all annotations but its own. The operator patches what it changes, so what is
// not in the cache stays as it is. Anyone who may write an object may put hundreds of KiB of them on it, and kubectl apply
// puts the object itself there once more. config/policy bounds the finalizers and owners of our kinds.
func stripUnread(in any) (any, error) {
	m, err := meta.Accessor(in)
	if err != nil {
		return in, nil //nolint:nilerr // no object: a mark of the end of a list, for instance
	}
	// It may be called again for an object that is in the cache, which must not be changed.
	if m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	// What is watched as metadata only, and not transformed otherwise, are namespaces.
	if _, ofNamespace := in.(*metav1.PartialObjectMetadata); !ofNamespace && m.GetLabels() != nil {
		m.SetLabels(nil)
	}
	kept := map[string]string{}
	for name, value := range m.GetAnnotations() {
		if slices.Contains(readAnnotations, name) {
			kept[name] = keyring.AnnotationValue(value)
		}
	}
	if !maps.Equal(kept, m.GetAnnotations()) {
		m.SetAnnotations(kept) // a new map: the old one would keep its size
	}
	return in, nil
}

// readAnnotations are the annotations of objects of ours that the operator reads. The cache has no others.
var readAnnotations = []string{
	v1alpha1.AnnotationRenewImportParameters, v1alpha1.AnnotationDeleteKeyMaterial, v1alpha1.AnnotationRotate,
	v1alpha1.AnnotationDataKeyMade,
}

// ClientOptions are how the manager's client must be: Secrets and ConfigMaps are read live, and a
// reconciler sees its own status writes before it decides again.
func ClientOptions() client.Options {
	return client.Options{Cache: &client.CacheOptions{
		DisableFor:                      []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}},
		EnableReadYourWritesConsistency: ptr.To(true),
	}}
}

// reconcileTimeout is the default of Options.ReconcileTimeout.
const reconcileTimeout = 2 * time.Minute

// Setup adds every reconciler to a manager that has CacheOptions and ClientOptions.
func Setup(ctx context.Context, mgr ctrl.Manager, o Options) error {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.HealthInterval == 0 {
		o.HealthInterval = healthInterval
	}
	if o.ReconcileTimeout == 0 {
		o.ReconcileTimeout = reconcileTimeout
	}
	live := o.Namespaces.limit(mgr.GetAPIReader(), mgr.GetScheme())
	stores := keystore.New(mgr.GetClient(), o.Modules, o.Clock)
	s := &shared{
		live:    live,
		secrets: secrets.New(mgr.GetClient(), mgr.GetCache(), o.ReadPIN, o.OperatorNamespace),
		stores:  stores.Lane(1),
		keys:    keyring.New(mgr.GetClient(), live, stores),
		Frame:   reconciler.Frame{Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("keyconvoy")},
		clock:   o.Clock,
		audit:   o.Audit,
		observe: o.Observe,

		namespaces:        o.Namespaces,
		operatorNamespace: o.OperatorNamespace,
		leftInModule:      newLeftInModule(),
	}
	if err := addIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if o.Caches != nil {
		if err := o.Caches.follow(ctx, mgr.GetCache()); err != nil {
			return err
		}
		if o.Metrics != nil {
			if err := o.Metrics.Register(o.Caches); err != nil {
				return err
			}
		}
	}
	if o.Metrics != nil && o.Audit != nil {
		if err := o.Metrics.Register(o.Audit.Failures()); err != nil {
			return err
		}
	}
	if o.Metrics != nil {
		if err := errors.Join(o.Metrics.Register(stores.Metrics()), o.Metrics.Register(s.leftInModule), o.Metrics.Register(&collector{mgr.GetClient(), o.Clock})); err != nil {
			return err
		}
	}
	return s.setup(mgr, o)
}

// setup adds each reconciler with its workers.
func (s *shared) setup(mgr ctrl.Manager, o Options) error {
	guard := pins.New(s.secrets.PINRecord(), o.Clock.Now)
	stores, keys, dataKeys, exports, clusterExports := o.keyStoreOptions(), o.controllerOptions(2), o.controllerOptions(16), o.controllerOptions(8), o.controllerOptions(1)
	use := func(c controller.Options) *shared { return s.withWorkers(c.MaxConcurrentReconciles) }
	return errors.Join(
		(&keyStoreReconciler{use(stores), keystore.KindKeyStore, guard, o.HealthInterval}).setup(mgr, stores),
		(&keyStoreReconciler{use(stores), keystore.KindClusterKeyStore, guard, o.HealthInterval}).setup(mgr, o.keyStoreOptions()),
		(&importedKeyReconciler{use(keys)}).setup(mgr, keys),
		(&generatedKeyReconciler{use(keys)}).setup(mgr, o.controllerOptions(2)),
		(&dataKeyReconciler{use(dataKeys)}).setup(mgr, dataKeys),
		(&exportedDataKeyReconciler{use(exports)}).setup(mgr, exports),
		(&clusterExportReconciler{use(clusterExports)}).setup(mgr, clusterExports),
		(&accessKeyReconciler{s}).setup(mgr, o.controllerOptions(1)),
		mgr.Add(manager.RunnableFunc(s.closeModules)),
	)
}

// closeModules closes the modules when the manager ends: a token should not be left logged in.
func (s *shared) closeModules(ctx context.Context) error {
	<-ctx.Done()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	s.stores.CloseAll(bounded)
	return nil
}

// controllerOptions gives a controller that many workers for each core: they wait for the API server and
// the module most of the time.
func (o Options) controllerOptions(perCore int) controller.Options {
	workers := perCore * max(2, runtime.NumCPU())
	return controller.Options{
		MaxConcurrentReconciles: workers,
		// One namespace, whatever its reconciles wait for, never holds all of them.
		NewQueue:              reconciler.NewFairQueue(workers),
		ReconciliationTimeout: o.ReconcileTimeout,
		// A replica that waits to be the leader fills its caches meanwhile.
		EnableWarmup: ptr.To(true),
		// From a second to minutes: the default makes its first eight attempts within 1.3 s.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](time.Second, 5*time.Minute),
	}
}

// keyStoreOptions retries a module that fails within seconds: other objects wait for it and make no calls meanwhile.
func (o Options) keyStoreOptions() controller.Options {
	options := o.controllerOptions(8) // one that hangs holds a worker
	// Of which the phases get three quarters: more than the two minutes that a call of an opening may take.
	options.ReconciliationTimeout = o.ReconcileTimeout * 3 / 2
	options.RateLimiter = workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](time.Second, 10*time.Second)
	return options
}
