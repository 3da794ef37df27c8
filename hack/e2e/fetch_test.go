package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const csiNamespace = "keyconvoy-csi"

// mayFetch gives a ServiceAccount, which it creates if needed, the permissions in docs/export-to-a-pod.md.
func mayFetch(t testing.TB, namespace, account string) {
	t.Helper()
	if account != "default" {
		kubectl(t, "create", "serviceaccount", account, "-n", namespace)
	}
	subject := "--serviceaccount=" + namespace + ":" + account
	kubectl(t, "create", "role", account+"-exports", "-n", namespace, "--verb=export", "--resource=datakeys.keyconvoy.io", "--resource-name=ledger")
	kubectl(t, "create", "rolebinding", account+"-exports", "-n", namespace, "--role="+account+"-exports", subject)
	kubectl(t, "create", "rolebinding", account+"-fetches", "-n", namespace, "--clusterrole=keyconvoy-exporteddatakey-fetcher-role", subject)
}

// installCSI installs the driver as docs/export-to-a-pod.md says, until the test ends.
func installCSI(t testing.TB) {
	t.Helper()
	above := t.TempDir()
	config, err := filepath.Abs(filepath.Join(root, "config"))
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := readBlock(filepath.Join(root, "docs/export-to-a-pod.md"), "# csi-driver.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(above, "my", "csi")
	for _, err := range []error{
		os.MkdirAll(dir, 0o700), os.Symlink(config, filepath.Join(above, "config")),
		os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, "apply", "-k", dir)
	t.Cleanup(func() { kubectl(t, "delete", "-k", dir, "--wait") })
	kubectl(t, "rollout", "status", "daemonset", "keyconvoy-csi", "-n", csiNamespace, "--timeout=3m")
}

// csiPlugin returns the process of the driver's plugin, with its memory.
func csiPlugin(t testing.TB) process {
	t.Helper()
	var plugin process
	eventually(t, "the plugin runs", func() error {
		var pods corev1.PodList
		if err := api.List(t.Context(), &pods, client.InNamespace(csiNamespace)); err != nil {
			return err
		}
		for _, pod := range pods.Items {
			if running := processes(t, pod, "keyconvoy"); len(running) == 1 {
				plugin = running[0]
				return nil
			}
		}
		return fmt.Errorf("%d pods have no process", len(pods.Items))
	})
	return plugin
}

// dataKeyVolume is a CSI volume with the data key ledger.
var dataKeyVolume = corev1.Volume{Name: "key", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
	Driver: "csi.keyconvoy.io", VolumeAttributes: map[string]string{"dataKey": "ledger", "fileName": "key"},
}}}

// Pods get their data keys although the plugin is killed meanwhile, their volumes end with them, and a pod whose permission was
// withdrawn does not get a data key.
func TestCSI(t *testing.T) {
	install(t, installation{})
	installCSI(t)
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	mayFetch(t, namespace, "default")
	key, _ := newRecipient(t).exportNow(t, namespace, "export")

	t.Run("a pod", func(t *testing.T) {
		explainFailure(t)
		pod := plainPod(namespace, "one", dataKeyVolume)
		if err := api.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		waitReady(t, namespace, "pod/one")
		equal(t, "the file of the pod", readInPod(t, *pod, "sleep", "/run/key/key"), key)
		kubectl(t, "delete", "pod", "one", "-n", namespace, "--grace-period=1")
		eventually(t, "the volume of the pod does not exist any more", func() error {
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err == nil && strings.Contains(string(mounts), string(pod.UID)) {
				err = fmt.Errorf("there is a mount of pod %s", pod.UID)
			}
			return err
		})
	})
	t.Run("fifty pods, and the plugin is killed", func(t *testing.T) {
		explainFailure(t)
		killed := false
		startPods(t, namespace, 50, dataKeyVolume, func(*corev1.Pod) {
			if killed {
				return
			}
			killed = true
			if err := syscall.Kill(csiPlugin(t).pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("a pod without permission", func(t *testing.T) {
		explainFailure(t)
		kubectl(t, "delete", "rolebinding", "default-exports", "-n", namespace)
		pod := plainPod(namespace, "denied", dataKeyVolume)
		if err := api.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		eventually(t, "an event says which permission is missing", func() error {
			events := kubectl(t, "get", "events", "-n", namespace, "--field-selector=involvedObject.name=denied", "-o", "jsonpath={.items[*].message}")
			if !strings.Contains(events, "verb export on the DataKey ledger") {
				return fmt.Errorf("the events are %q", events)
			}
			return nil
		})
	})
}

// The same figures as for pods with a plain Secret, for pods that fetch and for CSI volumes.
func TestFigures_podsThatFetch(t *testing.T) {
	install(t, installation{})
	installCSI(t)
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	mayFetch(t, namespace, "default")
	memory := corev1.Volume{Name: "key", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}

	for _, n := range []int{1, 50} {
		for _, way := range []struct {
			name   string
			volume corev1.Volume
			change func(*corev1.Pod)
		}{
			{"that fetches", memory, addFetch},
			{"with a CSI volume", dataKeyVolume, func(*corev1.Pod) {}},
		} {
			median, slowest := startPods(t, namespace, n, way.volume, way.change)
			record(fmt.Sprintf("pod %s, from creation to its start, %d at once: median, slowest", way.name, n),
				fmt.Sprintf("%s %s", rounded(median), rounded(slowest)))
		}
	}
	record("memory of the CSI plugin, at most (VmHWM)", fmt.Sprintf("%d MiB", csiPlugin(t).peak>>20))
}

// addFetch adds the init container of docs/export-to-a-pod.md.
func addFetch(pod *corev1.Pod) {
	automount := true
	pod.Spec.AutomountServiceAccountToken = &automount
	app := pod.Spec.Containers[0]
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	pod.Spec.InitContainers = []corev1.Container{{
		Name: "fetch", Image: operatorImage + ":v1-client", Args: []string{"fetch", "--datakey=ledger", "--output=/run/key/key"},
		Env:             []corev1.EnvVar{field("POD_NAME", "metadata.name"), field("POD_UID", "metadata.uid"), field("POD_NAMESPACE", "metadata.namespace")},
		SecurityContext: app.SecurityContext,
		VolumeMounts:    []corev1.VolumeMount{{Name: "key", MountPath: "/run/key"}},
	}}
}
