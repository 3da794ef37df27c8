package config_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// release is the chart on an API server, by the real helm.
type release struct {
	t          *testing.T
	env        *testenv.Env
	client     client.Client
	kubeconfig string
}

func newRelease(t *testing.T) release {
	t.Helper()
	env := testenv.Another(t)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	// The API server of a test has the kinds. Helm must install them.
	if err := c.DeleteAllOf(t.Context(), &apiextensionsv1.CustomResourceDefinition{}); err != nil {
		t.Fatal(err)
	}
	NewWithT(t).Eventually(func() ([]apiextensionsv1.CustomResourceDefinition, error) {
		var crds apiextensionsv1.CustomResourceDefinitionList
		err := c.List(t.Context(), &crds)
		return crds.Items, err
	}).Should(BeEmpty())
	return release{t, env, c, env.Kubeconfig(t, nil, "")}
}

func (r release) helm(args ...string) {
	r.t.Helper()
	args = append(args, "--kubeconfig", r.kubeconfig, "--namespace", operatorNamespace)
	if out, err := helm(r.t, args...).CombinedOutput(); err != nil {
		r.t.Fatalf("helm %q: %v\n%s", args, err, out)
	}
}

func (r release) install() {
	r.t.Helper()
	r.helm("install", "keyconvoy", "chart", "--create-namespace", "--take-ownership")
}

func (r release) get(object client.Object, name, namespace string) error {
	return r.client.Get(r.t.Context(), client.ObjectKey{Name: name, Namespace: namespace}, object)
}

const storesCRD = "clusterkeystores.keyconvoy.io"

func TestChart_installUpgradeUninstallAndInstallAgain(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newRelease(t)
	r.install()
	var namespace corev1.Namespace
	g.Expect(r.get(&namespace, operatorNamespace, "")).To(Succeed())
	g.Expect(namespace.Labels).To(HaveKeyWithValue("pod-security.kubernetes.io/enforce", "restricted"))
	var deployment appsv1.Deployment
	g.Expect(r.get(&deployment, "keyconvoy-controller-manager", operatorNamespace)).To(Succeed())
	store := &v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: "main"}}
	store.Spec.Type = v1alpha1.KeyStoreSoftware
	g.Eventually(func() error { return r.client.Create(t.Context(), store.DeepCopy()) }).Should(Succeed())

	// An upgrade also changes the kinds.
	r.helm("upgrade", "keyconvoy", r.changedChart(), "--set", "replicas=2")
	var crd apiextensionsv1.CustomResourceDefinition
	g.Expect(r.get(&crd, storesCRD, "")).To(Succeed())
	g.Expect(crd.Spec.Names.ShortNames).To(ContainElement("changed"))
	g.Expect(r.get(&deployment, deployment.Name, operatorNamespace)).To(Succeed())
	g.Expect(deployment.Spec.Replicas).To(HaveValue(BeEquivalentTo(2)))

	// The end of the release deletes no key.
	r.helm("uninstall", "keyconvoy")
	g.Eventually(func() bool {
		return apierrors.IsNotFound(r.get(&deployment, deployment.Name, operatorNamespace))
	}).Should(BeTrue())
	g.Expect(r.get(store, "main", "")).To(Succeed())
	g.Expect(store.DeletionTimestamp).To(BeNil())
	g.Expect(r.get(&namespace, operatorNamespace, "")).To(Succeed())
	g.Expect(namespace.DeletionTimestamp).To(BeNil())

	r.install()
	g.Expect(r.get(&deployment, deployment.Name, operatorNamespace)).To(Succeed())
	g.Expect(r.get(&crd, storesCRD, "")).To(Succeed())
	g.Expect(crd.Spec.Names.ShortNames).NotTo(ContainElement("changed"))
}

// changedChart is the chart with another short name of a kind.
func (r release) changedChart() string {
	r.t.Helper()
	dir := filepath.Join(r.t.TempDir(), "chart")
	if err := os.CopyFS(dir, os.DirFS("chart")); err != nil {
		r.t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "files/default/*_"+storesCRD+".yaml"))
	if err != nil || len(files) != 1 {
		r.t.Fatalf("%q %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		r.t.Fatal(err)
	}
	changed := strings.Replace(string(text), "    - ckst\n", "    - ckst\n    - changed\n", 1)
	if changed == string(text) {
		r.t.Fatalf("%s has no short name ckst", files[0])
	}
	if err := os.WriteFile(files[0], []byte(changed), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// An installation that kubectl made can be continued with helm.
func TestChart_takesOverFromKubectl(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	r := newRelease(t)
	out, err := exec.CommandContext(t.Context(), r.env.Kubectl(), "--kubeconfig", r.kubeconfig, "apply", "-k", "default").CombinedOutput()
	g.Expect(err).NotTo(HaveOccurred(), string(out))
	r.helm("install", "keyconvoy", "chart", "--take-ownership", "--force-conflicts", "--set", "replicas=2")
	var deployment appsv1.Deployment
	g.Expect(r.get(&deployment, "keyconvoy-controller-manager", operatorNamespace)).To(Succeed())
	g.Expect(deployment.Spec.Replicas).To(HaveValue(BeEquivalentTo(2)))
}
