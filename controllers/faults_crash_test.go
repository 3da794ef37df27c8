package controllers_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// signalLibrary sends a signal to the process that runs a library.
func signalLibrary(t testing.TB, library string, signal syscall.Signal) {
	t.Helper()
	children, err := hsmtest.Children(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for pid, runs := range children {
		if runs != library {
			continue
		}
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	if sent != 1 {
		t.Fatalf("%d processes run library %s, want 1", sent, library)
	}
}

// storeInChild makes a key store on a library with a process of its own.
func (o *operator) storeInChild(t testing.TB, library, label string) *v1alpha1.KeyStore {
	t.Helper()
	return o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.PKCS11.Module, s.PKCS11.Token.Label = library, label })
}

// A library's crash costs the calls in progress. The key store says what happened, and works again by itself.
func TestKeyStore_whoseLibraryCrashes_saysSoAndWorksAgain(t *testing.T) {
	t.Parallel()
	const library = "crashes"
	token, clock := ownToken(t), clocktesting.NewFakePassiveClock(time.Now())
	o := startOperator(t, inChild(library, token), harness.WithClock(clock), harness.WithHealth(time.Second))
	store := o.storeInChild(t, library, token.Label)
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.dataKey(t, "dek")
	o.export(t, "before", withRSA("RSAES_OAEP_SHA_1"))

	signalLibrary(t, library, syscall.SIGSEGV)
	o.Condition(t, store, v1alpha1.ConditionModuleCrashed, "True", "ModuleCrashed")
	c := meta.FindStatusCondition(store.Status.Conditions, v1alpha1.ConditionModuleCrashed)
	if !strings.Contains(c.Message, "was ended by signal SIGSEGV. The operator starts it again") {
		t.Errorf("the condition says %q", c.Message)
	}
	harness.Eventually(t, func() string {
		all := strings.Join(o.Events(t, store), "\n")
		if strings.Count(all, "ModuleCrashed: ") != 1 || !strings.Contains(all, c.Message) {
			return "the events are " + all
		}
		return ""
	})
	for i := range 5 {
		o.export(t, fmt.Sprintf("after-%d", i), withRSA("RSAES_OAEP_SHA_1"))
	}
	o.Ready(t, store)

	clock.SetTime(clock.Now().Add(10 * time.Minute))
	o.Until(t, store, func() string {
		if meta.FindStatusCondition(store.Status.Conditions, v1alpha1.ConditionModuleCrashed) != nil {
			return "the condition is still there"
		}
		return ""
	})
}

// A library that does not answer costs its own key store, and the workers that wait for it return to the others.
func TestKeyStore_whoseLibraryIsSilent_isNotReadySoonAndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	const library, waiting = "silent", 40
	token := ownToken(t)
	o := startOperator(t, inChild(library, token), harness.WithHealth(time.Hour))
	other := &v1alpha1.KeyStore{ObjectMeta: named("other"), Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}}
	o.Make(t, other)
	store := o.storeInChild(t, library, token.Label)
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.dataKey(t, "dek")
	inOther := func(s *v1alpha1.ImportedKeySpec) { s.KeyStoreRef.Name = "other" }
	o.enabledKey(t, "elsewhere", nil, inOther)
	o.dataKey(t, "dek-elsewhere", underKey("elsewhere"))

	signalLibrary(t, library, syscall.SIGSTOP)
	exports := make([]*v1alpha1.ExportedDataKey, waiting)
	for i := range exports {
		exports[i] = newExport(fmt.Sprintf("waits-%d", i), withRSA("RSAES_OAEP_SHA_1"))
		o.Make(t, exports[i])
	}
	for i := range 5 {
		o.export(t, fmt.Sprintf("elsewhere-%d", i), ofDataKey("dek-elsewhere"))
	}
	harness.Eventually(t, func() string { // the event stays, the condition does not
		if all := strings.Join(o.Events(t, store), "\n"); !strings.Contains(all, "KeyStoreUnavailable: ") {
			return "the events are " + all
		}
		return ""
	})
	// The operator ends a process that stays silent. All exports get a condition before, or are done after.
	for _, e := range exports {
		o.Until(t, e, func() string {
			if len(e.Status.Conditions) == 0 {
				return e.Name + " has no condition"
			}
			return ""
		})
	}
	o.Ready(t, store)
	for _, e := range exports {
		o.Ready(t, e)
	}
}
