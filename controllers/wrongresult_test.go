package controllers_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	hsmprocess "github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// behindFaulty gives an operator a token behind the library that fails on demand, in a process of its own.
func behindFaulty(t *testing.T, library string, token tokens.Token) (harness.Option, *faulty.Control) {
	t.Helper()
	dir := t.TempDir()
	path, err := faulty.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	control, err := faulty.NewControl(filepath.Join(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	control.Reset(token.PIN)
	var names []string
	for _, variable := range control.Env(token.Path) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
		names = append(names, name)
	}
	return harness.WithLibraries(hsmprocess.New(hsmprocess.Options{
		Find: func(name string) (hsmprocess.Library, error) {
			if name != library {
				return hsmprocess.Library{}, hsm.Errorf(hsm.Misconfigured, "PKCS#11 module %q is not allowed.", name)
			}
			return hsmprocess.Library{Path: path, Environment: names, Paths: []hsmprocess.Path{
				{Name: token.Dir, Writable: true}, {Name: control.Path(), Writable: true},
			}}, nil
		},
		Command: []string{hsmprocess.SelfCommand, childArgument},
	})), control
}

// checks holds up the checks of modules, so that a test decides what happens between two of them.
type checks struct {
	sync.RWMutex // held for writing while no check may begin
	clock        *clocktesting.FakePassiveClock
}

func newChecks() *checks {
	return &checks{clock: clocktesting.NewFakePassiveClock(time.Now().Truncate(time.Second))}
}

// options are those of an operator with a check every few milliseconds, unless they are held up.
func (c *checks) options() []harness.Option {
	return []harness.Option{
		harness.WithClock(c.clock), harness.WithHealth(10 * time.Millisecond),
		harness.WithModules(func(r *hsmtest.Recorder) {
			r.Before("Check", func() {
				c.RLock()
				c.RUnlock() //nolint:staticcheck // it waited
			})
		}),
	}
}

// pass lets time pass, and then lets a check begin and end.
func (c *checks) pass(t *testing.T, o *operator) {
	t.Helper()
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	m := o.Module(t)
	o.checked(t, m, m.Calls()["Check"]+3) // one may have begun before, and one may have begun
}

// exportMany makes exports and waits until they are there.
func (o *operator) exportMany(t *testing.T, name string, n int) []*v1alpha1.ExportedDataKey {
	t.Helper()
	exports := make([]*v1alpha1.ExportedDataKey, n)
	for i := range exports {
		exports[i] = newExport(fmt.Sprint(name, "-", i), withRSA("RSAES_OAEP_SHA_1"))
		o.Make(t, exports[i])
	}
	for _, e := range exports {
		o.Ready(t, e)
	}
	return exports
}

// opens returns whether the recipient can open an export.
func (o *operator) opens(t *testing.T, e *v1alpha1.ExportedDataKey) bool {
	t.Helper()
	_, err := rsaRecipient().private.Unwrap(wrapping.RSAESOAEPSHA1, "", o.exportedBytes(t, e))
	return err == nil
}

// repeated waits until exports were repeated, and checks that they have the data key.
func (o *operator) repeated(t *testing.T, exports []*v1alpha1.ExportedDataKey, dataKey []byte) {
	t.Helper()
	for _, e := range exports {
		was := e.Status.RequestID
		o.Until(t, e, func() string {
			if e.Status.RequestID == was {
				return "the export " + e.Name + " was not repeated"
			}
			return ""
		})
		o.Ready(t, e)
		if !bytes.Equal(o.openExport(t, e, rsaRecipient()), dataKey) {
			t.Errorf("the export %s contains another data key", e.Name)
		}
		o.Event(t, e, "ExportRepeated")
	}
}

// A library begins to return garbage after the self-test. What it returned since the last check that found its results right is made
// again, and nothing else.
func TestKeyStore_whoseLibraryReturnsGarbage_repeatsTheExportsSinceTheLastCheck(t *testing.T) { // not parallel: it sets the environment
	const library, many = "garbles", 8
	token, c := ownToken(t), newChecks()
	libraries, control := behindFaulty(t, library, token)
	o := startOperator(t, append(c.options(), libraries)...)
	store := o.storeInChild(t, library, token.Label)
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	generated, untouched := o.generated(t, "generated"), o.generated(t, "untouched")
	good := o.dataKey(t, "dek")
	before := o.exportMany(t, "before", many)
	dataKey := o.openExport(t, before[0], rsaRecipient())
	c.pass(t, o)

	c.Lock()
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	unharmed := o.dataKey(t, "unharmed")
	o.rotate(t, generated, "now")
	control.Inject(faulty.Fault{Kind: faulty.Garbage, Functions: []string{"C_WrapKey"}, Inside: true})
	damaged := o.dataKey(t, "damaged")
	during := o.exportMany(t, "during", many)
	for _, e := range during {
		if o.opens(t, e) {
			t.Errorf("the export %s opens: the fault did not happen", e.Name)
		}
	}
	o.ForgetCounts()
	c.Unlock()
	o.Waits(t, store, v1alpha1.ReasonWrongResult, `the step "wrap and unwrap a data key"`, "status.suspectPeriods")
	control.End()
	o.Event(t, store, v1alpha1.ReasonWrongResult)
	for _, e := range during {
		o.Waits(t, e, v1alpha1.ReasonKeyStoreNotReady, "may have returned a wrong result")
	}
	o.Ready(t, store)
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))

	o.repeated(t, during, dataKey)
	o.Stalls(t, damaged, v1alpha1.ReasonDataKeyDamaged, "does not replace")
	o.Ready(t, unharmed)
	o.Event(t, unharmed, "DataKeyVerified")
	harness.WantWords(t, o.Event(t, generated, "KeyVersionSuspect"), []string{generated.Status.Versions[1].KeyVersionID, "Rotate the key"})
	o.Read(t, generated)
	if v := generated.Status.Versions; v[0].Suspect || !v[1].Suspect {
		t.Errorf("the versions are %s", harness.JSON(v))
	}
	if o.Read(t, untouched); untouched.Status.Versions[0].Suspect {
		t.Error("a version is suspect that was generated before the last check")
	}
	if n := o.Calls()["ExportDataKey"]; n != many {
		t.Errorf("%d exports were repeated, want %d", n, many)
	}
	if n := o.Writes()["apply secrets"]; n != many {
		t.Errorf("%d Secrets were written, want %d", n, many)
	}
	for _, e := range before {
		was := e.DeepCopy()
		if o.Read(t, e); e.ResourceVersion != was.ResourceVersion {
			t.Errorf("the export %s changed, although it was made before the last check", e.Name)
		}
	}
	if was := good.ResourceVersion; was != resourceVersion(t, o, good) {
		t.Error("the data key changed, although it was generated before the last check")
	}
	o.writesNothingMore(t, c, store, append(asObjects(before, during), good, unharmed, generated))
}

