// Package testenv gives tests a real API server: one for each test binary, started when the first test
// asks for it. Only tests import it.
//
// A package that uses it says so once:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// and then, in each test, env := testenv.Start(t) and ns := env.Namespace(t). Tests share the server
// and never a namespace, so they may run in parallel.
package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	// Config is an administrator's. Copy it before changing it.
	Config *rest.Config
	// Client reads and writes as the administrator, without a cache.
	Client client.Client
	// Scheme knows the built-in kinds, CustomResourceDefinition and ours.
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

// Main runs a package's tests and then stops the API server, if a test started one. after is what else
// is to be done once the tests are over: Main ends the process.
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

// Start returns the API server of this process and starts it first if need be. It never skips: without
// the binaries the test fails and says what to run.
func Start(t testing.TB) *Env {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.env == nil && shared.err == nil {
		shared.env, shared.err = start()
	}
	if shared.err != nil {
		t.Fatalf("No API server to test on: %v", shared.err)
	}
	return shared.env
}

// Another starts an API server of the test's own, which ends with the test: for tests of several clusters.
func Another(t testing.TB) *Env {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	env, err := start()
	if err != nil {
		t.Fatalf("No other API server to test on: %v", err)
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
		return nil, errors.New("nobody would stop it; add to the package's tests:\n\tfunc TestMain(m *testing.M) { testenv.Main(m) }")
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
		// Machines that run all packages' tests at once are slow, and nobody waits for this time
		// unless something is wrong.
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
		CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: 2 * time.Minute},
	}
	if env.Config, err = env.server.Start(); err != nil {
		return nil, errors.Join(err, env.server.Stop())
	}
	env.guard = startGuard(env.server.ControlPlane.Etcd.DataDir, env.server.ControlPlane.APIServer.CertDir)
	// As in the product: the API server's Priority and Fairness is the limit.
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

// binaries fails early and in plain words where envtest would wait and then name a path.
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

// Root is the directory of the repository: the nearest one above the running test that has a go.mod.
// (A source file's own path does not say it when the tests are built with -trimpath.)
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

// Kubectl is the path of the kubectl that belongs to the API server.
func (e *Env) Kubectl() string { return filepath.Join(os.Getenv(assets), "kubectl") }

// Namespace makes a namespace for one test. Namespaces are not deleted: there is no namespace controller,
// and the server does not outlive the tests.
func (e *Env) Namespace(t testing.TB) string {
	t.Helper()
	return e.NamespaceWith(t, nil)
}

var namespaces atomic.Int64

// NamespaceWith is Namespace with labels.
func (e *Env) NamespaceWith(t testing.TB, labels map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("test-%d", namespaces.Add(1)), Labels: labels,
	}}
	if err := e.Client.Create(t.Context(), ns); err != nil {
		t.Fatalf("Making a namespace: %v", err)
	}
	return ns.Name
}
