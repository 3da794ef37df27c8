package controllers_test

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

var errCable = hsm.Errorf(hsm.Unavailable, "The device does not answer.")

// startWithDataKey starts an operator whose software store holds the key of a data key.
func startWithDataKey(t *testing.T) (*operator, *v1alpha1.KeyStore, *hsmtest.Recorder) {
	t.Helper()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	o.enabledKey(t, "key", nil)
	o.dataKey(t, "dek")
	m := o.Module(t) // which waits
	return o, store, m
}

func TestOperator_aModuleThatFails_isLeftAloneUntilItWorks(t *testing.T) {
	t.Parallel()
	o, store, m := startWithDataKey(t)
	m.FailAll("Check", errCable)
	m.FailAll("ExportDataKey", errCable)

	// The first one finds out, long before the next health check.
	first := newExport("first")
	o.Make(t, first)
	o.Waits(t, store, "ServiceUnavailableTemporary")
	o.ForgetCounts()

	// The others ask the module nothing.
	waiting := []client.Object{first}
	for i := range 20 {
		waiting = append(waiting, newExport(fmt.Sprintf("export-%d", i)))
	}
	o.Make(t, waiting[1:]...)
	for _, export := range waiting[1:] {
		o.Waits(t, export, v1alpha1.ReasonKeyStoreNotReady, "is not ready")
	}
	if n := o.Calls()["ExportDataKey"]; n > 1 { // the first one's last try may have been under way
		t.Errorf("a module that is known to fail was called %d times", n)
	}

	m.FailAll("ExportDataKey", nil)
	m.FailAll("Check", nil)
	o.Ready(t, store)
	o.Ready(t, waiting...)
	wantCounts(t, "each Secret", map[string]int{"apply secrets": o.Writes()["apply secrets"]}, map[string]int{"apply secrets": len(waiting)})
}

func TestOperator_aModuleThatFailsOneCallOnly_keepsServing(t *testing.T) {
	t.Parallel()
	o, store, m := startWithDataKey(t)
	m.FailAll("ExportDataKey", errCable)
	m.Reset()

	failing := newExport("failing")
	o.Make(t, failing)
	o.Waits(t, failing, "ServiceUnavailableTemporary")
	harness.Eventually(t, func() string {
		if m.Calls()["Check"] == 0 {
			return "the module was not checked"
		}
		return ""
	})
	o.dataKey(t, "another")
	o.Read(t, store)
	if conditions, _ := harness.StatusOf(store); !meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReady) {
		t.Errorf("the store is taken for broken: %s", harness.StatusJSON(store))
	}
	m.FailAll("ExportDataKey", nil)
	o.Ready(t, failing)
}
