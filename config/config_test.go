// Package config_test installs what config/ has on a real API server, as far as that goes without
// nodes.
package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
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

// find returns the one object of that kind and name as T.
func find[T any](t testing.TB, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, u := range objects {
		if u.GetKind() == kind && u.GetName() == name {
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

func managerPod(t testing.TB, objects []*unstructured.Unstructured) *corev1.Pod {
	t.Helper()
	deployment := find[appsv1.Deployment](t, objects, "Deployment", "keyconvoy-controller-manager")
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: operatorNamespace, GenerateName: "manager-", Labels: deployment.Spec.Template.Labels},
		Spec:       deployment.Spec.Template.Spec,
	}
}

func TestManager_runsUnderRestrictedPodSecurity(t *testing.T) {
	t.Parallel()
	objects := build(t, "default")
	c, w := warned(t)
	ensureNamespaces(t, c, objects)
	if err := c.Create(t.Context(), managerPod(t, objects), client.DryRunAll); err != nil || len(w.get()) > 0 {
		t.Errorf("the pod is refused: %v %q", err, w.get())
	}

	// The server would say so: with each of these, it does.
	for sentence, weaken := range map[string]func(*corev1.Pod){
		"as root": func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsNonRoot = nil },
		"with privileges to gain": func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = nil
		},
		"with capabilities":         func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext.Capabilities = nil },
		"without a seccomp profile": func(p *corev1.Pod) { p.Spec.SecurityContext.SeccompProfile = nil },
		"with a directory of the node": func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{
				Name: "lib", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/usr/lib"}},
			})
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			c, _ := warned(t)
			pod := managerPod(t, objects)
			weaken(pod)
			if err := c.Create(t.Context(), pod, client.DryRunAll); !apierrors.IsForbidden(err) {
				t.Errorf("a pod %s is taken (%v)", sentence, err)
			}
		})
	}
}

func TestManager_isWiredUp(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := build(t, "default")
	deployment := find[appsv1.Deployment](t, objects, "Deployment", "keyconvoy-controller-manager")
	service := find[corev1.Service](t, objects, "Service", "keyconvoy-controller-manager-metrics")
	template := deployment.Spec.Template
	container := template.Spec.Containers[0]
	ports := map[string]int32{}
	for _, port := range container.Ports {
		ports[port.Name] = port.ContainerPort
	}

	g.Expect(template.Labels).To(Equal(deployment.Spec.Selector.MatchLabels))
	g.Expect(template.Labels).To(Equal(service.Spec.Selector))
	g.Expect(ports).To(HaveKey(service.Spec.Ports[0].TargetPort.String()))
	for _, probe := range []*corev1.Probe{container.LivenessProbe, container.ReadinessProbe} {
		g.Expect(ports).To(HaveKey(probe.HTTPGet.Port.String()))
	}
	g.Expect(container.Args).To(ConsistOf("manager", "--leader-elect",
		fmt.Sprintf("--metrics-bind-address=:%d", ports["metrics"]), fmt.Sprintf("--health-probe-bind-address=:%d", ports["health"])))
	g.Expect(container.Env).To(ContainElement(HaveField("Name", "POD_NAMESPACE")))
	g.Expect(*container.SecurityContext.ReadOnlyRootFilesystem).To(BeTrue())
	g.Expect(container.Resources.Requests).To(And(HaveKey(corev1.ResourceCPU), HaveKey(corev1.ResourceMemory)))
	g.Expect(container.Resources.Limits).To(HaveKey(corev1.ResourceMemory))
	g.Expect(template.Spec.ServiceAccountName).To(Equal(find[corev1.ServiceAccount](t, objects, "ServiceAccount", "keyconvoy-controller-manager").Name))
}

// The binary knows each flag that the Deployment gives it: it reads them all before it shows its help.
func TestManager_argumentsAreTheBinarys(t *testing.T) {
	t.Parallel()
	run := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"run", "."}, args...)...)
		cmd.Dir = ".."
		return cmd.CombinedOutput()
	}
	args := managerPod(t, build(t, "default")).Spec.Containers[0].Args
	args = append(args, "--pkcs11-module=vendor=/opt/vendor/lib/libpkcs11.so") // as the example has it
	if out, err := run(append(args, "--help")...); err != nil {
		t.Errorf("%q: %v\n%s", args, err, out)
	}
	if out, err := run(append(args, "--no-such-flag", "--help")...); err == nil {
		t.Errorf("a flag that does not exist is taken:\n%s", out)
	}
}

