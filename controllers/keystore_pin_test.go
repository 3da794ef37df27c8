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
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// wrongPIN is the PIN of no token.
const wrongPIN = "wrong-87654321"

// countOpenings counts how often a module is opened: for a token, how often its PIN can have been tried.
func countOpenings(n *atomic.Int32) harness.Option {
	return harness.BeforeOpen(func(context.Context, hsm.Config) error {
		n.Add(1)
		return nil
	})
}

func TestKeyStore_wrongPIN_isTriedOnce(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	token := ownToken(t)
	o.givePIN(t, o.Namespace, wrongPIN)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: tokenSpec(onSoftHSM, token.Label)}
	o.Make(t, store)
	said := o.Stalls(t, store, v1alpha1.ReasonPINRefused, "Secret")
	o.Event(t, store, v1alpha1.ReasonPINRefused)

	o.Restart(t)
	o.Settled(t, store)
	if again := o.Stalls(t, store, v1alpha1.ReasonPINRefused); again != said {
		t.Errorf("after a restart it says %q, before %q", again, said)
	}
	if w := o.Writes(); len(w) != 0 { // a try would have been recorded
		t.Errorf("the restart wrote: %v", w)
	}

	o.givePIN(t, o.Namespace, token.PIN)
	o.Ready(t, store)
}

// Who may use a key store has nothing to do with its module, which all would miss while it is opened again.
func TestClusterKeyStore_allowedNamespacesChanged_leavesTheModuleOpen(t *testing.T) {
	t.Parallel()
	var openings atomic.Int32
	o := startOperator(t, countOpenings(&openings))
	store := o.clusterStore(t, onSoftHSM)
	for _, allowed := range []*v1alpha1.LabelSelector{selector("team", "a"), selector("team", "b"), nil} {
		o.Again(t, store, func() { o.Change(t, store, func() { store.Spec.AllowedNamespaces = allowed }) })
		o.Ready(t, store)
	}
	if n := openings.Load(); n != 1 {
		t.Errorf("the module was opened %d times", n)
	}
	o.Change(t, store, func() { store.Spec.Custody = v1alpha1.CustodyModuleOnly })
	o.Ready(t, store)
	if n := openings.Load(); n != 2 {
		t.Errorf("the module was opened %d times, want once more for another custody", n)
	}
}

func TestClusterKeyStore_allowedNamespacesChanged_isNoReasonToTryARefusedPIN(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.givePIN(t, o.OwnNamespace, wrongPIN)
	store := &v1alpha1.ClusterKeyStore{
		ObjectMeta: named(o.OwnNamespace),
		Spec:       v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: tokenSpec(onSoftHSM, ownToken(t).Label)},
	}
	o.Make(t, store)
	said := o.Stalls(t, store, v1alpha1.ReasonPINRefused)
	o.ForgetCounts()
	o.Again(t, store, func() { o.Change(t, store, func() { store.Spec.AllowedNamespaces = selector("team", "a") }) })
	if again := o.Stalls(t, store, v1alpha1.ReasonPINRefused); again != said {
		t.Errorf("it says %q, before %q", again, said)
	}
	if w := o.Writes(); w["patch secrets"] != 0 {
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
			o := startOperator(t)
			if there != nil {
				secret := pinSecret(o.Namespace, "")
				secret.Data = there
				o.Make(t, secret)
			}
			store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftHSM)}
			o.Make(t, store)
			o.Waits(t, store, v1alpha1.ReasonSourceNotFound, o.Namespace+"/"+pinName, pinEntry)
			// Secrets made from a file end in a newline.
			o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN+"\n")
			o.Ready(t, store)
		})
	}
}

func TestKeyStore_PIN_isReadInItsOwnNamespaceOnly(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.givePIN(t, o.OwnNamespace, commonToken(onSoftHSM).PIN)
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftHSM)}
	o.Make(t, store)
	o.Waits(t, store, v1alpha1.ReasonSourceNotFound, o.Namespace+"/"+pinName)
	o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN)
	o.Ready(t, store)
}

