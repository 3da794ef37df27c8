package controllers_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/lease"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// patientTiming is longer than any machine stalls.
var patientTiming = lease.Timing{Duration: 2 * time.Minute, RenewDeadline: 90 * time.Second, RetryPeriod: 200 * time.Millisecond}

// electing has operators of one namespace choose who works.
func electing(elected lease.Options) harness.Option {
	return harness.WithManager(func(o *harness.Operator, options *ctrl.Options) {
		elected.Namespace = o.OwnNamespace
		if err := lease.Elect(options, o.Config, elected); err != nil {
			panic(err)
		}
	})
}

// beside gives an operator the namespaces and the objects of another one.
func beside(other *operator) harness.Option {
	return harness.WithNamespaces(other.Namespace, other.OwnNamespace)
}

func TestOperators_twoAtOnce_oneActs(t *testing.T) {
	t.Parallel()
	elected := electing(lease.Options{Timing: patientTiming})
	first := startOperator(t, elected)
	second := startOperator(t, beside(first), elected)
	acts := func(o *operator) bool { return len(o.Modules()) > 0 }
	work := func(name string) []client.Object {
		key := first.enabledKey(t, name, nil)
		dataKey := first.dataKey(t, name+"-dek", underKey(name))
		export := first.export(t, name+"-export", ofDataKey(dataKey.Name), toBlob(sm2Recipient().public.Base64()), withSM2)
		return []client.Object{key, dataKey, export}
	}
	first.store(t, onSoftware)
	objects := work("before")
	if acts(first) == acts(second) {
		t.Fatalf("the first acts: %t, the second: %t", acts(first), acts(second))
	}
	leader, waiting := first, second
	if acts(second) {
		leader, waiting = second, first
	}
	wantCounts(t, "the leader", leader.Calls(), map[string]int{
		"Authenticate": 3, "CreateWrappingKey": 1, "ImportKey": 1, "GenerateDataKey": 1, "ExportDataKey": 1,
	})
	if calls := waiting.Calls(); len(calls) > 0 {
		t.Errorf("who waits called %v", calls)
	}
	for write := range waiting.Writes() {
		if !strings.Contains(write, "leases") {
			t.Errorf("who waits wrote: %s", write)
		}
	}

	leader.Stop(t)
	objects = append(objects, work("after")...)
	wantCounts(t, "the successor", waiting.Calls(), map[string]int{
		"Authenticate": 3, "CreateWrappingKey": 1, "ImportKey": 1, "GenerateDataKey": 1, "ExportDataKey": 1,
	})
	waiting.Settled(t, objects...)
}

// Without an election, both operators act: each finds what the other one generated, and none generates a version twice. (SoftHSM and
// NSS do not show a process all that another one did, so for them there is the election.)
func TestOperators_twoThatBothAct_generateEachVersionOnce(t *testing.T) {
	t.Parallel()
	const each, rotations = 6, 3
	first := startOperator(t)
	second := startOperator(t, beside(first))
	first.store(t, onSoftware)
	second.Module(t) // is open, too
	var keys []*v1alpha1.GeneratedKey
	for i := range each {
		keys = append(keys, generatedKey(fmt.Sprintf("key-%d", i)))
	}
	for _, key := range keys {
		first.Make(t, key)
	}
	for round := range rotations {
		for _, key := range keys {
			first.hasVersions(t, key, round+1)
			first.Annotate(t, key, v1alpha1.AnnotationRotate, fmt.Sprint(round))
		}
	}
	for _, key := range keys {
		first.hasVersions(t, key, rotations+1)
		first.dataKey(t, key.Name, underGenerated(key.Name))
	}
	for _, key := range keys {
		for _, version := range key.Status.Versions {
			for name, o := range map[string]*operator{"first": first, "second": second} {
				found, err := o.Module(t).FindKey(t.Context(), uuid.MustParse(version.KeyVersionID))
				if err != nil || found.Fingerprint.String() != version.Fingerprint {
					t.Errorf("version %d of %s has the fingerprint %s, and %s for the %s operator: %v",
						version.Number, key.Name, version.Fingerprint, found.Fingerprint, name, err)
				}
			}
		}
	}
	for name, o := range map[string]*operator{"first": first, "second": second} {
		t.Logf("The %s operator called %v.", name, o.Calls())
	}
}

// A key that has work to do and was Ready is reconciled while its key store is not ready; the store is ready
// before the key's status says that it waits. No event tells the key again.
func TestKey_whoseStoreServesBeforeItsStatusSaysThatItWaits_isServed(t *testing.T) {
	t.Parallel()
	var held atomic.Bool
	var openings atomic.Int32
	var once sync.Once
	waits, serves := make(chan struct{}), make(chan struct{})
	o := startOperator(t,
		harness.WithConfig(func(cfg *rest.Config) {
			cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if held.Load() && r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/importedkeys/key/status") {
						once.Do(func() { close(waits) })
						<-serves
					}
					return next.RoundTrip(r)
				})
			})
		}),
		harness.BeforeOpen(func(context.Context, hsm.Config) error {
			if !held.Load() {
				return nil
			}
			if openings.Add(1) == 1 {
				return errCable
			}
			<-waits
			return nil
		}))
	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.Stop(t)
	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "please")
	held.Store(true)
	o.Start(t)
	o.Module(t)
	o.Settled(t, store)
	close(serves)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
}

func TestAPIServer_restartedUnderLoad_everythingBecomesReady(t *testing.T) {
	t.Parallel()
	const each = 40
	env := testenv.Another(t)
	o := startOperatorOn(t, env)
	o.store(t, onSoftware)
	o.enabledKey(t, "key", nil)
	var dataKeys, exports []client.Object
	for i := range each {
		name := fmt.Sprintf("dek-%d", i)
		dataKeys = append(dataKeys, newDataKey(name))
		exports = append(exports, newExport(name+"-export", ofDataKey(name), toBlob(sm2Recipient().public.Base64()), withSM2))
	}
	o.Make(t, dataKeys...)
	o.Make(t, exports...)
	blobs := map[string]string{}
	env.Restart(t, func() {})
	for _, object := range append(dataKeys, exports...) {
		o.readyInTheEnd(t, object)
	}
	for _, object := range dataKeys {
		k := object.(*v1alpha1.DataKey)
		blobs[k.Name] = k.Status.CiphertextBlob
		o.checkSecretOf(t, k, k.Name)
	}
	for _, object := range exports {
		o.checkExport(t, object.(*v1alpha1.ExportedDataKey), sm2Recipient())
	}
	// Once more, with nothing under way: nothing is made anew.
	env.Restart(t, func() { o.Stop(t) })
	o.ForgetCounts()
	o.Start(t)
	o.Settled(t, append(dataKeys, exports...)...)
	if calls := o.Calls(); len(calls) > 0 {
		t.Errorf("the module was called: %v", calls)
	}
	for _, object := range dataKeys {
		k := object.(*v1alpha1.DataKey)
		o.Ready(t, k)
		if k.Status.CiphertextBlob != blobs[k.Name] {
			t.Errorf("%s is another data key", k.Name)
		}
	}
}

// readyInTheEnd waits longer than others do: what failed while the API server was away is retried less and less
// often.
func (o *operator) readyInTheEnd(t testing.TB, object client.Object) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(harness.Interval)
	defer tick.Stop()
	for {
		problem := o.endsAs(t, object, v1alpha1.ReasonSucceeded)()
		if problem == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatal(problem)
		case <-tick.C:
		}
	}
}