// What the commented example in manager.yaml shows is what a person with an HSM needs; it works once it is
// uncommented.
func TestManager_withTheExampleOfAVendorsLibrary(t *testing.T) {
	t.Parallel()
	objects := build(t, "default")
	c, w := warned(t)
	ensureNamespaces(t, c, objects)
	pod := managerPod(t, objects)
	spec := pod.Spec.DeepCopy()
	example := example(t, "manager/manager.yaml")
	container := &spec.Containers[0]
	container.Args = append(container.Args, "--pkcs11-module=vendor=/opt/vendor/lib/libpkcs11.so")
	container.VolumeMounts = example.VolumeMounts
	spec.Volumes = example.Volumes
	if len(container.VolumeMounts) == 0 || len(spec.Volumes) == 0 {
		t.Fatal("the example has no volumes")
	}
	pod.Spec = *spec
	if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil || len(w.get()) > 0 {
		t.Errorf("the pod is refused: %v %q", err, w.get())
	}
}

type volumes struct {
	VolumeMounts []corev1.VolumeMount `json:"volumeMounts"`
	Volumes      []corev1.Volume      `json:"volumes"`
}

// example reads the two commented lists at the end of a manifest.
func example(t testing.TB, file string) volumes {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "# Add to the container:")
	if !found {
		t.Fatalf("%s has no example", file)
	}
	var lines []string
	for line := range strings.Lines(after) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "#   "); ok {
			lines = append(lines, rest)
		}
	}
	var v volumes
	if err := utilyaml.UnmarshalStrict([]byte(strings.Join(lines, "\n")), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSamples_areTakenByTheServer(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c, w := warned(t)
	kustomized := build(t, "samples")
	ensureNamespaces(t, c, kustomized)

	files, err := filepath.Glob("samples/*.yaml")
	g.Expect(err).NotTo(HaveOccurred())
	count := 0
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		g.Expect(err).NotTo(HaveOccurred())
		for _, u := range parse(t, text) {
			count++
			g.Expect(u.GetKind()).NotTo(Equal("Secret"), "%s: Secrets do not belong into Git", file)
			g.Expect(c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("test"), client.DryRunAll)).
				To(Succeed(), file)
		}
		g.Expect(string(text)).To(HavePrefix("#"), "%s does not say what it is", file)
	}
	// All but the key store of the other sort are in the kustomization.
	g.Expect(kustomized).To(HaveLen(count - 1))
	g.Expect(w.get()).To(BeEmpty(), "the server warned")
}

// The samples belong together: each reference finds its object.
func TestSamples_referToEachOther(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := build(t, "samples")
	store := find[v1alpha1.ClusterKeyStore](t, objects, "ClusterKeyStore", "main")
	key := find[v1alpha1.ImportedKey](t, objects, "ImportedKey", "payments")
	dataKey := find[v1alpha1.DataKey](t, objects, "DataKey", "ledger")
	g.Expect(string(key.Spec.KeyStoreRef.Name)).To(Equal(store.Name))
	g.Expect(string(dataKey.Spec.KeyRef.Name)).To(Equal(key.Name))
	for _, name := range []string{"ledger-rsa", "ledger-sm2"} {
		exported := find[v1alpha1.ExportedDataKey](t, objects, "ExportedDataKey", name)
		g.Expect(string(exported.Spec.DataKeyRef.Name)).To(Equal(dataKey.Name))
		g.Expect(string(exported.Spec.PublicKey.ConfigMapKeyRef.Name)).To(Equal("recipients"))
	}
	everywhere := find[v1alpha1.ClusterExportedDataKey](t, objects, "ClusterExportedDataKey", "ledger-everywhere")
	g.Expect(everywhere.Spec.Template.DataKeyRef).To(Equal(v1alpha1.NamespacedReference{
		Namespace: v1alpha1.NamespaceName(dataKey.Namespace), Name: v1alpha1.ObjectName(dataKey.Name),
	}))
	g.Expect(string(everywhere.Spec.Template.PublicKey.ConfigMapKeyRef.Name)).To(Equal("recipients"))
	for _, u := range objects {
		if u.GetKind() != "Namespace" && !strings.HasPrefix(u.GetKind(), "Cluster") {
			g.Expect(u.GetNamespace()).To(Equal("team-a"), u.GetName())
		}
	}
	text, err := os.ReadFile("samples/clusterkeystore_pkcs11.yaml")
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(parse(t, text)[0].GetName()).To(Equal(store.Name), "one takes the place of the other")
}

