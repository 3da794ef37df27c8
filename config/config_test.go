// Package config_test installs what config/ has on a real API server, as far as that goes without
// nodes.
package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestMain(m *testing.M) {
	// The API server looks for new policies and roles once in a while: often within a second, Gomega's own limit.
	SetDefaultEventuallyTimeout(time.Minute)
	testenv.Main(m)
}

const operatorNamespace = "keyconvoy-system"

// build renders a kustomization, with the kustomize in kubectl.
func build(t testing.TB, dir string) []*unstructured.Unstructured {
	t.Helper()
	env := testenv.Start(t)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), env.Kubectl(), "kustomize", dir)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kubectl kustomize %s: %v\n%s", dir, err, &stderr)
	}
	if stderr.Len() > 0 {
		t.Errorf("kubectl kustomize %s warns: %s", dir, &stderr)
	}
	return parse(t, out)
}

func parse(t testing.TB, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		u := &unstructured.Unstructured{}
		switch err := decoder.Decode(u); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		case len(u.Object) > 0:
			all = append(all, u)
		}
	}
}

// find returns the one object of that kind and name, or of any name if that is empty, as T.
func find[T any](t testing.TB, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, u := range objects {
		if u.GetKind() == kind && (name == "" || u.GetName() == name) {
			typed := new(T)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, typed, true); err != nil {
				t.Fatal(err)
			}
			return typed
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

// warnings are what the API server says beside its answers, such as that a pod would be refused.
type warnings struct {
	mu  sync.Mutex
	all []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

func (w *warnings) get() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

// warned returns an administrator's client and what it is warned of.
func warned(t testing.TB) (client.Client, *warnings) {
	t.Helper()
	env := testenv.Start(t)
	w := &warnings{}
	cfg := rest.CopyConfig(env.Config)
	cfg.WarningHandler = w
	c, err := client.New(cfg, client.Options{Scheme: env.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	return client.WithFieldValidation(c, metav1.FieldValidationStrict), w
}

// namespaces of the manifests are made for good, because a dry run in one that is not there fails. Tests
// share them and put nothing in.
var namespaces sync.Mutex

func ensureNamespaces(t testing.TB, c client.Client, objects []*unstructured.Unstructured) {
	t.Helper()
	namespaces.Lock()
	defer namespaces.Unlock()
	for _, u := range objects {
		if u.GetKind() == "Namespace" {
			if err := client.IgnoreAlreadyExists(c.Create(t.Context(), u.DeepCopy())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDefault_isTakenByTheServer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, w := warned(t)
	objects := build(t, "default")
	ensureNamespaces(t, c, objects)
	for _, u := range objects {
		err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("test"), client.DryRunAll, client.ForceOwnership)
		g.Expect(err).NotTo(HaveOccurred(), "%s %s", u.GetKind(), u.GetName())
		if u.GetNamespace() != "" {
			g.Expect(u.GetNamespace()).To(Equal(operatorNamespace))
		}
		g.Expect(u.GetLabels()).To(HaveKeyWithValue("app.kubernetes.io/name", "keyconvoy"), "%s %s", u.GetKind(), u.GetName())
	}
	g.Expect(w.get()).To(BeEmpty(), "the server warned")
}

// As people do without --server-side; then kubectl keeps the whole object in an annotation.
func TestDefault_isTakenByAPlainKubectlApply(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	objects := build(t, "default")
	ensureNamespaces(t, env.Client, objects)
	out, err := exec.CommandContext(t.Context(), env.Kubectl(), "--kubeconfig", env.Kubeconfig(t, nil, ""),
		"apply", "--dry-run=server", "-k", "default").CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), string(out))

	const limit = 262144 // of all annotations of an object
	for _, u := range objects {
		text, err := json.Marshal(u)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(len(text)).To(BeNumerically("<", limit/2), "%s %s", u.GetKind(), u.GetName())
	}
}

// The CRDs alone, and each file of them.
func TestCRD_hasEveryBase(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	bases, err := filepath.Glob("crd/bases/*.yaml")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(build(t, "crd")).To(HaveLen(len(bases)), "a base is not in the kustomization")
}

// kubectl compares what is applied with what it applied before, so a field that the server fills in shows as a change
// each time.
func TestDefault_appliedTwice_changesNothing(t *testing.T) {
	t.Parallel()
	env := testenv.Another(t)
	kubeconfig := env.Kubeconfig(t, nil, "")
	apply := func() string {
		out, err := exec.CommandContext(t.Context(), env.Kubectl(), "--kubeconfig", kubeconfig, "apply", "-k", "default").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	apply()
	lines := strings.Split(apply(), "\n")
	if len(lines) != len(build(t, "default")) {
		t.Errorf("%d objects were applied: %q", len(lines), lines)
	}
	for _, line := range lines {
		if !strings.HasSuffix(line, " unchanged") {
			t.Errorf("the second time kubectl says: %s", line)
		}
	}
}
