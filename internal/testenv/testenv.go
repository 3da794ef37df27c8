// Package testenv provides an API server for tests: one for each test binary, started by the first test that needs it.
// Only tests import it.
//
// A package that uses it has:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// and then, in each test, env := testenv.Start(t) and ns := env.Namespace(t). Tests share the API server but not their
// namespaces, so they can run in parallel.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Env is the API server of this process, with Keyconvoy's CRDs.
type Env struct {
	// Config has the permissions of an administrator. Copy it before you change it.
	Config *rest.Config
	// Client has the permissions of an administrator, and no cache.
	Client client.Client
	// Scheme contains the built-in kinds, CustomResourceDefinition and Keyconvoy's kinds.
	Scheme *runtime.Scheme

	server *envtest.Environment
	guard  *guard
	again  func() // ends the API server that Restart started
}

var shared struct {
	sync.Mutex
	inMain bool
	env    *Env
	err    error
}

// Main runs the tests of a package, calls the functions in after, stops the API server if a test started one, and exits
// the process.
func Main(m *testing.M, after ...func()) {
	shared.inMain = true
	code := m.Run()
	for _, do := range after {
		do()
	}
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "Stopping the API server:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Start returns the API server of this process, and starts it if it is not running. If the binaries are missing, the test
// fails with a message that says what to run.
func Start(t testing.TB) *Env {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.env == nil && shared.err == nil {
		shared.env, shared.err = start()
	}
	if shared.err != nil {
		t.Fatalf("Starting the API server: %v", shared.err)
	}
	return shared.env
}

// Another starts another API server, which ends with the test, for tests of several clusters.
func Another(t testing.TB) *Env {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	env, err := start()
	if err != nil {
		t.Fatalf("Starting another API server: %v", err)
	}
	t.Cleanup(func() {
		if err := env.stop(); err != nil {
			t.Errorf("Stopping the other API server: %v", err)
		}
	})
	return env
}

func start() (*Env, error) {
	if !shared.inMain {
		return nil, errors.New("the package does not stop the API server; add to its tests:\n\tfunc TestMain(m *testing.M) { testenv.Main(m) }")
	}
	if err := binaries(); err != nil {
		return nil, err
	}
	root, err := Root()
	if err != nil {
		return nil, err
	}
	env := &Env{Scheme: runtime.NewScheme()}
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, v1alpha1.AddToScheme,
	} {
		if err := add(env.Scheme); err != nil {
			return nil, err
		}
	}
	no := false
	env.server = &envtest.Environment{
		Scheme:                env.Scheme,
		CRDDirectoryPaths:     []string{filepath.Join(root, "config", "crd", "bases")},
		ErrorIfCRDPathMissing: true,
		UseExistingCluster:    &no,
		// A machine that runs the tests of all packages at once is slow. These limits matter only if the start or stop
		// fails.
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
		CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: 2 * time.Minute},
	}
	if env.Config, err = env.server.Start(); err != nil {
		return nil, errors.Join(err, env.server.Stop())
	}
	env.guard = startGuard(env.server.ControlPlane.Etcd.DataDir, env.server.ControlPlane.APIServer.CertDir)
	// As in the operator, API Priority and Fairness limits the requests.
	env.Config.QPS = -1
	if env.Client, err = client.New(env.Config, client.Options{Scheme: env.Scheme}); err != nil {
		return nil, errors.Join(err, env.stop())
	}
	return env, nil
}

func stop() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.env == nil {
		return nil
	}
	return shared.env.stop()
}

func (e *Env) stop() error {
	if e.again != nil {
		e.again()
	}
	err := e.server.Stop()
	e.guard.dismiss()
	return err
}

const assets = "KUBEBUILDER_ASSETS"

// binaries returns an error that says what to run if the binaries are missing. The error of envtest only names a path.
func binaries() error {
	dir := os.Getenv(assets)
	if dir == "" {
		return fmt.Errorf("%s is not set. Run `make test`, which builds kube-apiserver and etcd and sets it, or after it: export %s=$PWD/bin/controlplane", assets, assets)
	}
	for _, name := range []string{"kube-apiserver", "etcd"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s: %w. Run `make test`, which builds it", assets, err)
		}
	}
	return nil
}

// Root returns the directory of the repository: the nearest directory with a go.mod at or above the working directory of
// the test. (With -trimpath, the path of a source file does not contain it.)
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above %s", start)
		}
	}
}

// Kubectl returns the path of the kubectl with the version of the API server.
func (e *Env) Kubectl() string { return filepath.Join(os.Getenv(assets), "kubectl") }

// Namespace creates a namespace for one test and returns its name. It is not deleted: there is no namespace controller, and
// the API server ends with the tests.
func (e *Env) Namespace(t testing.TB) string {
	t.Helper()
	return e.NamespaceWith(t, nil)
}

var namespaces atomic.Int64

// NamespaceWith creates a namespace with labels.
func (e *Env) NamespaceWith(t testing.TB, labels map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("test-%d", namespaces.Add(1)), Labels: labels,
	}}
	if err := e.Client.Create(t.Context(), ns); err != nil {
		t.Fatalf("Creating a namespace: %v", err)
	}
	namespaceTests.Store(ns.Name, t.Name())
	t.Cleanup(func() { e.empty(ns.Name) })
	return ns.Name
}

// empty deletes what the operators of later tests would otherwise list and keep in their caches: they watch these kinds whole.
func (e *Env) empty(namespace string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, kind := range []client.Object{&corev1.Secret{}, &corev1.ConfigMap{}} {
		_ = e.Client.DeleteAllOf(ctx, kind, client.InNamespace(namespace)) // the test may have stopped the API server
	}
}

// namespaceTests are the names of the tests that created the namespaces, by namespace.
var namespaceTests sync.Map

// MadeByAnother reports whether a namespace was created by another test than the given one, its subtests and its parents.
func MadeByAnother(namespace, test string) bool {
	maker, ok := namespaceTests.Load(namespace)
	if !ok {
		return false
	}
	name := maker.(string)
	return name != test && !strings.HasPrefix(name, test+"/") && !strings.HasPrefix(test, name+"/")
}
