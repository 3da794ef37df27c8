package controllers_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
)

// wrongPIN is nobody's.
const wrongPIN = "wrong-87654321"

// countOpenings counts how often a module is opened: for a token, how often its PIN can have been tried.
func countOpenings(n *atomic.Int32) option {
	return beforeOpen(func(context.Context, hsm.Config) error {
		n.Add(1)
		return nil
	})
}

func TestKeyStore_wrongPIN_isTriedOnce(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	token := ownToken(t)
	o.givePIN(t, o.namespace, wrongPIN)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: tokenSpec(onSoftHSM, token.Label)}
	o.create(t, store)
	said := o.stalls(t, store, v1alpha1.ReasonPINRefused, "Secret")
	o.event(t, store, v1alpha1.ReasonPINRefused)

	o.restart(t)
	o.settled(t, store)
	if again := o.stalls(t, store, v1alpha1.ReasonPINRefused); again != said {
		t.Errorf("after a restart it says %q, before %q", again, said)
	}
	if w := o.writes(); len(w) != 0 { // a try would have been recorded
		t.Errorf("the restart wrote: %v", w)
	}

	o.givePIN(t, o.namespace, token.PIN)
	o.ready(t, store)
}

// Who may use a key store has nothing to do with its module, which all would miss while it is opened again.
func TestClusterKeyStore_allowedNamespacesChanged_leavesTheModuleOpen(t *testing.T) {
	t.Parallel()
	var openings atomic.Int32
	o := startOperator(t, countOpenings(&openings))
	store := o.clusterStore(t, onSoftHSM)
	for _, allowed := range []*v1alpha1.LabelSelector{selector("team", "a"), selector("team", "b"), nil} {
		o.again(t, store, func() { o.change(t, store, func() { store.Spec.AllowedNamespaces = allowed }) })
		o.ready(t, store)
	}
	if n := openings.Load(); n != 1 {
		t.Errorf("the module was opened %d times", n)
	}
	o.change(t, store, func() { store.Spec.Custody = v1alpha1.CustodyModuleOnly })
	o.ready(t, store)
	if n := openings.Load(); n != 2 {
		t.Errorf("the module was opened %d times, want once more for another custody", n)
	}
}

func TestClusterKeyStore_allowedNamespacesChanged_isNoReasonToTryARefusedPIN(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.givePIN(t, o.ownNamespace, wrongPIN)
	store := &v1alpha1.ClusterKeyStore{
		ObjectMeta: named(o.ownNamespace),
		Spec:       v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: tokenSpec(onSoftHSM, ownToken(t).Label)},
	}
	o.create(t, store)
	said := o.stalls(t, store, v1alpha1.ReasonPINRefused)
	o.forgetCounts()
	o.again(t, store, func() { o.change(t, store, func() { store.Spec.AllowedNamespaces = selector("team", "a") }) })
	if again := o.stalls(t, store, v1alpha1.ReasonPINRefused); again != said {
		t.Errorf("it says %q, before %q", again, said)
	}
	if w := o.writes(); w["patch secrets"] != 0 {
		t.Errorf("a try was recorded: %v", w)
	}
}

func TestKeyStore_PINMissing_waitsAndWakes(t *testing.T) {
	t.Parallel()
	for name, there := range map[string]map[string][]byte{
		"no Secret":                  nil,
		"a Secret without the entry": {"other": []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := startOperator(t)
			if there != nil {
				secret := pinSecret(o.namespace, "")
				secret.Data = there
				o.create(t, secret)
			}
			store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftHSM)}
			o.create(t, store)
			o.waits(t, store, v1alpha1.ReasonSourceNotFound, o.namespace+"/"+pinName, pinEntry)
			// Secrets made from a file end in a newline.
			o.givePIN(t, o.namespace, commonToken(onSoftHSM).PIN+"\n")
			o.ready(t, store)
		})
	}
}

func TestKeyStore_PIN_isReadInItsOwnNamespaceOnly(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.givePIN(t, o.ownNamespace, commonToken(onSoftHSM).PIN)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftHSM)}
	o.create(t, store)
	o.waits(t, store, v1alpha1.ReasonSourceNotFound, o.namespace+"/"+pinName)
	o.givePIN(t, o.namespace, commonToken(onSoftHSM).PIN)
	o.ready(t, store)
}

func TestClusterKeyStore_PIN_isReadInTheOperatorsNamespaceOnly(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.givePIN(t, o.namespace, commonToken(onSoftHSM).PIN)
	store := &v1alpha1.ClusterKeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: o.ownNamespace}, Spec: v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: storeSpec(onSoftHSM)},
	}
	o.create(t, store)
	o.waits(t, store, v1alpha1.ReasonSourceNotFound, o.ownNamespace+"/"+pinName)
	o.givePIN(t, o.ownNamespace, commonToken(onSoftHSM).PIN)
	o.ready(t, store)
}

