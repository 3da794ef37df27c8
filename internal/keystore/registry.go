package keystore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// ModuleConfig returns what the spec of a key store says about its module. The caller adds the PIN or the storage.
func ModuleConfig(spec *v1alpha1.KeyStoreSpec) hsm.Config {
	cfg := hsm.Config{Custody: hsm.CustodyHost, AllowPKCS1v15Import: spec.AllowPKCS1V15Import}
	if spec.Custody == v1alpha1.CustodyModuleOnly {
		cfg.Custody = hsm.CustodyModule
	}
	if token := spec.PKCS11; token != nil {
		cfg.Library = token.Module
		cfg.Token = hsm.TokenSelector{Label: token.Token.Label, Serial: token.Token.Serial, Model: token.Token.Model}
		cfg.MaxSessions = int(token.MaxSessions)
	}
	return cfg
}

// Registry holds the open modules by key store.
type Registry struct {
	reader   client.Reader
	provider hsm.Provider
	clock    clock.PassiveClock
	calls    *prometheus.HistogramVec

	mu      sync.RWMutex
	modules map[ID]*module
	// tried are the key stores that have been looked at since the start, whether their modules opened or not.
	tried  map[ID]bool
	losses map[ID]*hsm.Error
	wrong  map[ID]time.Time // since when results may have been wrong, until it is reported
	// wanted are modules that returned a wrong result, until a check finds right ones: a self-test while that fault lasts must not
	// make them count as modules that support less.
	wanted      map[ID]*module
	subscribers []chan event.TypedGenericEvent[Change]
}

// module is an open module.
type module struct {
	hsm.Module
	// description is what it said when it was opened, or checked last.
	description hsm.Description
	// config is what the module was opened with; another configuration needs another module.
	config string
	users  sync.WaitGroup
	lanes  sync.Map // *Lane → *slots
	// suspect: a call failed since the last check. failing: the last check failed, or the module is lost.
	suspect, failing bool
	// lost: the module's process has ended, or a result was wrong. The module must be closed and opened again. closed: the registry
	// closes it.
	lost, closed bool
	// right is when the last check began whose results were right, or the opening.
	right time.Time
	// calls is done when the calls in progress are given up, because the module fails its check.
	calls  context.Context //nolint:containedctx // of all calls of the module
	giveUp context.CancelFunc
	// slow counts the calls in progress that may take long, and so may a check. answered counts those that the module answered.
	slow     atomic.Int32
	answered atomic.Uint64
	// withdrawn: the key store's PIN was taken away. The module only cleans up, until its keys are destroyed.
	withdrawn bool
	sweep     Sweep
}

// New returns a registry without modules. It reads key stores and namespaces from reader, which should be a cache.
func New(reader client.Reader, provider hsm.Provider, c clock.PassiveClock) *Registry {
	return &Registry{
		reader: reader, provider: provider, clock: c, calls: newModuleCalls(),
		modules: map[ID]*module{}, tried: map[ID]bool{}, losses: map[ID]*hsm.Error{}, wrong: map[ID]time.Time{}, wanted: map[ID]*module{},
	}
}

// Metrics returns the durations of the calls into modules.
func (r *Registry) Metrics() prometheus.Collector { return r.calls }

// Session is the service of a key store during one call of Use or CleanUp.
type Session struct {
	kms.Service
	// Token identifies the token of the module that serves the call (TokenName). The key store may have another one open
	// by the time that the call ends.
	Token string
}

// Use calls f with the service of the key store that a namespace refers to. The namespace must be allowed to use it,
// and it must be ready. Errors: *NotReadyError, those of Store.Allows, and those of f.
func (l *Lane) Use(ctx context.Context, namespace string, ref v1alpha1.KeyStoreReference, f func(Session) error) error {
	id := IDOf(namespace, ref)
	store, err := l.Get(ctx, id)
	if err != nil {
		return err
	}
	if err := store.Allows(ctx, l.reader, namespace); err != nil {
		return err
	}
	if !store.GetDeletionTimestamp().IsZero() {
		return &NotReadyError{ID: id, State: Deleting}
	}
	return l.with(ctx, id, func(m *module) bool { return !m.failing && !m.withdrawn }, f)
}