// writesNothingMore checks that further checks and a restart change nothing.
func (o *operator) writesNothingMore(t *testing.T, c *checks, store client.Object, objects []client.Object) {
	t.Helper()
	o.Settled(t, append(objects, store)...)
	o.ForgetCounts()
	c.pass(t, o)
	wantCounts(t, "further checks", o.Writes(), map[string]int{})
	wantCounts(t, "further checks", o.Calls(), map[string]int{})
	o.Restart(t)
	o.Settled(t, append(objects, store)...)
	wantCounts(t, "a restart", o.Writes(), map[string]int{})
}

func resourceVersion(t *testing.T, o *operator, object client.Object) string {
	t.Helper()
	o.Read(t, object)
	return object.GetResourceVersion()
}

func asObjects(lists ...[]*v1alpha1.ExportedDataKey) (all []client.Object) {
	for _, list := range lists {
		for _, e := range list {
			all = append(all, e)
		}
	}
	return all
}

var errWrong = hsm.Errorf(hsm.WrongResult, "the result differs")

// The operator ends after it has found a wrong result, and before the module works again.
func TestClusterKeyStore_restartedAfterAWrongResult_repeatsTheExports(t *testing.T) {
	t.Parallel()
	c := newChecks()
	o := startOperator(t, c.options()...)
	store := o.clusterStore(t, onSoftHSM)
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), inClusterStore(store.Name))
	o.dataKey(t, "dek")
	before := o.exportMany(t, "before", 1)
	dataKey := o.openExport(t, before[0], rsaRecipient())
	c.pass(t, o)
	c.Lock()
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	during := o.exportMany(t, "during", 3)
	o.Module(t).FailAll("Check", errWrong)
	c.Unlock()
	o.Waits(t, store, v1alpha1.ReasonWrongResult, "The result differs.")
	for _, e := range during {
		o.Waits(t, e, v1alpha1.ReasonKeyStoreNotReady)
	}
	o.Stop(t)
	if periods := store.Status.SuspectPeriods; len(periods) != 1 || periods[0].To != nil {
		t.Errorf("the suspect periods are %v", periods)
	}
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	o.ForgetCounts()
	o.Start(t)
	o.Ready(t, store)
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	o.repeated(t, during, dataKey)
	if n := o.Calls()["ExportDataKey"]; n != len(during) {
		t.Errorf("%d exports were repeated, want %d", n, len(during))
	}
}

// A module that is unavailable has returned no wrong result.
func TestKeyStore_unavailableModule_makesNothingSuspect(t *testing.T) {
	t.Parallel()
	c := newChecks()
	o := startWithKey(t, c.options()...)
	o.dataKey(t, "dek")
	e := o.export(t, "e")
	o.Module(t).FailAll("Check", hsm.Errorf(hsm.Unavailable, "the device does not answer"))
	store := &v1alpha1.KeyStore{ObjectMeta: named("store")}
	store.Namespace = o.Namespace
	o.Waits(t, store, "ServiceUnavailableTemporary")
	o.Module(t).FailAll("Check", nil)
	o.Ready(t, store)
	if periods := store.Status.SuspectPeriods; periods != nil {
		t.Errorf("the suspect periods are %v", periods)
	}
	was := e.Status.RequestID
	if o.Settled(t, e); was != e.Status.RequestID {
		t.Error("the export was repeated")
	}
}

// What cannot be written when a wrong result is found is written later.
func TestKeyStore_statusNotWrittenAfterAWrongResult_isWrittenLater(t *testing.T) {
	t.Parallel()
	var lost cut
	c := newChecks()
	o := startWithKey(t, append(c.options(), lost.option())...)
	o.dataKey(t, "dek")
	c.pass(t, o)
	c.Lock()
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	e := o.export(t, "e")
	lost.on.Store(true)
	opened := len(o.Modules())
	o.Module(t).FailNext("Check", errWrong)
	c.Unlock()
	harness.Eventually(t, func() string {
		if len(o.Modules()) == opened {
			return "the module is not opened again"
		}
		return ""
	})
	lost.on.Store(false)
	store := &v1alpha1.KeyStore{ObjectMeta: named("store")}
	store.Namespace = o.Namespace
	o.Until(t, store, func() string {
		if periods := store.Status.SuspectPeriods; len(periods) != 1 || periods[0].To == nil {
			return fmt.Sprintf("the suspect periods are %v", periods)
		}
		return ""
	})
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	was := e.Status.RequestID
	o.Until(t, e, func() string {
		if e.Status.RequestID == was {
			return "the export was not repeated"
		}
		return ""
	})
	o.Ready(t, e)
}
