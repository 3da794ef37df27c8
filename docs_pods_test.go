//go:build cgo

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// checkLedgerPod runs the pod's init container, and makes sure that the namespace refuses what is not
// restricted.
func checkLedgerPod(t *testing.T, w workplace) {
	loose := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "loose"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "loose", Image: "loose"}}},
	}
	if err := w.env.Client.Create(t.Context(), loose); !apierrors.IsForbidden(err) {
		t.Errorf("the namespace takes a pod that is not restricted: %v", err)
	}
	want, err := os.ReadFile(filepath.Join(w.dir, "ledger.key"))
	if err != nil {
		t.Fatal(err)
	}
	var file string
	for pod, mode := range map[string]os.FileMode{"ledger-fetch": 0o400, "ledger-app": 0o600} {
		file = filepath.Join(w.runInitContainer(t, client.ObjectKey{Namespace: "team-a", Name: pod}), "run/keys/ledger.key")
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != mode {
			t.Errorf("the file of %s: %v %v", pod, info, err)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the pod %s has another data key: %v", pod, err)
		}
	}
	program := w.command(t.Context(), "go", "run", "ledger.go", file)
	var warnings bytes.Buffer // of the go command, not of the program
	program.Stderr = &warnings
	out, err := program.Output()
	if err != nil || string(out) != "42 EUR to Ada\n" {
		t.Errorf("the page's program: %v: %s%s", err, out, &warnings)
	}
}

// runInitContainer runs a pod's first init container below a directory that stands for the root, with its
// Secrets mounted as the kubelet does, and returns that directory.
func (w workplace) runInitContainer(t *testing.T, key client.ObjectKey) (root string) {
	t.Helper()
	var pod corev1.Pod
	if err := w.env.Client.Get(t.Context(), key, &pod); err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	container := pod.Spec.InitContainers[0]
	for _, mount := range container.VolumeMounts {
		dir := filepath.Join(root, mount.MountPath)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name })
		volume := pod.Spec.Volumes[i]
		if volume.EmptyDir != nil && volume.EmptyDir.Medium == corev1.StorageMediumMemory {
			inMemory(t, dir)
		}
		if volume.Secret != nil {
			var secret corev1.Secret
			if err := w.env.Client.Get(t.Context(), client.ObjectKey{Namespace: key.Namespace, Name: volume.Secret.SecretName}, &secret); err != nil {
				t.Fatal(err)
			}
			mountSecret(t, dir, &secret, os.FileMode(ptr.Deref(volume.Secret.DefaultMode, 0o644)))
		}
	}
	var args []string
	for _, arg := range container.Args {
		args = append(args, strings.ReplaceAll(arg, "=/", "="+root+"/"))
	}
	command := w.command(t.Context(), filepath.Join(w.bin, "keyconvoy"), args...)
	if ptr.Deref(pod.Spec.AutomountServiceAccountToken, true) && container.Args[0] == "fetch" {
		command.Env = append(command.Env, "KUBECONFIG="+w.credentialsOf(t, &pod))
		for _, variable := range container.Env {
			command.Env = append(command.Env, variable.Name+"="+fieldOf(t, &pod, variable.ValueFrom.FieldRef.FieldPath))
		}
	}
	if out, err := command.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	return root
}

// inMemory puts a directory in memory, in place of one that is not.
func inMemory(t *testing.T, dir string) {
	t.Helper()
	memory, err := os.MkdirTemp("/dev/shm", "keyconvoy-docs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	if err := errors.Join(os.Remove(dir), os.Symlink(memory, dir)); err != nil {
		t.Fatal(err)
	}
}

// credentialsOf returns a kubeconfig with a token of the pod's ServiceAccount.
func (w workplace) credentialsOf(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Spec.ServiceAccountName}}
	request := &authenticationv1.TokenRequest{}
	if err := w.env.Client.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatal(err)
	}
	cfg := rest.AnonymousClientConfig(w.env.Config)
	cfg.BearerToken = request.Status.Token
	return w.env.Kubeconfig(t, cfg, pod.Namespace)
}

// fieldOf is a field of a pod, as the downward API gives it to a container.
func fieldOf(t *testing.T, pod *corev1.Pod, path string) string {
	t.Helper()
	value, ok := map[string]string{"metadata.name": pod.Name, "metadata.uid": string(pod.UID), "metadata.namespace": pod.Namespace}[path]
	if !ok {
		t.Fatalf("the test does not know the field %s", path)
	}
	return value
}

// mountSecret lays a Secret out as the kubelet does: the files are in a directory of their time, ..data
// leads there, and each entry leads through ..data.
func mountSecret(t *testing.T, dir string, secret *corev1.Secret, mode os.FileMode) {
	t.Helper()
	const stamp = "..2026_01_02_03_04_05.123456789"
	if err := os.Mkdir(filepath.Join(dir, stamp), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(stamp, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	for name, content := range secret.Data {
		if err := os.WriteFile(filepath.Join(dir, stamp, name), content, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}
