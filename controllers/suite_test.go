package controllers_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/controllers"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard()) // each operator has a log of its own
	testenv.Main(m, process.end)
}

const (
	// labelOperator is on every object of ours that a test makes: an operator serves those with its
	// own mark.
	//
	// One process runs many operators on one API server, and each must see its own objects only. A
	// cache that is limited to namespaces cannot do that: cluster-wide kinds have none, and reading
	// one's own writes does not work with several namespaces (client.CacheOptions). A label selector
	// does it for every kind and any number of namespaces. Secrets, ConfigMaps and Namespaces are
	// watched whole, as in the product: those of other tests lead to no object here.
	labelOperator = "test.keyconvoy.io/operator"

	// annotationTouched wakes the reconciler of an object. The tests' cache keeps it, beside those that the
	// product's keeps.
	annotationTouched = "test.keyconvoy.io/touched"

	patience = time.Minute
	interval = 20 * time.Millisecond
)

// operator is a manager as the product runs it, for one test.
type operator struct {
	client.Client // the administrator's, without a cache

	env *testenv.Env
	// namespace is the test's, ownNamespace the operator's.
	namespace    string
	ownNamespace string
	// requests counts what the operator sends.
	requests *testenv.Counter

	cfg      *rest.Config
	clock    clock.PassiveClock
	health   time.Duration
	timeout  time.Duration
	onOpen   func(context.Context, hsm.Config) error
	onModule func(*hsmtest.Recorder)
	// onManager changes the manager's options.
	onManager func(*ctrl.Options)
	// tokenOf is a token of a PKCS#11 library, of which only the library counts.
	tokenOf func(library string) tokens.Token
	test    string    // the name of the test
	says    io.Writer // gets the log, too
	stopped func()    // nil while it does not run
	former  int       // how many modules were opened before its start

	mu          sync.Mutex
	opened      []*hsmtest.Recorder
	hidden      map[string][]byte
	audited     bytes.Buffer
	log         bytes.Buffer
	begun, done map[string]int // reconciles since the start, by kind, namespace and name
}

type option func(*operator)

// withClock gives the operator another clock than the wall's. Moving it wakes nobody: see touch.
func withClock(c clock.PassiveClock) option { return func(o *operator) { o.clock = c } }

// withHealth has the modules asked so often whether they work.
func withHealth(every time.Duration) option { return func(o *operator) { o.health = every } }

// withTimeout bounds each reconcile, of which the phases get three quarters.
func withTimeout(after time.Duration) option { return func(o *operator) { o.timeout = after } }

// withModules has each module prepared when it is opened, before it is used.
func withModules(prepare func(*hsmtest.Recorder)) option {
	return func(o *operator) { o.onModule = prepare }
}

// beforeOpen runs before each opening of a module, which fails with its error.
func beforeOpen(hook func(context.Context, hsm.Config) error) option {
	return func(o *operator) { o.onOpen = hook }
}

// withConfig changes the operator's way to the API server, for instance to make requests fail.
func withConfig(change func(*rest.Config)) option { return func(o *operator) { change(o.cfg) } }

// startOperator starts an operator of the test's own. When the test ends, all that its objects and its
// log say is checked.
func startOperator(t *testing.T, options ...option) *operator {
	t.Helper()
	return startOperatorOn(t, testenv.Start(t), options...)
}

// startOperatorOn starts an operator on that API server.
func startOperatorOn(t *testing.T, env *testenv.Env, options ...option) *operator {
	t.Helper()
	o := newOperator(t, env, options...)
	t.Cleanup(func() {
		o.checkStatuses(t)
		o.stop(t)
		o.checkHidden(t)
		o.checkCaches(t)
		if t.Failed() {
			t.Logf("The operator's log:\n%s", o.logged())
		}
	})
	o.start(t)
	return o
}

