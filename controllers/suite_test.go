package controllers_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
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
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
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
	onOpen   func(context.Context, controllers.ModuleRequest) error
	onModule func(*hsmtest.Recorder)
	// onManager changes the manager's options.
	onManager func(*ctrl.Options)
	// tokenOf is a token of a PKCS#11 library, of which only the library counts.
	tokenOf func(library string) tokens.Token
	says    io.Writer // gets the log, too
	stopped func()    // nil while it does not run
	former  int       // how many modules were opened before its start

	mu          sync.Mutex
	opened      []opened
	hidden      map[string][]byte
	log         bytes.Buffer
	begun, done map[string]int // reconciles since the start, by kind, namespace and name
}

// opened is a module that the operator opened.
type opened struct {
	spec     v1alpha1.KeyStoreSpec
	recorder *hsmtest.Recorder
}

type option func(*operator)

// withClock gives the operator another clock than the wall's. Moving it wakes nobody: see touch.
func withClock(c clock.PassiveClock) option { return func(o *operator) { o.clock = c } }

// withHealth has the modules asked so often whether they work.
func withHealth(every time.Duration) option { return func(o *operator) { o.health = every } }

// withModules has each module prepared when it is opened, before it is used.
func withModules(prepare func(*hsmtest.Recorder)) option {
	return func(o *operator) { o.onModule = prepare }
}

// beforeOpen runs before each opening of a module, which fails with its error.
func beforeOpen(hook func(context.Context, controllers.ModuleRequest) error) option {
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
		onOpen:    func(context.Context, controllers.ModuleRequest) error { return nil },
		onModule:  func(*hsmtest.Recorder) {},
		onManager: func(*ctrl.Options) {},
		tokenOf:   commonToken,
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
	logger := funcr.New(o.hear, funcr.Options{Verbosity: reconcileVerbosity})
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
		OpenModule: o.open, OperatorNamespace: o.ownNamespace, Clock: o.clock, HealthInterval: o.health,
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

// reconcileVerbosity is that at which controller-runtime logs the beginning and end of each reconcile.
const reconcileVerbosity = 5

// reconcileLine matches those lines: the message and whose reconcile it is. One that ended in an error has
// the error in between.
var reconcileLine = regexp.MustCompile(`"msg"="(Reconcil[^"]*)".* "controllerKind"="(\w+)".* "namespace"="([^"]*)" "name"="([^"]+)"`)

// hear keeps the log, and counts reconciles by it.
func (o *operator) hear(prefix, line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := reconcileLine.FindStringSubmatch(line); m != nil {
		of := m[2] + "/" + m[3] + "/" + m[4]
		if m[1] == "Reconciling" {
			o.begun[of]++
		} else {
			o.done[of]++
		}
	}
	if !strings.HasPrefix(line, `"level"=`) || strings.HasPrefix(line, `"level"=0`) {
		fmt.Fprintln(io.MultiWriter(&o.log, o.says), prefix, line)
	}
}

// reconciles are how many reconciles of an object began since the operator's start, and how many of them
// are over.
func (o *operator) reconciles(t testing.TB, object client.Object) (begun, done int) {
	t.Helper()
	of := o.reconcileOf(t, object)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.begun[of], o.done[of]
}

// reconcileOf is by what an object's reconciles are counted.
func (o *operator) reconcileOf(t testing.TB, object client.Object) string {
	t.Helper()
	kind, err := o.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	return kind.Kind + "/" + object.GetNamespace() + "/" + object.GetName()
}

// settled waits until each object has been reconciled since the operator's start and no more is.
func (o *operator) settled(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		o.reconciledSince(t, object, 0)
	}
}

// again does something that has an object reconciled, and waits until that is over.
func (o *operator) again(t testing.TB, object client.Object, cause func()) {
	t.Helper()
	begun, _ := o.reconciles(t, object)
	cause()
	o.reconciledSince(t, object, begun)
}

func (o *operator) reconciledSince(t testing.TB, object client.Object, before int) {
	t.Helper()
	eventually(t, func() string {
		if begun, done := o.reconciles(t, object); begun == before || done != begun {
			return fmt.Sprintf("%T %s: %d reconciles began before, %d now, %d are over", object, object.GetName(), before, begun, done)
		}
		return ""
	})
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
		m.recorder.Reset()
	}
}

