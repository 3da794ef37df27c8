package controllers

import (
	"context"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// The kinds of key store.
const (
	kindKeyStore        = "KeyStore"
	kindClusterKeyStore = "ClusterKeyStore"
)

// storeID names a key store of either kind. Namespace is empty for a ClusterKeyStore.
type storeID struct{ kind, namespace, name string }

// idOf says which key store a reference from that namespace means.
func idOf(namespace string, ref v1alpha1.KeyStoreReference) storeID {
	if ref.Kind == kindClusterKeyStore {
		namespace = ""
	}
	return storeID{kind: ref.Kind, namespace: namespace, name: string(ref.Name)}
}

// ModuleRequest is what is needed to open the module of a key store.
type ModuleRequest struct {
	Spec v1alpha1.KeyStoreSpec
	// PIN is wiped after the call: whoever keeps it makes a copy.
	PIN redact.Bytes
	// Storage is where a software store keeps its sealed keys.
	Storage *secrets.Storage
	// unavailable is told when a call finds that the module does not answer.
	unavailable func()
}

// OpenModule opens the module of a key store. Its errors are *hsm.Error.
type OpenModule func(context.Context, ModuleRequest) (hsm.Module, error)

// modules are the open modules by key store. Only the key stores' reconcilers open and close them;
// everybody else borrows.
type modules struct {
	mu   sync.RWMutex
	open map[storeID]*openModule
	// tried are the key stores that have been looked at since the operator's start, whether their modules
	// opened or not.
	tried       map[storeID]bool
	subscribers []chan event.GenericEvent
	suspects    []chan event.GenericEvent
}

type openModule struct {
	module hsm.Module
	// config is what the module was opened with; another needs another module.
	config string
	users  sync.WaitGroup
	// suspected is that a call found it unavailable since it was checked, failing that the check did, too.
	suspected, failing bool
}

func newModules() *modules {
	return &modules{open: map[storeID]*openModule{}, tried: map[storeID]bool{}}
}

// serving returns an open module and what gives it back, unless it failed when it was last checked: who works
// with keys need not find out one by one.
func (m *modules) serving(id storeID) (module hsm.Module, giveBack func(), ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if o, ok := m.open[id]; ok && !o.failing {
		o.users.Add(1)
		return o.module, o.users.Done, true
	}
	return nil, nil, false
}

// borrow returns an open module and what gives it back, also one that fails: to check it.
func (m *modules) borrow(id storeID) (module hsm.Module, giveBack func(), ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.open[id]
	if !ok {
		return nil, nil, false
	}
	o.users.Add(1)
	return o.module, o.users.Done, true
}

// try notes that a key store has been looked at, and says whether that was the first time since the operator's
// start.
func (m *modules) try(id storeID) (first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first = !m.tried[id]
	m.tried[id] = true
	return first
}

func (m *modules) wasTried(id storeID) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.tried[id]
}

// config returns what the open module of a key store was opened with, or "".
func (m *modules) config(id storeID) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if o, ok := m.open[id]; ok {
		return o.config
	}
	return ""
}

func (m *modules) put(id storeID, module hsm.Module, config string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open[id] = &openModule{module: module, config: config}
}

// suspect has a key store's module checked soon, because a call found it unavailable.
func (m *modules) suspect(id storeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o := m.open[id]; o == nil || o.suspected {
		return
	}
	m.open[id].suspected = true
	for _, c := range m.suspects {
		select {
		case c <- event.GenericEvent{Object: id.object()}:
		default: // so many are suspected that this one can wait for its health check
		}
	}
}

// checked notes how the check of a key store's module ended, and says whether the one before had failed.
func (m *modules) checked(id storeID, err error) (failedBefore bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.open[id]
	if o == nil {
		return false
	}
	failedBefore = o.failing
	o.suspected, o.failing = false, err != nil
	return failedBefore
}

// drop closes a key store's module, once nobody uses it any more. It does not wait: a call that hangs in
// a library must not hold up the reconciler.
func (m *modules) drop(id storeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.open[id]
	if !ok {
		return
	}
	delete(m.open, id)
	go o.close()
}

func (o *openModule) close() {
	o.users.Wait()
	_ = o.module.Close() // nobody is left who could do anything about it
}

// closeAll closes every module and waits until it is done, or the context ends. One that hangs does not keep
// the others open.
func (m *modules) closeAll(ctx context.Context) {
	m.mu.Lock()
	var closing sync.WaitGroup
	for _, o := range m.open {
		closing.Go(o.close)
	}
	clear(m.open)
	m.mu.Unlock()
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

// subscribe returns a channel that hears of every key store that begins to serve, and of one that turns out not to
// when the operator starts.
func (m *modules) subscribe() <-chan event.GenericEvent {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan event.GenericEvent, 16)
	m.subscribers = append(m.subscribers, c)
	return c
}

// suspected returns a channel that hears of every key store whose module a call found unavailable.
func (m *modules) suspected() <-chan event.GenericEvent {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan event.GenericEvent, 16)
	m.suspects = append(m.suspects, c)
	return c
}

// announce tells the subscribers of a key store.
func (m *modules) announce(ctx context.Context, store client.Object) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, c := range m.subscribers {
		select {
		case c <- event.GenericEvent{Object: store}:
		case <-ctx.Done():
			return
		}
	}
}

// storeObject is a key store of either kind.
type storeObject struct {
	client.Object
	id      storeID
	spec    *v1alpha1.KeyStoreSpec
	allowed *metav1.LabelSelector
	status  *v1alpha1.KeyStoreStatus
}

// getStore reads a key store of either kind from the cache.
func getStore(ctx context.Context, reader client.Reader, id storeID) (storeObject, error) {
	key := client.ObjectKey{Namespace: id.namespace, Name: id.name}
	if id.kind == kindClusterKeyStore {
		o := &v1alpha1.ClusterKeyStore{}
		err := reader.Get(ctx, key, o)
		return storeObject{o, id, &o.Spec.KeyStoreSpec, o.Spec.AllowedNamespaces, &o.Status}, err
	}
	o := &v1alpha1.KeyStore{}
	err := reader.Get(ctx, key, o)
	return storeObject{o, id, &o.Spec, nil, &o.Status}, err
}

// object is the key store with nothing but its name.
func (id storeID) object() client.Object {
	meta := metav1.ObjectMeta{Namespace: id.namespace, Name: id.name}
	if id.kind == kindClusterKeyStore {
		return &v1alpha1.ClusterKeyStore{ObjectMeta: meta}
	}
	return &v1alpha1.KeyStore{ObjectMeta: meta}
}

// idOfObject says which key store an object is.
func idOfObject(o client.Object) storeID {
	if _, ok := o.(*v1alpha1.ClusterKeyStore); ok {
		return storeID{kind: kindClusterKeyStore, name: o.GetName()}
	}
	return storeID{kind: kindKeyStore, namespace: o.GetNamespace(), name: o.GetName()}
}