// plurals of the kinds by the name that their roles have.
var plurals = map[string]string{
	"clusterkeystore":        "clusterkeystores",
	"keystore":               "keystores",
	"importedkey":            "importedkeys",
	"datakey":                "datakeys",
	"exporteddatakey":        "exporteddatakeys",
	"clusterexporteddatakey": "clusterexporteddatakeys",
}

var (
	reading = []string{"get", "list", "watch"}
	writing = []string{"create", "update", "patch", "delete"}
	verbs   = append(slices.Concat(reading, writing), "deletecollection")
)

// Real users with the real roles, asked of the server's own authorizer.
func TestRoles_allowWhatTheyAreCalled(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	objects := build(t, "default")
	for singular, plural := range plurals {
		for role, allowed := range map[string][]string{
			"viewer": reading,
			"editor": slices.Concat(reading, writing),
			"admin":  verbs,
		} {
			t.Run(singular+" "+role, func(t *testing.T) {
				t.Parallel()
				g := NewWithT(t)
				name := "keyconvoy-" + singular + "-" + role + "-role"
				user, ns := name+"-user", ""
				clusterRole := find[rbacv1.ClusterRole](t, objects, "ClusterRole", name)
				g.Expect(env.Client.Create(t.Context(), clusterRole)).To(Succeed())
				subjects := []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: user, APIGroup: rbacv1.GroupName}}
				ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
				if strings.HasPrefix(singular, "cluster") {
					g.Expect(env.Client.Create(t.Context(), &rbacv1.ClusterRoleBinding{
						ObjectMeta: metav1.ObjectMeta{Name: user}, Subjects: subjects, RoleRef: ref,
					})).To(Succeed())
				} else {
					ns = env.Namespace(t)
					g.Expect(env.Client.Create(t.Context(), &rbacv1.RoleBinding{
						ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "b"}, Subjects: subjects, RoleRef: ref,
					})).To(Succeed())
				}
				may := func(verb, resource, subresource, namespace string) bool {
					return mayDo(t, env, user, authorizationv1.ResourceAttributes{
						Group: v1alpha1.GroupVersion.Group, Resource: resource, Subresource: subresource, Verb: verb, Namespace: namespace,
					})
				}
				// The authorizer hears of a binding a moment later.
				g.Eventually(func() bool { return may("get", plural, "", ns) }).Should(BeTrue())

				for _, verb := range verbs {
					g.Expect(may(verb, plural, "", ns)).To(Equal(slices.Contains(allowed, verb)), "%s %s", verb, plural)
					g.Expect(may(verb, plural, "status", ns)).To(Equal(verb == "get"), "%s of the status", verb)
					if ns != "" {
						g.Expect(may(verb, plural, "", "default")).To(BeFalse(), "%s in another namespace", verb)
					}
					for _, other := range plurals {
						if other != plural {
							g.Expect(may(verb, other, "", ns)).To(BeFalse(), "%s %s", verb, other)
						}
					}
				}
			})
		}
	}
}

func mayDo(t testing.TB, env *testenv.Env, user string, what authorizationv1.ResourceAttributes) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: &what},
	}
	if err := env.Client.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

// What the built-in roles get when the cluster adds up the labels. Whoever creates an ExportedDataKey
// reads data keys; whoever changes a ClusterKeyStore decides over everybody's.
func TestRoles_areAddedToTheBuiltInOnesWhereThatIsSafe(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	writers := map[string][]string{} // by built-in role: what may be created
	readers := map[string][]string{}
	inherits := map[string][]string{"view": {"view", "edit", "admin"}, "edit": {"edit", "admin"}, "admin": {"admin"}}
	for _, u := range build(t, "default") {
		if u.GetKind() != "ClusterRole" {
			continue
		}
		role := find[rbacv1.ClusterRole](t, []*unstructured.Unstructured{u}, "ClusterRole", u.GetName())
		for builtin, into := range inherits {
			if role.Labels["rbac.authorization.k8s.io/aggregate-to-"+builtin] != "true" {
				continue
			}
			for _, rule := range role.Rules {
				for _, to := range into {
					if slices.Contains(rule.Verbs, "create") {
						writers[to] = append(writers[to], rule.Resources...)
					}
					if slices.Contains(rule.Verbs, "list") {
						readers[to] = append(readers[to], rule.Resources...)
					}
				}
			}
		}
	}
	unique := func(names []string) []string {
		slices.Sort(names)
		return slices.Compact(names)
	}
	everything := []string{"clusterexporteddatakeys", "clusterkeystores", "datakeys", "exporteddatakeys", "importedkeys", "keystores"}
	for _, builtin := range []string{"view", "edit", "admin"} {
		g.Expect(unique(readers[builtin])).To(Equal(everything), builtin)
	}
	g.Expect(writers["view"]).To(BeEmpty())
	g.Expect(unique(writers["edit"])).To(Equal([]string{"datakeys"}))
	g.Expect(unique(writers["admin"])).To(Equal([]string{"datakeys", "importedkeys", "keystores"}))
}

