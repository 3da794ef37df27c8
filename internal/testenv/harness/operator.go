// Package harness runs the operator as the product does, for one test: on the API server of package testenv, with the
// modules that the test names. It has one file per layer: the operator and its options (operator.go), its cache
// (cache.go), its modules (modules.go), the objects that it serves (objects.go), the count of its reconciles
// (reconciles.go), and what holds at the end of each test (checks.go). Only tests import it.
package harness

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keyconvoy/keyconvoy/controllers"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// Operator is a manager as the product runs it, for one test.
type Operator struct {
	client.Client // the administrator's, without a cache

	Env *testenv.Env
	// Namespace is the test's, OwnNamespace the operator's.
	Namespace, OwnNamespace string
	// Requests counts the operator's requests to the API server.
	Requests *testenv.Counter
	Config   *rest.Config
	Clock    clock.PassiveClock
	// Libraries opens modules.
	Libraries hsm.Provider
	// Log and Audit are what the operator has logged.
	Log, Audit Buffer

	health    time.Duration
	timeout   time.Duration
	metrics   prometheus.Registerer
	onOpen    func(context.Context, hsm.Config) error
	onModule  func(*hsmtest.Recorder)
	onManager func(*ctrl.Options)
	test      string    // the name of the test
	logTo     io.Writer // gets the log, too
	stopped   func()    // nil while it does not run
	former    int       // how many modules were opened before its start

	mu          sync.Mutex
	opened      []*hsmtest.Recorder
	hidden      map[string][]byte
	begun, done map[string]int // reconciles since the start, by kind, namespace and name
}

// Option changes an operator before its start.
type Option func(*Operator)

// WithLibraries gives the operator what opens its modules.
func WithLibraries(p hsm.Provider) Option { return func(o *Operator) { o.Libraries = p } }

// WithClock gives the operator another clock than the wall's. A new time wakes no reconciler: see Touch.
func WithClock(c clock.PassiveClock) Option { return func(o *Operator) { o.Clock = c } }

// WithHealth sets the interval of the modules' health checks.
func WithHealth(every time.Duration) Option { return func(o *Operator) { o.health = every } }

// WithTimeout bounds each reconcile, of which the phases get three quarters.
func WithTimeout(after time.Duration) Option { return func(o *Operator) { o.timeout = after } }

// WithMetrics registers the operator's metrics. Such an operator can be started once.
func WithMetrics(r prometheus.Registerer) Option { return func(o *Operator) { o.metrics = r } }

// WithModules prepares each module when it is opened, before it is used.
func WithModules(prepare func(*hsmtest.Recorder)) Option {
	return func(o *Operator) { o.onModule = prepare }
}

// BeforeOpen runs before each opening of a module, which fails with its error.
func BeforeOpen(hook func(context.Context, hsm.Config) error) Option {
	return func(o *Operator) { o.onOpen = hook }
}

// WithConfig changes how the operator reaches the API server, for instance to make requests fail.
func WithConfig(change func(*rest.Config)) Option { return func(o *Operator) { change(o.Config) } }

// WithManager changes the manager's options.
func WithManager(change func(*Operator, *ctrl.Options)) Option {
	return func(o *Operator) { o.onManager = func(options *ctrl.Options) { change(o, options) } }
}

// WithNamespaces gives the operator namespaces that exist.
func WithNamespaces(namespace, ownNamespace string) Option {
	return func(o *Operator) { o.Namespace, o.OwnNamespace = namespace, ownNamespace }
}

// WithLogTo writes the operator's log to w, too.
func WithLogTo(w io.Writer) Option { return func(o *Operator) { o.logTo = w } }

// Run starts an operator. When the test ends, everything that its objects and its log say is checked.
func Run(t *testing.T, env *testenv.Env, options ...Option) *Operator {
	t.Helper()
	o := New(t, env, options...)
	t.Cleanup(func() {
		o.checkStatuses(t)
		o.Stop(t)
		o.CheckHidden(t)
		o.checkCaches(t)
		if t.Failed() {
			t.Logf("The operator's log:\n%s", o.Log.String())
		}
	})
	o.Start(t)
	return o
}

// New returns an operator that is not started. It has namespaces of its own, unless an option gives it others.
func New(t *testing.T, env *testenv.Env, options ...Option) *Operator {
	t.Helper()
	o := &Operator{
		Client: env.Client, Env: env,
		Clock: clock.RealClock{}, hidden: map[string][]byte{},
		Libraries: inprocess.Provider(func(name string) (inprocess.Library, error) {
			return inprocess.Library{}, hsm.Errorf(hsm.Misconfigured, "PKCS#11 module %q is not allowed.", name)
		}),
		onOpen:    func(context.Context, hsm.Config) error { return nil },
		onModule:  func(*hsmtest.Recorder) {},
		onManager: func(*ctrl.Options) {},
		test:      t.Name(),
		logTo:     io.Discard,
	}
	o.Config, o.Requests = env.Counting()
	for _, change := range options {
		change(o)
	}
	if o.Namespace == "" {
		o.Namespace, o.OwnNamespace = env.Namespace(t), env.Namespace(t)
	}
	return o
}

// Start starts the operator, and again after Stop: the new one knows nothing of the former, whose modules are closed.
func (o *Operator) Start(t *testing.T) {
	t.Helper()
	scheme, err := controllers.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	o.begun, o.done = map[string]int{}, map[string]int{}
	o.former = len(o.opened)
	logger := funcr.New(o.log, funcr.Options{})
	managerOptions := ctrl.Options{
		Scheme:    scheme,
		Logger:    logger,
		Cache:     o.cacheOptions(),
		Client:    controllers.ClientOptions(),
		NewClient: o.newClient,
		Metrics:   metricsserver.Options{BindAddress: "0"},
		// The names of controllers are unique in a process, except for this option.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	}
	o.onManager(&managerOptions)
	mgr, err := ctrl.NewManager(o.Config, managerOptions)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	options := controllers.Options{
		Modules: o, OperatorNamespace: o.OwnNamespace, Clock: o.Clock, HealthInterval: o.health, ReconcileTimeout: o.timeout,
		Observe: o.observe, Audit: audit.New(&o.Audit, logger), Metrics: o.metrics,
	}
	if o.metrics != nil {
		options.Caches = controllers.NewCaches()
	}
	if err := controllers.Setup(ctx, mgr, options); err != nil {
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

// Stop stops the operator, as a signal does, and waits for its end.
func (o *Operator) Stop(t *testing.T) {
	t.Helper()
	if o.stopped != nil {
		o.stopped()
		o.stopped = nil
	}
}

// Restart stops and starts the operator, and sets the counts to zero.
func (o *Operator) Restart(t *testing.T) {
	t.Helper()
	o.Stop(t)
	o.ForgetCounts()
	o.Start(t)
}

// ForgetCounts sets the counts of requests and module calls to zero.
func (o *Operator) ForgetCounts() {
	o.Requests.Reset()
	for _, m := range o.Modules() {
		m.Reset()
	}
}

func (o *Operator) log(prefix, line string) {
	text := []byte(prefix + " " + line + "\n")
	_, _ = o.Log.Write(text)
	_, _ = o.logTo.Write(text)
}

// Buffer is a bytes.Buffer that is safe for concurrent use.
type Buffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

// String returns what was written since the last Reset.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// Reset forgets what was written.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all.Reset()
}
