package controllers_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// shortTime bounds the reconciles of tests in which modules hang. Nothing else in them depends on it: a reconcile that
// a slow machine does not finish in this time is tried again.
const shortTime = 4 * time.Second

const inTime = "The cryptographic module did not respond in time. The operator retries."

func TestTimeout_ofACallThatHangs_isInTheConditions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method string
		object client.Object
	}{
		"pair":     {"CreateWrappingKey", importedKey("waiting")},
		"data key": {"GenerateDataKey", newDataKey("waiting")},
		"export":   {"ExportDataKey", newExport("waiting")},
		"dry run":  {"ExportDataKey", newExport("waiting", func(s *v1alpha1.ExportedDataKeySpec) { s.DryRun = true })},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t, harness.WithTimeout(shortTime))
			o.store(t, onSoftware)
			o.enabledKey(t, "key", nil)
			o.dataKey(t, "dek")
			end := o.callHangs(t, c.method)

			o.Make(t, c.object)

			o.Waits(t, c.object, "ServiceUnavailableTemporary", inTime)
			end()
		})
	}
}

func TestTimeout_ofADeletion_isInTheConditions(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithTimeout(shortTime))
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key")
	end := o.callHangs(t, "DestroyWrappingKey")

	o.Remove(t, key)

	o.Waits(t, key, "ServiceUnavailableTemporary", "Deletion is waiting", inTime)
	end()
	o.Gone(t, key)
}

func TestTimeout_ofAnOpening_isInTheConditions(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithTimeout(shortTime), harness.BeforeOpen(func(ctx context.Context, _ hsm.Config) error {
		<-ctx.Done()
		return ctx.Err()
	}))
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftware)}
	o.Make(t, store)

	o.Waits(t, store, "ServiceUnavailableTemporary", "in time when it was opened")
}

// More exports than there are workers wait for a module that answers nothing: each one says so.
func TestTimeout_ofAModuleThatAnswersNothing_isInTheConditionsOfEachExport(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithTimeout(shortTime))
	store := o.store(t, onSoftware)
	o.enabledKey(t, "key", nil)
	o.dataKey(t, "dek")
	var ends []func()
	for _, method := range []string{"ExportDataKey", "Check"} {
		ends = append(ends, o.callHangs(t, method))
	}
	var exports []client.Object
	for i := range workers(8) + 4 {
		exports = append(exports, newExport(fmt.Sprint("export-", i)))
	}

	o.Make(t, exports...)

	for _, export := range exports {
		o.Until(t, export, func() string {
			conditions, _ := harness.StatusOf(export)
			ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
			if ready == nil || !slices.Contains([]string{"ServiceUnavailableTemporary", v1alpha1.ReasonKeyStoreNotReady}, ready.Reason) {
				return fmt.Sprintf("%s says %v", export.GetName(), conditions)
			}
			return ""
		})
	}
	o.Waits(t, store, "ServiceUnavailableTemporary", inTime)
	for _, end := range ends {
		end()
	}
	o.Ready(t, exports...)
}
