package controllers_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// The owner of an object cannot read the operator's log.
func TestSecret_thatAQuotaRefuses_isExplainedInTheCondition(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	quota := &corev1.ResourceQuota{ObjectMeta: named("few-secrets"), Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"secrets": resource.MustParse("0")}}}
	quota.Namespace = o.Namespace
	if err := o.Create(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	// No controller fills in the quota's status here.
	o.Until(t, quota, func() string {
		quota.Status = corev1.ResourceQuotaStatus{Hard: quota.Spec.Hard, Used: corev1.ResourceList{"secrets": resource.MustParse("0")}}
		if err := o.Status().Update(t.Context(), quota); err != nil {
			return err.Error()
		}
		return ""
	})
	harness.Eventually(t, func() string {
		s := &corev1.Secret{ObjectMeta: named("probe")}
		s.Namespace = o.Namespace
		if err := o.Create(t.Context(), s, client.DryRunAll); err == nil {
			return "the quota is not in force"
		}
		return ""
	})
	for _, object := range []client.Object{newExport("export"), newDataKey("another")} {
		o.Make(t, object)
		o.Waits(t, object, v1alpha1.ReasonAPIServer,
			"The API server refused to write the Secret "+o.Namespace+"/"+object.GetName(), "exceeded quota: few-secrets, requested: secrets=1", "Remove the cause")
	}
	o.Remove(t, quota)
	o.readyInTheEnd(t, newNamed(o, &v1alpha1.ExportedDataKey{}, "export"))
	o.readyInTheEnd(t, newNamed(o, &v1alpha1.DataKey{}, "another"))
}

func newNamed[T client.Object](o *operator, object T, name string) T {
	object.SetNamespace(o.Namespace)
	object.SetName(name)
	return object
}