// cacheOptions are the product's, limited to the objects with the operator's mark.
func (o *operator) cacheOptions() cache.Options {
	options := controllers.CacheOptions()
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

// open opens modules as the command line does, and records what is asked of them.
func (o *operator) open(ctx context.Context, req controllers.ModuleRequest) (hsm.Module, error) {
	if err := o.onOpen(ctx, req); err != nil {
		return nil, err
	}
	module, err := o.openBare(ctx, req)
	if err != nil {
		return nil, err
	}
	r := hsmtest.Wrap(module)
	o.onModule(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opened = append(o.opened, opened{req.Spec, r})
	return r, nil
}

func (o *operator) openBare(ctx context.Context, req controllers.ModuleRequest) (hsm.Module, error) {
	spec := req.Spec.PKCS11
	if spec == nil {
		return software.Open(ctx, software.Config{Storage: req.Storage, AllowPKCS1v15Import: req.Spec.AllowPKCS1V15Import})
	}
	if spec.Module != onSoftHSM && spec.Module != onNSS {
		return nil, hsm.Errorf(hsm.Misconfigured, "The operator knows no PKCS#11 module %q.", spec.Module)
	}
	token := o.tokenOf(spec.Module)
	custody := hsm.CustodyHost
	if req.Spec.Custody == v1alpha1.CustodyModuleOnly {
		custody = hsm.CustodyModule
	}
	return pkcs11.Open(ctx, pkcs11.Config{
		Library: spec.Module, Path: token.Path, Parameters: token.Parameters,
		Token:       pkcs11.TokenSelector{Label: spec.Token.Label, Serial: spec.Token.Serial, Model: spec.Token.Model},
		PIN:         req.PIN,
		MaxSessions: int(spec.MaxSessions),
		Custody:     custody, AllowPKCS1v15Import: req.Spec.AllowPKCS1V15Import,
	})
}

// modules are all that the operator ever opened, in order, closed ones too.
func (o *operator) modules() []opened {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.opened)
}

// module is the one that was opened last. After a start it waits until one is opened: those before are
// closed.
func (o *operator) module(t testing.TB) *hsmtest.Recorder {
	t.Helper()
	var all []opened
	eventually(t, func() string {
		if all = o.modules(); len(all) <= o.former {
			return "the operator has opened no module"
		}
		return ""
	})
	return all[len(all)-1].recorder
}

// calls are the calls to all modules, without those that only ask how a module is.
func (o *operator) calls() map[string]int {
	sum := map[string]int{}
	for _, m := range o.modules() {
		for method, n := range m.recorder.Calls() {
			if method != "Check" && method != "Close" {
				sum[method] += n
			}
		}
	}
	return sum
}

// writes are what the operator wrote, by verb and resource.
func (o *operator) writes() map[string]int { return o.requests.All().Writes }

// create makes objects, in the test's namespace unless they say another, with the operator's mark.
func (o *operator) create(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if object.GetNamespace() == "" {
			object.SetNamespace(o.namespace)
		}
		switch object.(type) {
		case *v1alpha1.ClusterKeyStore, *v1alpha1.ClusterExportedDataKey:
			object.SetNamespace("")
		}
		all := maps.Clone(object.GetLabels())
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, o.mark())
		object.SetLabels(all)
		if err := o.Create(t.Context(), object); err != nil {
			t.Fatalf("Making a %T: %v", object, err)
		}
	}
}

// change reads an object, changes it and writes what changed.
func (o *operator) change(t testing.TB, object client.Object, change func()) {
	t.Helper()
	o.read(t, object)
	before := object.DeepCopyObject().(client.Object)
	change()
	if err := o.Patch(t.Context(), object, client.MergeFrom(before)); err != nil {
		t.Fatalf("Changing a %T: %v", object, err)
	}
}

// annotate sets an annotation.
func (o *operator) annotate(t testing.TB, object client.Object, name, value string) {
	t.Helper()
	o.change(t, object, func() {
		all := maps.Clone(object.GetAnnotations())
		if all == nil {
			all = map[string]string{}
		}
		all[name] = value
		object.SetAnnotations(all)
	})
}

// touch has an object reconciled that is woken by its annotations, and waits until that is over.
func (o *operator) touch(t testing.TB, object client.Object) {
	t.Helper()
	o.again(t, object, func() { o.annotate(t, object, "test.keyconvoy.io/touched", object.GetResourceVersion()) })
}

