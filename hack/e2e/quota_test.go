package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestResourceQuota_exportsWaitAndContinueWhenItIsRaised(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "secrets"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"secrets": resource.MustParse("1")}}, // the data key's
	}
	if err := api.Create(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the quota is in force", func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(quota), quota); err != nil {
			return err
		}
		if used := quota.Status.Used["secrets"]; used.Value() != 1 {
			return fmt.Errorf("used: %s", used.String())
		}
		return nil
	})
	r := newRecipient(t)
	const exports = 3
	for i := range exports {
		if err := api.Create(t.Context(), r.export(t, namespace, fmt.Sprintf("export-%d", i))); err != nil {
			t.Fatal(err)
		}
	}

	for i := range exports {
		eventually(t, "the export says that a quota prevents it", func() error {
			export := get(t, &v1alpha1.ExportedDataKey{}, namespace, fmt.Sprintf("export-%d", i))
			ready := meta.FindStatusCondition(export.Status.Conditions, v1alpha1.ConditionReady)
			if ready == nil || ready.Status == metav1.ConditionTrue || !strings.Contains(ready.Message, "exceeded quota") {
				return fmt.Errorf("its condition is %+v", ready)
			}
			return nil
		})
	}

	quota.Spec.Hard["secrets"] = resource.MustParse("10")
	if err := api.Update(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	raised := time.Now()
	for i := range exports {
		eventually(t, "the export continues", func() error {
			return api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: fmt.Sprintf("export-%d", i)}, &corev1.Secret{})
		})
	}
	record("exports that waited for a quota continue after it is raised in", rounded(time.Since(raised)))
}