func TestClusterKeyStore_PIN_isReadInTheOperatorsNamespaceOnly(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN)
	store := &v1alpha1.ClusterKeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: o.OwnNamespace}, Spec: v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: storeSpec(onSoftHSM)},
	}
	o.Make(t, store)
	o.Waits(t, store, v1alpha1.ReasonSourceNotFound, o.OwnNamespace+"/"+pinName)
	o.givePIN(t, o.OwnNamespace, commonToken(onSoftHSM).PIN)
	o.Ready(t, store)
}

// A key store without its PIN is taken out of service.
func TestKeyStore_PINRemoved_closesTheModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftHSM)
	o.Remove(t, pinSecret(o.Namespace, ""))
	o.Waits(t, store, v1alpha1.ReasonSourceNotFound)
	o.closed(t, o.Module(t))
	o.outages(t, store, 1, 0)
	o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN)
	o.Ready(t, store)
	o.outages(t, store, 1, 1)
}

func TestKeyStore_moduleDown_saysSoAndComesBack(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithHealth(50*time.Millisecond))
	store := o.store(t, onSoftware)
	m := o.Module(t)
	down := hsm.Errorf(hsm.Unavailable, "The device does not answer.")
	m.FailAll("ListWrappingKeys", down)
	m.FailAll("Check", down)
	o.Waits(t, store, "ServiceUnavailableTemporary", "The device does not answer.")
	key := importedKey("key")
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	if store.Status.Module == nil || len(store.Status.Capabilities) == 0 {
		t.Error("what the module is and can is forgotten while it is down")
	}

	m.FailAll("ListWrappingKeys", nil)
	m.FailAll("Check", nil)
	o.Ready(t, store)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

// outages waits until a key store's events tell of so many ends of its service, and of as many returns.
func (o *operator) outages(t testing.TB, store client.Object, ended, returned int) {
	t.Helper()
	harness.Eventually(t, func() string {
		all := o.Events(t, store)
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
			var c cut
			o := startOperator(t, harness.WithHealth(50*time.Millisecond), c.option())
			store := newStore(o, t)
			o.Restart(t)
			o.serves(t, store)
			o.outages(t, store, 0, 0)

			// What the status does not say yet, no event says.
			c.on.Store(true)
			o.ForgetCounts()
			m := o.Module(t)
			m.FailAll("Check", hsm.Errorf(hsm.Unavailable, "The device does not answer."))
			o.checked(t, m, 2)
			if w := o.Writes(); len(w) != 0 {
				t.Errorf("it wrote: %v", w)
			}
			c.on.Store(false)
			o.Waits(t, store, "ServiceUnavailableTemporary")
			o.outages(t, store, 1, 0)
			o.checked(t, m, m.Calls()["Check"]+2)
			harness.WantWords(t, o.Event(t, store, "KeyStoreUnavailable"), []string{"unavailable", "Ready"})

			m.FailAll("Check", nil)
			o.Ready(t, store)
			o.outages(t, store, 1, 1)
			o.checked(t, m, m.Calls()["Check"]+2)
			if w := o.Writes(); w["create events"] != 2 || w["patch events"] != 0 {
				t.Errorf("it wrote: %v", w)
			}
		})
	}
}

// checked waits until a module has been asked so often whether it works.
func (o *operator) checked(t testing.TB, m *hsmtest.Recorder, times int) {
	t.Helper()
	harness.Eventually(t, func() string {
		if n := m.Calls()["Check"]; n < times {
			return fmt.Sprintf("it is checked %d times, not %d", n, times)
		}
		return ""
	})
}

func TestKeyStore_checkedAgain_writesNothing(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithHealth(10*time.Millisecond))
	store := o.store(t, onSoftware)
	o.Event(t, store, "RootKeyCreated")
	o.ForgetCounts()
	o.checked(t, o.Module(t), 5)
	if w := o.Writes(); len(w) != 0 {
		t.Errorf("it wrote: %v", w)
	}
	if n := len(o.Modules()); n != 1 {
		t.Errorf("the module was opened %d times", n)
	}
}
