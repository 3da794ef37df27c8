package controllers

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	apimachinery "k8s.io/apimachinery/pkg/runtime"
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
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Options are what the reconcilers need from the outside.
type Options struct {
	// OpenModule opens the modules of key stores.
	OpenModule OpenModule
	// OperatorNamespace is where software stores keep their keys, and where the PINs of
	// ClusterKeyStores are read.
	OperatorNamespace string
	// Metrics is where the operator's own metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// Clock defaults to the wall clock.
	Clock clock.PassiveClock
	// HealthInterval is how often an open module is asked whether it still works; it defaults to a
	// minute.
	HealthInterval time.Duration
}

// Scheme returns the types that the operator reads and writes.
func Scheme() (*apimachinery.Scheme, error) {
	scheme := apimachinery.NewScheme()
	return scheme, errors.Join(corev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}

// CacheOptions are how the manager's cache must be: of Secrets and ConfigMaps it holds some metadata, of
// everything else not what API server and kubectl keep for themselves.
func CacheOptions() cache.Options {
	strip := secrets.StripMetadata(annotationTarget)
	return cache.Options{
		DefaultTransform: stripBookkeeping,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Secret{}:    {Transform: strip},
			&corev1.ConfigMap{}: {Transform: strip},
		},
	}
}

// stripBookkeeping is a cache transform. The operator patches what it changes, so what is not in the cache stays
// as it is; and an object that was applied by kubectl carries itself once more in an annotation.
func stripBookkeeping(in any) (any, error) {
	m, err := meta.Accessor(in)
	if err != nil {
		return in, nil //nolint:nilerr // no object: a mark of the end of a list, for instance
	}
	// It may be called again for an object that is in the cache, which nobody may write to any more.
	if m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	if m.GetAnnotations()[corev1.LastAppliedConfigAnnotation] != "" {
		delete(m.GetAnnotations(), corev1.LastAppliedConfigAnnotation)
	}
	return in, nil
}

// ClientOptions are how the manager's client must be: Secrets and ConfigMaps are read live, and a
// reconciler sees its own status writes before it decides again.
func ClientOptions() client.Options {
	return client.Options{Cache: &client.CacheOptions{
		DisableFor:                      []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}},
		EnableReadYourWritesConsistency: ptr.To(true),
	}}
}

// reconcileTimeout bounds one reconcile, and with it the wait for a module's session.
const reconcileTimeout = 2 * time.Minute

// Setup adds every reconciler to a manager that has CacheOptions and ClientOptions.
func Setup(ctx context.Context, mgr ctrl.Manager, o Options) error {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.HealthInterval == 0 {
		o.HealthInterval = healthInterval
	}
	s := &shared{
		client:   mgr.GetClient(),
		secrets:  secrets.New(mgr.GetClient(), mgr.GetCache()),
		modules:  newModules(),
		recorder: mgr.GetEventRecorder("keyconvoy"),
		clock:    o.Clock,
	}
	if err := addIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	calls := newModuleCalls()
	if o.Metrics != nil {
		if err := errors.Join(o.Metrics.Register(calls), o.Metrics.Register(&collector{mgr.GetClient(), o.Clock})); err != nil {
			return err
		}
	}
	open := metered(o.OpenModule, calls)
	return errors.Join(
		(&keyStoreReconciler{s, kindKeyStore, open, o.OperatorNamespace, o.HealthInterval}).setup(mgr, keyStoreOptions()),
		(&keyStoreReconciler{s, kindClusterKeyStore, open, o.OperatorNamespace, o.HealthInterval}).setup(mgr, keyStoreOptions()),
		(&importedKeyReconciler{s}).setup(mgr, controllerOptions(2)),
		(&dataKeyReconciler{s}).setup(mgr, controllerOptions(4)),
		(&exportedDataKeyReconciler{s}).setup(mgr, controllerOptions(8)),
		(&clusterExportReconciler{s}).setup(mgr, controllerOptions(1)),
		mgr.Add(manager.RunnableFunc(s.closeModules)),
	)
}

// closeModules closes the modules when the manager ends: a token should not be left logged in.
func (s *shared) closeModules(ctx context.Context) error {
	<-ctx.Done()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	s.modules.closeAll(bounded)
	return nil
}

// controllerOptions gives a controller that many workers for each core: they wait for the API server and
// the module most of the time.
func controllerOptions(perCore int) controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: perCore * max(2, runtime.NumCPU()),
		ReconciliationTimeout:   reconcileTimeout,
		// Whoever waits to be the leader fills its caches meanwhile.
		EnableWarmup: ptr.To(true),
		// From a second to minutes: the default makes its first eight tries within 1.3 s.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](time.Second, 5*time.Minute),
	}
}

// keyStoreOptions has a module that fails asked again within seconds: everybody else waits for it and asks
// nothing meanwhile.
func keyStoreOptions() controller.Options {
	options := controllerOptions(8) // one that hangs holds a worker, and nobody else up
	options.RateLimiter = workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](time.Second, 10*time.Second)
	return options
}
