package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// The pods of the documents, as they are printed. They are in the namespace team-a, with the DataKey ledger.
func TestDocuments_podsReadTheDataKey(t *testing.T) {
	install(t, installation{})
	installCSI(t) // before the namespace, because the driver must be there when its pods end
	const namespace = "team-a"
	kubectl(t, "create", "namespace", namespace)
	t.Cleanup(func() { deleteNamespace(t, namespace) })
	kubectl(t, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
	newDataKey(t, namespace, "ClusterKeyStore", "main")

	t.Run("README", func(t *testing.T) {
		explainFailure(t)
		mayFetch(t, namespace, "reader")
		applyBlock(t, "README.md", "# reader.yaml")
		waitReady(t, namespace, "pod/reader")
		pod := get(t, &corev1.Pod{}, namespace, "reader")
		r := newRecipient(t)
		key, _ := r.exportNow(t, namespace, "ledger-rsa")
		equal(t, "the file of the pod", readInPod(t, *pod, "sleep", "/run/keys/ledger"), key)
	})

	t.Run("Export to a pod, in an init container", func(t *testing.T) {
		explainFailure(t)
		mayFetch(t, namespace, "ledger")
		applyBlock(t, "docs/export-to-a-pod.md", "# ledger-fetch.yaml")
		usesDataKey(t, namespace, "ledger-fetch")
	})

	t.Run("Export to a pod, in a volume", func(t *testing.T) {
		explainFailure(t)
		applyBlock(t, "docs/export-to-a-pod.md", "# ledger-volume.yaml")
		usesDataKey(t, namespace, "ledger-volume")
	})

	t.Run("Export to a pod, with a private key in a Secret", func(t *testing.T) {
		explainFailure(t)
		dir := t.TempDir()
		openssl := exec.CommandContext(t.Context(), "openssl", strings.Fields(
			"req -x509 -newkey rsa:2048 -nodes -days 90 -subj /CN=ledger-app -keyout tls.key -out tls.crt")...)
		openssl.Dir = dir
		if out, err := openssl.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		kubectl(t, "create", "secret", "tls", "ledger-app", "-n", namespace,
			"--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"))
		applyBlock(t, "docs/export-to-a-pod.md", "# ledger-app.yaml")
		usesDataKey(t, namespace, "ledger-app")
	})
}

// usesDataKey waits until the program of docs/export-to-a-pod.md has used the data key.
func usesDataKey(t testing.TB, namespace, pod string) {
	t.Helper()
	eventually(t, "the program has used the data key", func() error {
		out, err := command("logs", "-n", namespace, pod, "--container=app").CombinedOutput()
		if err == nil && string(out) != "42 EUR to Ada\n" {
			err = fmt.Errorf("its output is %q", out)
		}
		return err
	})
}

// applyBlock applies a manifest of a document.
func applyBlock(t testing.TB, document, firstLine string) {
	t.Helper()
	manifest, err := readBlock(filepath.Join(root, document), firstLine)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, manifest)
}

// readInPod reads a file in the memory of a pod, through the root of one of its processes.
func readInPod(t testing.TB, pod corev1.Pod, program, file string) []byte {
	t.Helper()
	var running []process
	eventually(t, "the program runs", func() error { // the container is ready a moment earlier
		if running = processes(t, pod, program); len(running) != 1 {
			return fmt.Errorf("the processes %s in %s are %v, want one", program, pod.Name, running)
		}
		return nil
	})
	content, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(running[0].pid), "root", file))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Figures of pods, with which later ones are compared: from the creation of a pod to the start of its container, with
// the data key's Secret as a plain volume.
func TestFigures_podsWithAPlainSecret(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	newRecipient(t).exportNow(t, namespace, "export")

	for _, n := range []int{1, 50} {
		median, slowest := startPods(t, namespace, n, corev1.Volume{
			Name: "key", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "export"}},
		})
		record(fmt.Sprintf("pod with a plain Secret, from creation to its start, %d at once: median, slowest", n),
			fmt.Sprintf("%s %s", rounded(median), rounded(slowest)))
	}
}

// startPods creates n pods at once whose container mounts a volume, and returns the median and the slowest time from the
// creation to the start of the container. The kubelet's status has whole seconds only, so the times are those of a watch.
func startPods(t *testing.T, namespace string, n int, volume corev1.Volume, change ...func(*corev1.Pod)) (median, slowest time.Duration) {
	t.Helper()
	labels := map[string]string{"pods": fmt.Sprint(n)}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := api.Watch(ctx, &corev1.PodList{}, client.InNamespace(namespace), client.MatchingLabels(labels))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	created := map[string]time.Time{}
	for i := range n {
		pod := plainPod(namespace, fmt.Sprintf("pod-%d-%d", n, i), volume)
		pod.Labels = labels
		for _, c := range change {
			c(pod)
		}
		created[pod.Name] = time.Now()
		if err := api.Create(ctx, pod); err != nil {
			t.Fatal(err)
		}
	}

	var times []time.Duration
	for len(created) > 0 {
		event, ok := <-events.ResultChan()
		if !ok {
			t.Fatalf("%d pods have not started within %s", len(created), patience)
		}
		pod, ok := event.Object.(*corev1.Pod)
		if !ok || !started(pod) {
			continue
		}
		if at, ok := created[pod.Name]; ok {
			times = append(times, time.Since(at))
			delete(created, pod.Name)
		}
	}
	slices.Sort(times)
	err = api.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace), client.MatchingLabels(labels), client.GracePeriodSeconds(0))
	if err != nil {
		t.Fatal(err)
	}
	return times[n/2], times[n-1]
}

func started(pod *corev1.Pod) bool {
	statuses := pod.Status.ContainerStatuses
	return len(statuses) == 1 && statuses[0].State.Running != nil
}

// plainPod is a pod with one container that sleeps, under the restricted Pod Security Standard.
func plainPod(namespace, name string, volume corev1.Volume) *corev1.Pod {
	yes, no, user := true, false, int64(65532)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, FSGroup: &user,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "app", Image: debianImage, Command: []string{"sleep", "infinity"},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: volume.Name, MountPath: "/run/key", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{volume},
		},
	}
}

// The memory of the operator after a load, as the kernel counts it.
func TestFigures_memoryOfTheOperator(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	r := newRecipient(t)
	const exports = 1000
	for i := range exports {
		if err := api.Create(t.Context(), r.export(t, namespace, fmt.Sprintf("export-%04d", i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all exports are ready", func() error {
		var list v1alpha1.ExportedDataKeyList
		if err := api.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		for _, export := range list.Items {
			if export.Status.SecretRef == nil {
				return fmt.Errorf("%s is not", export.Name)
			}
		}
		return nil
	})
	running := processes(t, leader(t), "keyconvoy")
	if len(running) != 1 {
		t.Fatalf("the operator's processes are %v, want one", running)
	}
	record(fmt.Sprintf("memory of the operator with %d exports, at most (VmHWM)", exports), fmt.Sprintf("%d MiB", running[0].peak>>20))
}
