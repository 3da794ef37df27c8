package controllers_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// workers is how many workers a controller has that has so many for each core.
func workers(perCore int) int { return perCore * max(2, runtime.NumCPU()) }

// noTimeout is longer than any test: what hangs does so until the test ends that.
const noTimeout = time.Hour

// another has what the test makes from here on made in another namespace.
func (o *operator) another(t testing.TB) { o.Namespace = o.Env.Namespace(t) }

// callHangs has the calls of a method of a module hang, until the test is over at the latest. It returns what ends that.
func (o *operator) callHangs(t testing.TB, method string) (end func()) {
	t.Helper()
	until := make(chan struct{})
	end = sync.OnceFunc(func() { close(until) })
	t.Cleanup(end) // before the operator's end, which waits for its workers
	o.Module(t).Hang(method, until)
	return end
}

// hangs waits until a call of a method of the module hangs.
func (o *operator) hangs(t testing.TB, calls func() map[string]int, method string) {
	t.Helper()
	harness.Eventually(t, func() string {
		if calls()[method] == 0 {
			return "nothing calls " + method
		}
		return ""
	})
}

// A tenant has more objects than a controller has workers, and the module of its own key store answers none of their
// calls. What another tenant makes after them is served all the same.
func TestFairness_aTenantWhoseModuleHangs_delaysNoOther(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method  string
		perCore int
		object  func(name string) client.Object
		served  func(*testing.T, *operator)
	}{
		"pairs": {
			"CreateWrappingKey", 2,
			func(name string) client.Object { return importedKey(name) },
			func(t *testing.T, o *operator) { o.pendingKey(t, "key") },
		},
		"data keys": {
			"GenerateDataKey", 16,
			func(name string) client.Object { return newDataKey(name) },
			func(t *testing.T, o *operator) {
				o.enabledKey(t, "key", nil)
				o.dataKey(t, "dek")
			},
		},
		"exports": {
			"ExportDataKey", 8,
			func(name string) client.Object { return newExport(name) },
			func(t *testing.T, o *operator) {
				o.enabledKey(t, "key", nil)
				o.dataKey(t, "dek")
				o.export(t, "export")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t, harness.WithTimeout(noTimeout))
			o.store(t, onSoftware)
			o.enabledKey(t, "key", nil)
			o.dataKey(t, "dek")
			end := o.callHangs(t, c.method)
			busy := o.Module(t)
			busy.Reset()
			var waiting []client.Object
			for i := range workers(c.perCore) + 4 {
				waiting = append(waiting, c.object(fmt.Sprint("one-of-many-", i)))
			}
			o.Make(t, waiting...)
			o.hangs(t, busy.Calls, c.method)

			o.another(t)
			o.store(t, onSoftware)
			c.served(t, o)

			if n, most := busy.Calls()[c.method], workers(c.perCore)*3/4; n > most {
				t.Errorf("%d calls of the tenant hang, want at most %d", n, most)
			}
			end()
		})
	}
}

// A tenant has more key stores than there are workers, and none of their modules opens.
func TestFairness_aTenantWhoseModulesDoNotOpen_delaysNoOther(t *testing.T) {
	t.Parallel()
	until := make(chan struct{})
	end := sync.OnceFunc(func() { close(until) })
	var mu sync.Mutex
	begun := 0
	o := startOperator(t, harness.WithTimeout(noTimeout), harness.BeforeOpen(func(ctx context.Context, cfg hsm.Config) error {
		if !cfg.AllowPKCS1v15Import { // which marks the tenant's
			return nil
		}
		mu.Lock()
		begun++
		mu.Unlock()
		select {
		case <-until:
			return hsm.Errorf(hsm.Misconfigured, "There is no such token.")
		case <-ctx.Done():
			return ctx.Err()
		}
	}))
	t.Cleanup(end)
	for i := range workers(8) + 4 {
		store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("one-of-many-", i)}, Spec: storeSpec(onSoftware)}
		store.Spec.AllowPKCS1V15Import = true
		o.Make(t, store)
	}
	o.hangs(t, func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return map[string]int{"Open": begun}
	}, "Open")

	o.another(t)
	o.store(t, onSoftware)
	o.pendingKey(t, "key")
	end()
}
