// Package gateway serves the documented key management API over HTTP, on the same keys as the objects in the cluster: package wire is
// the protocol, and this package the operations. They authorize each request as the ServiceAccount of its access key, use modules through
// internal/keystore, and change keys through their objects.
package gateway

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Options are what the gateway needs from the outside.
type Options struct {
	// Modules opens the modules of key stores.
	Modules hsm.Provider
	// OperatorNamespace is where software stores keep their keys, and where the PINs of ClusterKeyStores are read.
	OperatorNamespace string
	// ReadPIN reads the PINs of key stores; nil means the manager's client.
	ReadPIN secrets.EntryReader
	// Metrics is where metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// Audit is where requests are recorded; nil for nowhere.
	Audit *audit.Log
	// Clock defaults to the wall clock.
	Clock clock.PassiveClock
}

// Scheme returns the types that the gateway reads and writes.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(corev1.AddToScheme(scheme), authorizationv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}

// CacheOptions are how the manager's cache must be. Of Secrets it has the metadata of the records of software stores only.
func CacheOptions(operatorNamespace string) (cache.Options, error) {
	records, err := labels.NewRequirement(secrets.RecordsLabel, selection.Exists, nil)
	if err != nil {
		return cache.Options{}, err
	}
	return cache.Options{
		DefaultTransform: stripUnread,
		ByObject: map[client.Object]cache.ByObject{
			secrets.Secret.Metadata(): {
				Namespaces: map[string]cache.Config{operatorNamespace: {}}, Label: labels.NewSelector().Add(*records), Transform: secrets.StripMetadata,
			},
		},
	}, nil
}

// stripUnread is a cache transform that drops what the gateway does not read.
func stripUnread(in any) (any, error) {
	m, err := meta.Accessor(in)
	if err != nil {
		return in, nil //nolint:nilerr // no object: a mark of the end of a list, for instance
	}
	if m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	if len(m.GetAnnotations()) > 0 {
		m.SetAnnotations(readAnnotations(m.GetAnnotations()))
	}
	if _, isNamespace := in.(*corev1.Namespace); !isNamespace && m.GetLabels() != nil { // selectors of namespaces read theirs
		m.SetLabels(nil)
	}
	switch o := in.(type) {
	case *v1alpha1.ImportedKey:
		if o.Spec.Material != nil || o.Status.ImportParameters != nil { // several KiB of Base64
			o.Spec.Material, o.Status.ImportParameters = nil, nil
		}
		stripKey(o, o.Status.Conditions)
	case *v1alpha1.GeneratedKey:
		stripKey(o, o.Status.Conditions)
	}
	return in, nil
}

// annotationBytes are the annotations that only the gateway reads, and how long they can be within the limits of their operations. A character
// has up to 4 bytes, or 6 where JSON escapes it.
var annotationBytes = map[string]int{
	annotationDescription: 4 * maxDescription,
	annotationTags:        maxTags * (6*(maxTagKey+maxTagValue) + len(`"":"",`)),
	annotationAliases:     maxAliases*(maxAlias+len(`"",`)) + len(`[]`),
}

// readAnnotations returns those of the annotations that the gateway reads. It cuts off what is longer than its operations write, so
// that users who may write objects cannot fill the memory of the gateway. The copies do not keep the rest.
func readAnnotations(all map[string]string) map[string]string {
	kept := map[string]string{}
	for name, most := range annotationBytes {
		if value, ok := all[name]; ok {
			kept[name] = strings.ToValidUTF8(strings.Clone(value[:min(len(value), most)]), "")
		}
	}
	if value, ok := all[v1alpha1.AnnotationDeleteKeyMaterial]; ok {
		kept[v1alpha1.AnnotationDeleteKeyMaterial] = strings.Clone(keyring.AnnotationValue(value))
	}
	return kept
}

// stripKey drops what the gateway does not read of keys, of which there are many. Of the conditions it reads Stalled.
func stripKey(o interface {
	client.Object
	SetConditions(conditions []metav1.Condition)
}, conditions []metav1.Condition) {
	if o.GetLabels() != nil || o.GetOwnerReferences() != nil || o.GetFinalizers() != nil {
		o.SetLabels(nil)
		o.SetOwnerReferences(nil)
		o.SetFinalizers(nil)
	}
	var kept []metav1.Condition
	if stalled := meta.FindStatusCondition(conditions, v1alpha1.ConditionStalled); stalled != nil {
		kept = []metav1.Condition{*stalled} // a new list: the old one would keep its size
	}
	if len(kept) != len(conditions) {
		o.SetConditions(kept)
	}
}