// CleanUp calls f with the service of a key store, to destroy what is in its module. It needs no permission and works
// while the key store is being deleted: a namespace that may no longer use a key store may take out what it put in.
// Errors: *NotReadyError, and those of f.
func (l *Lane) CleanUp(ctx context.Context, id ID, f func(Session) error) error {
	return l.with(ctx, id, cleansUp, f)
}

func cleansUp(m *module) bool { return !m.failing }

// Probe returns nil where CleanUp would call its function, if the key store is not busy.
func (r *Registry) Probe(ctx context.Context, id ID) error {
	m, _, release := r.acquire(id, cleansUp)
	if m == nil {
		return r.notReady(ctx, id)
	}
	release()
	return nil
}

// acquire returns an open module and its token, and keeps it open until release is called.
func (r *Registry) acquire(id ID, usable func(*module) bool) (m *module, token string, release func()) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if m := r.modules[id]; m != nil && usable(m) {
		m.users.Add(1)
		return m, TokenName(m.description.Info), m.users.Done
	}
	return nil, "", nil
}

// Get reads a key store from the cache. Errors: *NotReadyError for one that does not exist.
func (r *Registry) Get(ctx context.Context, id ID) (Store, error) {
	store, err := Get(ctx, r.reader, id)
	if apierrors.IsNotFound(err) {
		return Store{}, &NotReadyError{ID: id, State: Absent}
	}
	return store, err
}

func (r *Registry) notReady(ctx context.Context, id ID) error {
	store, err := r.Get(ctx, id)
	if err != nil {
		return err
	}
	if store.GetDeletionTimestamp().IsZero() && !r.Tried(id) {
		return &NotReadyError{ID: id, State: Opening}
	}
	return &NotReadyError{ID: id, State: Failing}
}

// Open opens the module of a key store and makes it available, unless accept refuses it. config identifies what it is
// opened with (Config). The former module must be closed: two on one token would need the token's sessions twice. If the
// module's process ends, the key store becomes suspect (Loss).
// Errors: those of hsm.Provider and of accept, and WrongResult for a module that supports less than before it returned a wrong
// result.
func (r *Registry) Open(ctx context.Context, id ID, config string, cfg hsm.Config, accept func(hsm.Description) error) error {
	m := &module{config: config, right: r.clock.Now()}
	m.calls, m.giveUp = context.WithCancel(context.Background())
	cfg.Lost = func(failure *hsm.Error) { r.lose(id, m, failure) }
	opened, err := r.provider.Open(ctx, cfg)
	if err != nil {
		return err
	}
	m.Module = hsm.Intercept(opened, r.measure(id, m))
	m.description, err = m.Describe(ctx)
	if err == nil {
		err = accept(m.description)
	}
	if err == nil {
		err = r.checkCapabilities(id, m)
	}
	if err != nil {
		_ = m.Close(ctx)
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.modules[id] = m
	return nil
}

// lookAgainAfter is when a module that supports less than before is opened again.
const lookAgainAfter = time.Minute

// checkCapabilities refuses a module that returned a wrong result and supports less now, unless it is configured in another way.
func (r *Registry) checkCapabilities(id ID, m *module) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	was := r.wanted[id]
	if was == nil || was.config != m.config {
		return nil
	}
	lacks := m.description.Lacks(was.description.Capabilities)
	if lacks == nil {
		return nil
	}
	err := hsm.Errorf(hsm.WrongResult, "it returned a wrong result, and lacks a capability now that it had before (%s %s with custody %s): repair it, or, if that is intended, restart the operator",
		lacks.Operation, lacks.Algorithm, lacks.Custody)
	err.After = lookAgainAfter
	return err
}

// lose records that the process of a module has ended. Its reconciler reports that, and opens the module again.
func (r *Registry) lose(id ID, m *module, failure *hsm.Error) {
	r.mu.Lock()
	if m.closed {
		r.mu.Unlock()
		return
	}
	m.lost, m.failing, m.suspect = true, true, false
	r.losses[id] = failure
	r.mu.Unlock()
	r.suspect(id)
}

// Loss returns why the process of a key store's module ended, until it is reported; nil if it did not.
func (r *Registry) Loss(id ID) *hsm.Error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.losses[id]
}

// Reported forgets a loss.
func (r *Registry) Reported(id ID, loss *hsm.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.losses[id] == loss {
		delete(r.losses, id)
	}
}