// newOperator is an operator that is not started, with namespaces of its own unless an option gives it others'.
func newOperator(t *testing.T, env *testenv.Env, options ...option) *operator {
	t.Helper()
	o := &operator{
		Client: env.Client, env: env,
		clock: clock.RealClock{}, hidden: map[string][]byte{},
		onOpen:    func(context.Context, hsm.Config) error { return nil },
		onModule:  func(*hsmtest.Recorder) {},
		onManager: func(*ctrl.Options) {},
		tokenOf:   commonToken,
		test:      t.Name(),
		says:      io.Discard,
	}
	o.cfg, o.requests = env.Counting()
	for _, change := range options {
		change(o)
	}
	if o.namespace == "" {
		o.namespace, o.ownNamespace = env.Namespace(t), env.Namespace(t)
	}
	return o
}

// start starts the operator, and again after stop: what it knew is forgotten, its modules are closed.
func (o *operator) start(t *testing.T) {
	t.Helper()
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	o.begun, o.done = map[string]int{}, map[string]int{}
	o.former = len(o.opened)
	logger := funcr.New(o.hear, funcr.Options{})
	managerOptions := ctrl.Options{
		Scheme: scheme,
		Logger: logger,
		Cache:  o.cacheOptions(),
		Client: controllers.ClientOptions(),
		NewClient: func(cfg *rest.Config, options client.Options) (client.Client, error) {
			c, err := client.New(cfg, options)
			return marking{c, o.mark()}, err
		},
		Metrics: metricsserver.Options{BindAddress: "0"},
		// The names of controllers are unique in a process, but for this.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	}
	o.onManager(&managerOptions)
	mgr, err := ctrl.NewManager(o.cfg, managerOptions)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = controllers.Setup(ctx, mgr, controllers.Options{
		Modules: o, OperatorNamespace: o.ownNamespace, Clock: o.clock, HealthInterval: o.health, ReconcileTimeout: o.timeout, Observe: o.observe,
		Audit: audit.New(auditOf{o}, logger),
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	o.stopped = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("The operator ended with %v", err)
		}
	}
}

// stop ends the operator, as a signal does, and waits for its end.
func (o *operator) stop(t *testing.T) {
	t.Helper()
	if o.stopped != nil {
		o.stopped()
		o.stopped = nil
	}
}

// restart stops and starts the operator, and forgets what was counted.
func (o *operator) restart(t *testing.T) {
	t.Helper()
	o.stop(t)
	o.forgetCounts()
	o.start(t)
}

// forgetCounts sets the counts of requests and module calls to zero.
func (o *operator) forgetCounts() {
	o.requests.Reset()
	for _, m := range o.modules() {
		m.Reset()
	}
}

// cacheOptions are the product's, limited to the objects with the operator's mark.
func (o *operator) cacheOptions() cache.Options {
	options := controllers.CacheOptions()
	product := options.DefaultTransform
	options.DefaultTransform = func(in any) (any, error) {
		object, isObject := in.(client.Object)
		if !isObject || object.GetAnnotations()[annotationTouched] == "" {
			return product(in)
		}
		// What is in the cache may come again, and must not be written to.
		kept := object.DeepCopyObject().(client.Object)
		if _, err := product(kept); err != nil {
			return nil, err
		}
		all := maps.Clone(kept.GetAnnotations())
		all[annotationTouched] = object.GetAnnotations()[annotationTouched]
		kept.SetAnnotations(all)
		return kept, nil
	}
	options.ByObject = maps.Clone(options.ByObject)
	for _, kind := range kinds() {
		options.ByObject[kind] = cache.ByObject{Label: labels.SelectorFromSet(o.mark())}
	}
	return options
}

// mark is the label of the objects that the operator serves.
func (o *operator) mark() map[string]string { return map[string]string{labelOperator: o.ownNamespace} }

func kinds() []client.Object {
	return []client.Object{
		&v1alpha1.KeyStore{}, &v1alpha1.ClusterKeyStore{}, &v1alpha1.ImportedKey{},
		&v1alpha1.DataKey{}, &v1alpha1.ExportedDataKey{}, &v1alpha1.ClusterExportedDataKey{},
	}
}

// marking gives the operator's mark to the objects of ours that it makes itself.
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
