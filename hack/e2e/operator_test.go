package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	operatorNamespace  = "keyconvoy-system"
	operatorDeployment = "keyconvoy-controller-manager"
	operatorLabels     = "app.kubernetes.io/name=keyconvoy,app.kubernetes.io/component=manager"
)

// installation is how a test installs the operator, where that differs from the defaults.
type installation struct {
	tag      string   // of the image; v1 if empty
	replicas int      // 1 if zero
	patches  []string // JSON patches of the Deployment
	extra    string   // objects in the operator's namespace
}

// install installs the operator with kubectl, or changes the installation, and waits for the rollout. It creates the key
// store "main".
func install(t *testing.T, i installation) {
	t.Helper()
	explainFailure(t)
	dir := i.write(t)
	kubectl(t, "apply", "-k", dir)
	kubectl(t, "rollout", "status", "deployment", operatorDeployment, "-n", operatorNamespace, "--timeout=3m")
	eventually(t, "no other pod of the operator runs", func() error {
		if n := len(operatorPods(t)); n != max(i.replicas, 1) {
			return fmt.Errorf("%d pods", n)
		}
		return nil
	})
	apply(t, `{apiVersion: keyconvoy.io/v1alpha1, kind: ClusterKeyStore, metadata: {name: main}, spec: {type: Software}}`)
	kubectl(t, "wait", "clusterkeystore/main", "--for=condition=Ready", "--timeout=3m")
}

// write writes the installation as README and docs/install.md describe it, and returns the directory.
func (i installation) write(t *testing.T) string {
	t.Helper()
	if i.tag == "" {
		i.tag = "v1"
	}
	above := t.TempDir()
	config, err := filepath.Abs(filepath.Join(root, "config"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(config, filepath.Join(above, "config")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(above, "my")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	resources, files := "../config/default", map[string]string{}
	if i.extra != "" {
		resources += ", extra.yaml"
		files["extra.yaml"] = i.extra
	}
	var patches []string
	for n, patch := range i.patches {
		name := fmt.Sprintf("patch-%d.yaml", n)
		files[name] = patch
		patches = append(patches, fmt.Sprintf("{path: %s, target: {kind: Deployment, name: %s}}", name, operatorDeployment))
	}
	files["kustomization.yaml"] = fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%s]
images: [{name: keyconvoy, newName: %s, newTag: %s}]
replicas: [{name: %s, count: %d}]
patches: [%s]
`, resources, operatorImage, i.tag, operatorDeployment, max(i.replicas, 1), strings.Join(patches, ", "))
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// operatorPods returns the operator's pods that have not ended.
func operatorPods(t testing.TB) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	labels, err := metav1.ParseToLabelSelector(operatorLabels)
	if err != nil {
		t.Fatal(err)
	}
	if err := api.List(t.Context(), &pods, client.InNamespace(operatorNamespace), client.MatchingLabels(labels.MatchLabels)); err != nil {
		t.Fatal(err)
	}
	var running []corev1.Pod
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == corev1.PodPending {
			running = append(running, pod)
		}
	}
	return running
}

// leader returns the pod that holds the lease.
func leader(t testing.TB) corev1.Pod {
	t.Helper()
	var found corev1.Pod
	eventually(t, "a running pod holds the lease", func() error {
		var lease coordinationv1.Lease
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: operatorNamespace, Name: "manager.keyconvoy.io"}, &lease); err != nil {
			return err
		}
		holder := ""
		if lease.Spec.HolderIdentity != nil {
			holder = *lease.Spec.HolderIdentity
		}
		for _, pod := range operatorPods(t) {
			if holder != "" && strings.Contains(holder, string(pod.UID)) {
				found = pod
				return nil
			}
		}
		return fmt.Errorf("no pod is the holder %q", holder)
	})
	return found
}

// evict deletes a pod as kubectl drain does.
func evict(t testing.TB, pod corev1.Pod) {
	t.Helper()
	if err := api.SubResource("eviction").Create(t.Context(), &pod, &policyv1.Eviction{}); err != nil {
		t.Fatal(err)
	}
}

// process is a process in a pod, as the node sees it.
type process struct {
	pid  int
	peak uint64 // bytes of resident memory, at most
}

// processes returns the processes of a pod with a name.
func processes(t testing.TB, pod corev1.Pod, name string) []process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []process
	for _, dir := range dirs {
		cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || !strings.Contains(string(cgroup), string(pod.UID)) {
			continue // it has ended, or belongs to another pod
		}
		p, err := readProcess(dir, name)
		if err == nil {
			found = append(found, p)
		}
	}
	return found
}

var errOtherName = errors.New("it has another name")

func readProcess(dir, name string) (process, error) {
	var p process
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return p, err
	}
	if p.pid, err = strconv.Atoi(filepath.Base(dir)); err != nil {
		return p, err
	}
	if !strings.HasPrefix(string(status), "Name:\t"+name+"\n") {
		return p, errOtherName
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return p, errors.New("it has no memory any more")
	}
	kib, err := strconv.ParseUint(fields[0], 10, 64)
	p.peak = kib << 10
	return p, err
}

// kill ends the operator's process in a pod as the kernel does when it has no memory.
func kill(t testing.TB, pod corev1.Pod) {
	t.Helper()
	running := processes(t, pod, "keyconvoy")
	if len(running) != 1 {
		t.Fatalf("the operator's processes in %s are %v, want one", pod.Name, running)
	}
	if err := syscall.Kill(running[0].pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// endpoint sends a request to a port of a pod, over TLS if the client has it, and returns the status.
func endpoint(t testing.TB, c *http.Client, url, token string) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := c.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

// rounded returns a duration as figures show it.
func rounded(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