// Config returns what the open module of a key store was opened with, "" where none is open or the module is lost.
func (r *Registry) Config(id ID) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if m := r.modules[id]; m != nil && !m.lost {
		return m.config
	}
	return ""
}

// Token identifies the token that a key store has open (TokenName), "" where none is open.
func (r *Registry) Token(id ID) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if m := r.modules[id]; m != nil {
		return TokenName(m.description.Info)
	}
	return ""
}

// Check asks an open module whether it works and what it is, and reports whether it had failed the check before. After a wrong
// result, the module must be opened again. Errors: ServiceUnavailableTemporary where no module is open, and those of the
// module.
func (r *Registry) Check(ctx context.Context, id ID) (is hsm.Description, failedBefore bool, err error) {
	m, _, release := r.acquire(id, func(*module) bool { return true })
	if m == nil {
		return is, false, &kms.Error{Code: kms.ServiceUnavailableTemporary}
	}
	defer release()
	if m.slow.Load() == 0 { // otherwise the check may have to wait for a session
		bounded, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		ctx = bounded
	}
	answered, begun := m.answered.Load(), r.clock.Now()
	err = m.Check(ctx)
	passed := err == nil
	if errors.Is(err, context.DeadlineExceeded) && m.answered.Load() != answered {
		err = nil // a module that answers others is busy, and works
	}
	if err == nil {
		is, err = m.Describe(context.WithoutCancel(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	failedBefore = m.failing
	if passed {
		m.right = begun
		delete(r.wanted, id)
	}
	if hsm.KindOf(err) == hsm.WrongResult {
		m.lost = true
		r.wanted[id] = m
		if r.wrong[id].IsZero() {
			r.wrong[id] = m.right
		}
	}
	m.suspect, m.failing = false, err != nil || m.lost
	if err == nil {
		m.description = is
		return is, failedBefore, nil
	}
	// The calls in progress would hold their callers' workers until the module answers them.
	m.giveUp()
	m.calls, m.giveUp = context.WithCancel(context.Background())
	return is, failedBefore, err
}

// checkTime bounds a check. A module that takes longer is not ready.
const checkTime = 10 * time.Second

// Right returns when the last check of the open module began whose results were right, or when its opening began.
func (r *Registry) Right(id ID) time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if m := r.modules[id]; m != nil {
		return m.right
	}
	return time.Time{}
}

// WrongSince returns since when the results of a key store's module may have been wrong, until that is reported; zero if a check
// found none.
func (r *Registry) WrongSince(id ID) time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.wrong[id]
}

// WrongReported forgets since when results may have been wrong.
func (r *Registry) WrongReported(id ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.wrong, id)
}

// Withdraw leaves a key store's module open for CleanUp only.
func (r *Registry) Withdraw(id ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.modules[id]; m != nil {
		m.withdrawn = true
	}
}

// Close closes a key store's module once no call uses it any more. It does not wait: a call that hangs in a library must
// not hold up the reconciler.
func (r *Registry) Close(id ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.modules[id]; m != nil {
		delete(r.modules, id)
		m.closed = true
		go m.close()
	}
}

// CloseAll closes every module and waits until all are closed, or the context ends. One that hangs does not keep the
// others open.
func (r *Registry) CloseAll(ctx context.Context) {
	r.mu.Lock()
	var closing sync.WaitGroup
	for _, m := range r.modules {
		closing.Go(m.close)
	}
	clear(r.modules)
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		closing.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (m *module) close() {
	m.users.Wait()
	m.giveUp()
	_ = m.Close(context.Background()) // no caller is left who could do anything about it
}

// Sweep is what the last look through an open module found.
type Sweep struct {
	At      time.Time // zero: there was none yet
	Unheld  []hsm.Key // without a holder then
	Missing int       // how many keys were held, and not in the module
}

// LastSweep returns the last sweep of the open module.
func (r *Registry) LastSweep(id ID) Sweep {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if m := r.modules[id]; m != nil {
		return m.sweep
	}
	return Sweep{}
}

// SetSweep records a sweep of the open module.
func (r *Registry) SetSweep(id ID, sweep Sweep) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.modules[id]; m != nil {
		m.sweep = sweep
	}
}