// Whoever takes the PIN away takes the key store out of service.
func TestKeyStore_PINRemoved_closesTheModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftHSM)
	o.remove(t, pinSecret(o.namespace, ""))
	o.waits(t, store, v1alpha1.ReasonSourceNotFound)
	o.closed(t, o.module(t))
	o.outages(t, store, 1, 0)
	o.givePIN(t, o.namespace, commonToken(onSoftHSM).PIN)
	o.ready(t, store)
	o.outages(t, store, 1, 1)
}

func TestKeyStore_moduleDown_saysSoAndComesBack(t *testing.T) {
	t.Parallel()
	o := startOperator(t, withHealth(50*time.Millisecond))
	store := o.store(t, onSoftware)
	m := o.module(t)
	down := hsm.Errorf(hsm.Unavailable, "The device does not answer.")
	m.FailAll("ListWrappingKeys", down)
	m.FailAll("Check", down)
	o.waits(t, store, "ServiceUnavailableTemporary", "The device does not answer.")
	key := importedKey("key")
	o.create(t, key)
	o.waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	if store.Status.Module == nil || len(store.Status.Capabilities) == 0 {
		t.Error("what the module is and can is forgotten while it is down")
	}

	m.FailAll("ListWrappingKeys", nil)
	m.FailAll("Check", nil)
	o.ready(t, store)
	o.waits(t, key, v1alpha1.ReasonPendingImport)
}

// outages waits until a key store's events tell of so many ends of its service, and of as many returns.
func (o *operator) outages(t testing.TB, store client.Object, ended, returned int) {
	t.Helper()
	eventually(t, func() string {
		all := o.events(t, store)
		count := func(reason string) int {
			return len(slices.DeleteFunc(slices.Clone(all), func(e string) bool { return !strings.HasPrefix(e, reason+": ") }))
		}
		if count("KeyStoreUnavailable") != ended || count("KeyStoreAvailable") != returned {
			return fmt.Sprintf("want %d ends and %d returns; the events are %q", ended, returned, all)
		}
		return ""
	})
}

// However often it is tried meanwhile, there is one event for the end and one for the return.
func TestKeyStore_moduleDown_isToldOnceAndItsReturnToo(t *testing.T) {
	t.Parallel()
	for name, newStore := range map[string]func(*operator, *testing.T) client.Object{
		"KeyStore":        func(o *operator, t *testing.T) client.Object { return o.store(t, onSoftHSM) },
		"ClusterKeyStore": func(o *operator, t *testing.T) client.Object { return o.clusterStore(t, onSoftHSM) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var c cut
			o := startOperator(t, withHealth(50*time.Millisecond), c.option())
			store := newStore(o, t)
			o.restart(t)
			o.serves(t, store)
			o.outages(t, store, 0, 0)

			// What the status does not say yet, no event says.
			c.on.Store(true)
			o.forgetCounts()
			m := o.module(t)
			m.FailAll("Check", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
			o.checked(t, m, 2)
			if w := o.writes(); len(w) != 0 {
				t.Errorf("it wrote: %v", w)
			}
			c.on.Store(false)
			o.waits(t, store, "ServiceUnavailableTemporary")
			o.outages(t, store, 1, 0)
			o.checked(t, m, m.Calls()["Check"]+2)
			wantWords(t, o.event(t, store, "KeyStoreUnavailable"), []string{"unavailable", "Ready"})

			m.FailAll("Check", nil)
			o.ready(t, store)
			o.outages(t, store, 1, 1)
			o.checked(t, m, m.Calls()["Check"]+2)
			if w := o.writes(); w["create events"] != 2 || w["patch events"] != 0 {
				t.Errorf("it wrote: %v", w)
			}
		})
	}
}

// checked waits until a module has been asked so often whether it works.
func (o *operator) checked(t testing.TB, m *hsmtest.Recorder, times int) {
	t.Helper()
	eventually(t, func() string {
		if n := m.Calls()["Check"]; n < times {
			return fmt.Sprintf("it is asked %d times, not %d", n, times)
		}
		return ""
	})
}

func TestKeyStore_checkedAgain_writesNothing(t *testing.T) {
	t.Parallel()
	o := startOperator(t, withHealth(10*time.Millisecond))
	store := o.store(t, onSoftware)
	o.event(t, store, "RootKeyCreated")
	o.forgetCounts()
	o.checked(t, o.module(t), 5)
	if w := o.writes(); len(w) != 0 {
		t.Errorf("it wrote: %v", w)
	}
	if n := len(o.modules()); n != 1 {
		t.Errorf("the module was opened %d times", n)
	}
}
