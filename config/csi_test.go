package config_test

import (
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The kubelet passes to the driver what it needs, and the driver itself has no credentials.
func TestCSI_hasThePermissionsOfPodsOnly(t *testing.T) {
	t.Parallel()
	objects := build(t, "csi")
	c, _ := warned(t)
	ensureNamespaces(t, c, objects)
	for _, u := range objects {
		if u.GetKind() != "Namespace" {
			if err := c.Create(t.Context(), u, client.DryRunAll); err != nil {
				t.Errorf("the %s is refused: %v", u.GetKind(), err)
			}
		}
	}
	daemons := find[appsv1.DaemonSet](t, objects, "DaemonSet", "keyconvoy-csi")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "keyconvoy-csi", GenerateName: "csi-"}, Spec: daemons.Spec.Template.Spec}
	c, w := warned(t)
	if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil || len(w.get()) > 0 {
		t.Errorf("the pod is refused: %v %q", err, w.get())
	}
	account := find[corev1.ServiceAccount](t, objects, "ServiceAccount", daemons.Spec.Template.Spec.ServiceAccountName)
	for _, automount := range []*bool{account.AutomountServiceAccountToken, daemons.Spec.Template.Spec.AutomountServiceAccountToken} {
		if automount == nil || *automount {
			t.Error("the pod mounts a token")
		}
	}
	for _, u := range objects {
		if slices.Contains([]string{"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}, u.GetKind()) {
			t.Errorf("there is a %s", u.GetKind())
		}
	}
	driver := find[storagev1.CSIDriver](t, objects, "CSIDriver", "csi.keyconvoy.io")
	if s := driver.Spec; s.PodInfoOnMount == nil || !*s.PodInfoOnMount || len(s.TokenRequests) != 1 || s.TokenRequests[0].Audience != "" ||
		!slices.Equal(s.VolumeLifecycleModes, []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}) {
		t.Errorf("the kubelet would not pass what the driver needs: %+v", s)
	}
}
