package config_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

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

var yamlBlock = regexp.MustCompile("(?s)\n```yaml\n(.*?)\n```")

// The kubelet takes the user from an image, and not the group: a pod that names none has the group 0.
func TestPods_haveAGroup(t *testing.T) {
	t.Parallel()
	pods := map[string]corev1.PodSpec{
		"config/default": managerPod(t, build(t, "default")).Spec,
		"config/gateway": find[appsv1.Deployment](t, build(t, "gateway"), "Deployment", "keyconvoy-gateway").Spec.Template.Spec,
	}
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range yamlBlock.FindAllSubmatch(text, -1) {
			if !bytes.Contains(block[1], []byte("kind: Pod\n")) {
				continue
			}
			pod := find[corev1.Pod](t, parse(t, block[1]), "Pod", "")
			pods[fmt.Sprintf("block %d of %s", i, page)] = pod.Spec
		}
	}
	if len(pods) < 4 {
		t.Errorf("only these pods were found: %v", slices.Collect(maps.Keys(pods)))
	}
	for where, spec := range pods {
		c := spec.SecurityContext
		if c == nil {
			c = &corev1.PodSecurityContext{}
		}
		if c.RunAsGroup != nil && c.RunAsUser == nil {
			t.Errorf("%s has a runAsGroup without a runAsUser, which containerd rejects", where)
		}
		for _, container := range append(spec.InitContainers, spec.Containers...) {
			group := c.RunAsGroup
			if container.SecurityContext != nil && container.SecurityContext.RunAsGroup != nil {
				group = container.SecurityContext.RunAsGroup
			}
			if group == nil || *group == 0 {
				t.Errorf("the container %s of %s has no runAsGroup", container.Name, where)
			}
		}
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
	args = append(args, "--pkcs11-module=vendor=/opt/vendor/lib/libpkcs11.so", "--pkcs11-allow-path=vendor=/etc/vendor") // as the example has it
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