// ClientOptions are how the manager's client must be: Secrets are read live.
func ClientOptions() client.Options {
	return client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}}}}
}

// Setup adds to a manager, which has CacheOptions and ClientOptions and elects no leader, what opens modules and follows objects. It
// returns the handler of requests.
func Setup(ctx context.Context, mgr ctrl.Manager, o Options) (http.Handler, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	live, err := client.New(mgr.GetConfig(), client.Options{HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return nil, err
	}
	content := secrets.New(mgr.GetClient(), mgr.GetCache(), o.ReadPIN, o.OperatorNamespace)
	registry := keystore.New(mgr.GetClient(), o.Modules, o.Clock)
	ops := &operations{
		cached: mgr.GetClient(), live: live, writer: mgr.GetClient(), directory: newDirectory(), keys: keyring.New(mgr.GetClient(), live, registry),
		// Half of the requests may be in one module.
		stores: registry.Lane(wire.MaxRequests), authorizer: newAuthorizer(live, o.Clock), clock: o.Clock,
	}
	keys := &accessKeys{cached: mgr.GetClient(), secrets: content, clock: o.Clock, known: map[types.UID]knownSecret{}}
	err = errors.Join(
		keyring.AddIndexes(ctx, mgr.GetFieldIndexer()),
		mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.AccessKey{}, indexAccessKey, accessKeyID),
		ops.directory.follow(ctx, mgr.GetCache()),
		keys.follow(ctx, mgr.GetCache()),
		openStores(ctx, mgr, o, registry, content),
	)
	if err != nil {
		return nil, err
	}
	observed := newMetrics()
	if o.Metrics != nil {
		err = errors.Join(o.Metrics.Register(observed.requests), o.Metrics.Register(registry.Metrics()))
		if o.Audit != nil {
			err = errors.Join(err, o.Metrics.Register(o.Audit.Failures()))
		}
	}
	return wire.New(keys, ops, observer(observed, o.Audit), o.Clock.Now), err
}

// openStores adds what opens the modules of both kinds of key stores, and closes them at the end.
func openStores(ctx context.Context, mgr ctrl.Manager, o Options, registry *keystore.Registry, content *secrets.Client) error {
	deletions, err := secrets.FollowDeletions(ctx, mgr.GetCache())
	if err != nil {
		return err
	}
	guard := pins.New(content.PINRecord(), o.Clock.Now)
	for _, kind := range []string{keystore.KindKeyStore, keystore.KindClusterKeyStore} {
		opener := &opener{
			kind: kind, cached: mgr.GetClient(), registry: registry, lane: registry.Lane(2), secrets: content, deletions: deletions,
			pins: guard, operatorNamespace: o.OperatorNamespace,
		}
		if err := opener.setup(mgr); err != nil {
			return err
		}
	}
	return mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		registry.CloseAll(bounded)
		return nil
	}))
}

// metrics are those of requests.
type metrics struct{ requests *prometheus.HistogramVec }

func newMetrics() metrics {
	return metrics{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "keyconvoy_gateway_request_duration_seconds",
		Help:    "How long requests to the gateway took, by operation and code. action is empty for requests that were refused before their operation was known.",
		Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10},
	}, []string{"action", "code"})}
}

// observer counts each request, and records those whose signature is right.
func observer(m metrics, log *audit.Log) wire.Observer {
	return func(r *wire.Request, action string, err error, duration time.Duration) {
		code := wire.CodeOf(err)
		m.requests.WithLabelValues(action, code).Observe(duration.Seconds())
		if r == nil {
			return
		}
		line, ok := r.Note.(*audit.Record)
		if !ok { // the protocol refused it
			line = lineOf(r)
		}
		line.DurationMillis = duration.Milliseconds()
		if line.Outcome = audit.Success; err != nil {
			line.Outcome = kms.Code(code)
		}
		log.Write(*line)
	}
}
