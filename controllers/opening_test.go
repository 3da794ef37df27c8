package controllers_test

import (
	"context"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// gate holds up the opening of modules once it is closed, until it is opened again with how they shall end.
type gate struct {
	mu   sync.Mutex
	ends chan error
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ends = make(chan error, 1)
}

func (g *gate) pass(ctx context.Context, _ hsm.Config) error {
	g.mu.Lock()
	ends := g.ends
	g.mu.Unlock()
	if ends == nil {
		return nil
	}
	select {
	case err := <-ends:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startWithGate is an operator that has been stopped and started again with objects that are new to it, while the
// module of their store is being opened.
func startWithGate(t *testing.T) (*operator, *gate, []client.Object) {
	t.Helper()
	g := &gate{}
	o := startOperator(t, harness.BeforeOpen(g.pass))
	o.store(t, onSoftware)
	o.enabledKey(t, "key", nil)
	o.dataKey(t, "dek")
	o.Stop(t)
	g.close()
	waiting := []client.Object{importedKey("new"), newDataKey("new-dek"), newExport("new-export")}
	o.Make(t, waiting...)
	o.ForgetCounts()
	o.Start(t)
	o.Settled(t, waiting...)
	return o, g, waiting
}

func TestOperator_whileAModuleIsOpenedForTheFirstTime_writesNothing(t *testing.T) {
	t.Parallel()
	o, g, waiting := startWithGate(t)

	// The finalizer needs no module.
	wantCounts(t, "while the module is opened", o.Writes(), map[string]int{"patch importedkeys": 1})
	o.ForgetCounts()
	g.ends <- nil

	o.Condition(t, waiting[0], v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonPendingImport)
	o.Ready(t, waiting[1:]...)
	o.Settled(t, waiting...)
	if writes := o.Writes(); writes["patch exporteddatakeys/status"] != 1 || writes["patch datakeys/status"] != 1 || writes["patch importedkeys/status"] != 1 {
		t.Errorf("then the operator wrote %v, more than one status for each", writes)
	}
}

// An object that was Ready is not told that the store is ready.
func TestOperator_whileAModuleIsOpenedForTheFirstTime_forgetsNoObject(t *testing.T) {
	t.Parallel()
	g := &gate{}
	o := startOperator(t, harness.BeforeOpen(g.pass))
	o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.Stop(t)
	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "please")
	g.close()
	o.Start(t)
	o.Settled(t, key)
	g.ends <- nil

	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

func TestOperator_whenTheFirstOpeningFails_saysThatItWaits(t *testing.T) {
	t.Parallel()
	o, g, waiting := startWithGate(t)

	g.ends <- hsm.Errorf(hsm.Misconfigured, "There is no such token.")

	for _, object := range waiting {
		o.Waits(t, object, v1alpha1.ReasonKeyStoreNotReady, "is not ready")
	}
}

// A key store that does not exist is never opened: a key that expires nevertheless says so.
func TestExpiry_ofAKeyWhoseStoreIsGone_isSaidAfterARestart(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	store := o.store(t, onSoftware)
	end := clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", o.material(32), end)
	o.Remove(t, store)
	o.editor(t, o.Namespace).release(t, store)
	o.Gone(t, store)
	o.Stop(t)
	clock.SetTime(end)
	o.Start(t)

	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotFound, "does not exist")
	if key.Status.KeyState != v1alpha1.KeyState(kms.StatePendingImport) {
		t.Errorf("it says that the key is %s", key.Status.KeyState)
	}
}

// While it is being deleted, it is not opened, either.
func TestOperator_withAStoreThatIsBeingDeleted_saysThatItWaits(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	o.Change(t, store, func() { store.Finalizers = []string{"test.keyconvoy.io/held"} })
	o.Remove(t, store)
	o.Stop(t)
	key := importedKey("key")
	o.Make(t, key)
	o.Start(t)

	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	o.Change(t, store, func() { store.Finalizers = nil })
	o.Gone(t, store)
}
