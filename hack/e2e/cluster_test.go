package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// patience is how long the tests wait for what must happen. No machine is that slow.
const patience = 4 * time.Minute

// eventually calls check until it returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-timeout:
			t.Fatalf("Still not after %s: %s: %v", patience, what, err)
		case <-tick.C:
		}
	}
}

// kubectl runs kubectl and returns its output.
func kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "", "kubectl", args...)
}

// command is kubectl, for commands that may fail, or that run while the test goes on.
func command(args ...string) *exec.Cmd { return exec.Command("kubectl", args...) }

// apply applies a manifest.
func apply(t testing.TB, manifest string) {
	t.Helper()
	run(t, manifest, "kubectl", "apply", "-f", "-")
}

// run runs a command with an input and returns its output.
func run(t testing.TB, input, name string, args ...string) string {
	t.Helper()
	// The context of the test ends before its cleanup.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, stderr.String())
	}
	return string(out)
}

// get reads an object by name.
func get[T client.Object](t testing.TB, object T, namespace, name string) T {
	t.Helper()
	if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, object); err != nil {
		t.Fatal(err)
	}
	return object
}

// newNamespace creates a namespace for the test, under the restricted Pod Security Standard, and deletes it at the end.
func newNamespace(t testing.TB) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "e2e-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	if err := api.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteNamespace(t, namespace.Name) })
	return namespace.Name
}

// deleteNamespace deletes a namespace and returns when it no longer exists.
func deleteNamespace(t testing.TB, name string) {
	t.Helper()
	ctx := context.Background()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := client.IgnoreNotFound(api.Delete(ctx, namespace)); err != nil {
		t.Error(err)
		return
	}
	eventually(t, "the namespace "+name+" is deleted", func() error {
		err := api.Get(ctx, client.ObjectKeyFromObject(namespace), namespace)
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		var why []string
		for _, c := range namespace.Status.Conditions {
			if c.Status == corev1.ConditionTrue {
				why = append(why, c.Message)
			}
		}
		return errors.New(strings.Join(why, "; "))
	})
}

// explainFailure writes what is needed to understand a failure into a file beside the node's logs, when the test has
// failed.
func explainFailure(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		var report bytes.Buffer
		for _, args := range []string{
			"get pods --all-namespaces --output=wide",
			"describe pods --namespace=" + operatorNamespace,
			"logs --namespace=" + operatorNamespace + " --selector=" + operatorLabels + " --prefix --tail=500",
			"logs --namespace=" + operatorNamespace + " --selector=" + operatorLabels + " --prefix --tail=500 --previous",
			"get keyconvoy --all-namespaces --output=yaml",
			"get events --all-namespaces --sort-by=.lastTimestamp",
		} {
			fmt.Fprintf(&report, "\n=== kubectl %s\n", args)
			cmd := command(strings.Fields(args)...)
			cmd.Stdout, cmd.Stderr = &report, &report
			_ = cmd.Run() // its error is in the report
		}
		file := filepath.Join(os.Getenv("NODE_LOGS"), strings.ReplaceAll(t.Name(), "/", "-")+".txt")
		if err := os.WriteFile(file, report.Bytes(), 0o600); err != nil {
			t.Error(err)
		}
		t.Logf("The state of the cluster at the failure is in %s.", file)
	})
}