// remove asks for the deletion of an object.
func (o *operator) remove(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Delete(t.Context(), object); client.IgnoreNotFound(err) != nil {
		t.Fatalf("Deleting a %T: %v", object, err)
	}
}

// removeUnseen deletes objects while the operator does not run. It watches each kind for itself, so it may hear of
// a Secret's end before that of the Secret's owner, and make the Secret again.
func (o *operator) removeUnseen(t *testing.T, objects ...client.Object) {
	t.Helper()
	o.stop(t)
	for _, object := range objects {
		o.remove(t, object)
	}
	o.start(t)
}

func (o *operator) read(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		t.Fatalf("Reading a %T: %v", object, err)
	}
}

// until reads an object until it is as wanted; problem says why it is not yet, or nothing.
func (o *operator) until(t testing.TB, object client.Object, problem func() string) {
	t.Helper()
	eventually(t, func() string {
		o.read(t, object)
		return problem()
	})
}

// eventually waits until there is no problem any more.
func eventually(t testing.TB, problem func() string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		last := problem()
		if last == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("Still not after %s: %s", patience, last)
		case <-tick.C:
		}
	}
}

// ready waits until an object is Ready as it is now.
func (o *operator) ready(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		o.condition(t, object, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonSucceeded)
	}
}

// waits waits until an object says that it waits for something else, and returns its words.
func (o *operator) waits(t testing.TB, object client.Object, reason string, says ...string) string {
	t.Helper()
	message := o.condition(t, object, v1alpha1.ConditionReconciling, metav1.ConditionTrue, reason)
	wantWords(t, message, says)
	return message
}

// stalls waits until an object says that somebody must change something, and returns its words.
func (o *operator) stalls(t testing.TB, object client.Object, reason string, says ...string) string {
	t.Helper()
	message := o.condition(t, object, v1alpha1.ConditionStalled, metav1.ConditionTrue, reason)
	wantWords(t, message, says)
	return message
}

// condition waits until a condition speaks of the object as it is now, with that status and reason.
func (o *operator) condition(t testing.TB, object client.Object, conditionType string, status metav1.ConditionStatus, reason string) (message string) {
	t.Helper()
	o.until(t, object, func() string {
		conditions, observed := statusOf(object)
		c := meta.FindStatusCondition(conditions, conditionType)
		if observed == object.GetGeneration() && c != nil && c.Status == status && c.Reason == reason {
			message = c.Message
			return ""
		}
		return fmt.Sprintf("%T %s: want %s=%s %s; generation %d, observed %d: %s",
			object, object.GetName(), conditionType, status, reason, object.GetGeneration(), observed, toJSON(conditions))
	})
	return message
}

// gone waits until an object does not exist any more.
func (o *operator) gone(t testing.TB, object client.Object) {
	t.Helper()
	eventually(t, func() string {
		err := o.Get(t.Context(), client.ObjectKeyFromObject(object), object)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		if err == nil {
			return fmt.Sprintf("%T %s is still there", object, object.GetName())
		}
		return ""
	})
}

func wantWords(t testing.TB, message string, words []string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("%q does not say %q", message, w)
		}
	}
}

// events are the reasons and notes of an object's events, as "Reason: note".
func (o *operator) events(t testing.TB, object client.Object) []string {
	t.Helper()
	var list eventsv1.EventList
	if err := o.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range list.Items {
		if e.Regarding.UID == object.GetUID() {
			found = append(found, e.Reason+": "+e.Note)
		}
	}
	return found
}

// event waits for an object's event with that reason, and returns its note.
func (o *operator) event(t testing.TB, object client.Object, reason string) (note string) {
	t.Helper()
	eventually(t, func() string {
		all := o.events(t, object)
		for _, e := range all {
			if r, n, _ := strings.Cut(e, ": "); r == reason {
				note = n
				return ""
			}
		}
		return fmt.Sprintf("%T %s has no event %s, only %q", object, object.GetName(), reason, all)
	})
	return note
}

// hide names bytes that no status, event or log line may show, in any usual encoding.
func (o *operator) hide(name string, secret []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hidden[name] = bytes.Clone(secret)
}

func (o *operator) logged() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.String()
}