// The operator has what it uses and no more: nothing by wildcard, nothing that would let it give itself
// more, and no Secret by list of all but where it must watch.
func TestManagerRole_isNarrow(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	role := find[rbacv1.ClusterRole](t, build(t, "default"), "ClusterRole", "keyconvoy-manager-role")
	g.Expect(role.Rules).NotTo(BeEmpty())
	for _, rule := range role.Rules {
		for _, list := range [][]string{rule.APIGroups, rule.Resources, rule.Verbs} {
			g.Expect(list).NotTo(ContainElement("*"))
		}
		g.Expect(rule.Verbs).NotTo(ContainElements("escalate"))
		g.Expect(rule.Verbs).NotTo(ContainElements("bind"))
		g.Expect(rule.Verbs).NotTo(ContainElements("impersonate"))
		g.Expect(rule.Verbs).NotTo(ContainElements("deletecollection"))
		for _, resource := range rule.Resources {
			g.Expect(resource).NotTo(BeElementOf("pods", "pods/exec", "serviceaccounts/token", "nodes", "roles", "clusterroles", "rolebindings", "clusterrolebindings"))
			// Keys are people's: the operator neither makes nor deletes them.
			if slices.Contains([]string{"clusterkeystores", "keystores", "importedkeys", "datakeys"}, resource) {
				g.Expect(rule.Verbs).NotTo(Or(ContainElement("create"), ContainElement("delete")), resource)
			}
			if resource == "configmaps" {
				g.Expect(rule.Verbs).To(HaveEach(BeElementOf("get", "list", "watch")), "ConfigMaps are read only")
			}
		}
	}
}

// The operator's own account, with everything bound as installed.
func TestManager_mayLeadInItsOwnNamespaceOnly(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	objects := build(t, "default")
	ensureNamespaces(t, env.Client, objects)
	for _, u := range objects {
		// The roles of people have tests of their own.
		name := u.GetName()
		if slices.Contains([]string{"Role", "RoleBinding", "ClusterRoleBinding"}, u.GetKind()) ||
			u.GetKind() == "ClusterRole" && slices.Contains([]string{"keyconvoy-manager-role", "keyconvoy-metrics-auth-role"}, name) {
			g.Expect(env.Client.Create(t.Context(), u.DeepCopy())).To(Succeed(), name)
		}
	}
	account := "system:serviceaccount:" + operatorNamespace + ":keyconvoy-controller-manager"
	may := func(verb, group, resource, namespace string) func() bool {
		return func() bool {
			return mayDo(t, env, account, authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Namespace: namespace})
		}
	}
	for _, allowed := range []func() bool{
		may("create", "coordination.k8s.io", "leases", operatorNamespace),
		may("update", "coordination.k8s.io", "leases", operatorNamespace),
		may("create", "", "events", operatorNamespace),
		may("create", "authentication.k8s.io", "tokenreviews", ""),
		may("create", "authorization.k8s.io", "subjectaccessreviews", ""),
		may("watch", "keyconvoy.io", "exporteddatakeys", "team-a"),
		may("patch", "", "secrets", "team-a"),
		may("export", "keyconvoy.io", "datakeys", "team-a"),
	} {
		g.Eventually(allowed).Should(BeTrue())
	}
	for _, forbidden := range []func() bool{
		may("update", "coordination.k8s.io", "leases", "default"),
		may("create", "", "pods", operatorNamespace),
		may("create", "", "serviceaccounts/token", operatorNamespace),
		may("delete", "", "namespaces", ""),
		may("create", "rbac.authorization.k8s.io", "clusterrolebindings", ""),
		may("export", "keyconvoy.io", "importedkeys", "team-a"),
	} {
		g.Expect(forbidden()).To(BeFalse())
	}
}