// objects are all that the operator serves.
func (o *operator) objects(t testing.TB) []client.Object {
	t.Helper()
	var all []client.Object
	for _, list := range []client.ObjectList{
		&v1alpha1.KeyStoreList{}, &v1alpha1.ClusterKeyStoreList{}, &v1alpha1.ImportedKeyList{},
		&v1alpha1.DataKeyList{}, &v1alpha1.ExportedDataKeyList{}, &v1alpha1.ClusterExportedDataKeyList{},
	} {
		// The test's own context has ended when its cleanup runs.
		if err := o.List(context.Background(), list, client.MatchingLabels(o.mark())); err != nil {
			t.Fatal(err)
		}
		if err := meta.EachListItem(list, func(item runtime.Object) error {
			all = append(all, item.(client.Object))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// checkStatuses checks the rules of every status, once the operator has seen each object.
func (o *operator) checkStatuses(t *testing.T) {
	t.Helper()
	if o.stopped == nil || t.Failed() {
		return
	}
	eventually(t, func() string {
		for _, object := range o.objects(t) {
			if problem := statusProblem(object); problem != "" {
				return fmt.Sprintf("%T %s: %s: %s", object, object.GetName(), problem, statusJSON(object))
			}
		}
		return ""
	})
}

// statusProblem says which rule a status breaks, or nothing.
func statusProblem(object client.Object) string {
	conditions, observed := statusOf(object)
	if observed != object.GetGeneration() {
		return "observedGeneration is not current"
	}
	for _, c := range conditions {
		switch {
		case c.ObservedGeneration != object.GetGeneration():
			return c.Type + " speaks of another generation"
		case c.Type != v1alpha1.ConditionReady && c.Status != metav1.ConditionTrue:
			return c.Type + " is there although it is not True"
		case c.Message == "" || len([]rune(c.Message)) > 1024 || !strings.HasSuffix(c.Message, "."):
			return c.Type + " does not speak in a sentence of bearable length"
		}
	}
	isReady := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	reconciling := meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReconciling)
	stalled := meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionStalled)
	switch {
	case isReady == nil:
		return "there is no Ready"
	case reconciling && stalled:
		return "Reconciling and Stalled at once"
	}
	// As kstatus reads it: Stalled is Failed, Reconciling is InProgress, neither is Current.
	if kstatus := !reconciling && !stalled; kstatus != (isReady.Status == metav1.ConditionTrue) {
		return "kstatus reads it otherwise than Ready says"
	}
	return ""
}

// checkHidden looks for secrets in all that the operator said.
func (o *operator) checkHidden(t *testing.T) {
	t.Helper()
	said := map[string]string{"the log": o.logged()}
	uids := map[string]bool{}
	for _, object := range o.objects(t) {
		uids[string(object.GetUID())] = true
		said[fmt.Sprintf("the status of %T %s", object, object.GetName())] = statusJSON(object)
	}
	var list eventsv1.EventList
	if err := o.List(context.Background(), &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if uids[string(e.Regarding.UID)] {
			said["the event "+e.Reason] = e.Note
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, secret := range o.hidden {
		for where, text := range said {
			for _, shape := range []string{
				string(secret), strings.TrimRight(base64.StdEncoding.EncodeToString(secret), "="), hex.EncodeToString(secret),
				strings.Trim(toJSON(string(secret)), `"`),
			} {
				if strings.Contains(text, shape) {
					t.Errorf("%s shows the %s", where, name)
				}
			}
		}
	}
}

// checkCaches checks that Secrets and ConfigMaps were never watched whole.
func (o *operator) checkCaches(t *testing.T) {
	t.Helper()
	for _, r := range o.requests.Requests() {
		if r.Verb == "watch" && (r.Resource == "secrets" || r.Resource == "configmaps") && !r.Metadata {
			t.Errorf("The operator watches whole %s", r.Resource)
		}
	}
}

// statusOf is what all kinds have in their status.
func statusOf(object client.Object) (conditions []metav1.Condition, observedGeneration int64) {
	switch o := object.(type) {
	case *v1alpha1.KeyStore:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ClusterKeyStore:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ImportedKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.DataKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ExportedDataKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ClusterExportedDataKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	}
	panic(fmt.Sprintf("%T has no status of ours", object))
}

func statusJSON(object client.Object) string {
	var whole struct{ Status json.RawMessage }
	if err := json.Unmarshal([]byte(toJSON(object)), &whole); err != nil {
		panic(err)
	}
	return string(whole.Status)
}

func toJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
