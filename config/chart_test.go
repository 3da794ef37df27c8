package config_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// helm prepares the real helm, which make test builds.
func helm(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	binary := os.Getenv("HELM")
	if binary == "" {
		t.Fatal("HELM is not set. Run make test, which builds helm and sets it.")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+dir, "HELM_CONFIG_HOME="+dir, "HELM_DATA_HOME="+dir)
	return cmd
}

// render renders the chart with values.
func render(t testing.TB, values string) []*unstructured.Unstructured {
	t.Helper()
	var stderr bytes.Buffer
	cmd := helm(t, "template", "keyconvoy", "chart", "--namespace", operatorNamespace, "--kube-version", "1.37", "--values", "-")
	cmd.Stdin, cmd.Stderr = strings.NewReader(values), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	return parse(t, out)
}

// byName returns the text of each object, without what only the chart has.
func byName(t testing.TB, objects []*unstructured.Unstructured) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, u := range objects {
		u = u.DeepCopy()
		unstructured.RemoveNestedField(u.Object, "metadata", "annotations", "helm.sh/resource-policy")
		if len(u.GetAnnotations()) == 0 {
			u.SetAnnotations(nil)
		}
		text, err := yaml.Marshal(u.Object)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Join([]string{u.GetKind(), u.GetNamespace(), u.GetName()}, " ")
		if texts[name] != "" {
			t.Errorf("%s is there twice", name)
		}
		texts[name] = string(text)
	}
	return texts
}

// expectSame compares objects with those of a kustomization.
func expectSame(t testing.TB, objects, want []*unstructured.Unstructured) {
	t.Helper()
	got, wanted := byName(t, objects), byName(t, want)
	for name, text := range wanted {
		if got[name] == "" {
			t.Errorf("the chart has no %s", name)
			continue
		}
		for line := range strings.Lines(text) {
			if !strings.Contains(got[name], line) {
				t.Errorf("%s of the chart has no line %q", name, strings.TrimSpace(line))
			}
		}
		if !t.Failed() && got[name] != text {
			t.Errorf("%s of the chart is\n%s\nand not\n%s", name, got[name], text)
		}
	}
	for name := range got {
		if wanted[name] == "" {
			t.Errorf("only the chart has %s", name)
		}
	}
}

func TestChart_rendersWhatIsInstalledWithKubectl(t *testing.T) {
	t.Parallel()
	for sentence, c := range map[string]struct {
		values string
		want   []*unstructured.Unstructured
	}{
		"by default":          {"", build(t, "default")},
		"for some namespaces": {"namespaces: [team-a, team-b]", build(t, "namespaced")},
		"with monitoring":     {"monitoring: {enabled: true}", append(build(t, "default"), build(t, "monitoring")...)},
		"with the CSI driver": {
			"csi: {enabled: true, image: {repository: keyconvoy-client, tag: latest}}", append(build(t, "default"), build(t, "csi")...),
		},
		"with the gateway":           {"gateway: {enabled: true}", append(build(t, "default"), build(t, "gateway")...)},
		"without policies":           {"policies: {enabled: false}", without(build(t, "default"), "ValidatingAdmissionPolicy")},
		"without the network policy": {"networkPolicy: {enabled: false}", without(build(t, "default"), "NetworkPolicy")},
		"without the namespace":      {"createNamespace: false", without(build(t, "default"), "Namespace")},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			expectSame(t, render(t, c.values), c.want)
		})
	}
}

// Its own namespace may be named among those that the operator watches.
func TestChart_bindsTheRoleInEachNamespaceOnce(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	var namespaces []string
	for _, u := range render(t, "namespaces: [team-a, keyconvoy-system]") {
		if u.GetKind() == "RoleBinding" && u.GetName() == "keyconvoy-manager-rolebinding" {
			namespaces = append(namespaces, u.GetNamespace())
		}
	}
	g.Expect(namespaces).To(ConsistOf("team-a", operatorNamespace))
}

// without leaves out the kinds that begin with a prefix.
func without(objects []*unstructured.Unstructured, prefix string) []*unstructured.Unstructured {
	return slices.DeleteFunc(objects, func(u *unstructured.Unstructured) bool { return strings.HasPrefix(u.GetKind(), prefix) })
}

// What helm deletes with the release must not delete keys.
func TestChart_keepsKindsAndNamespace(t *testing.T) {
	t.Parallel()
	for _, u := range render(t, "") {
		kept := u.GetAnnotations()["helm.sh/resource-policy"] == "keep"
		if want := u.GetKind() == "CustomResourceDefinition" || u.GetKind() == "Namespace"; kept != want {
			t.Errorf("%s %s is kept: %t", u.GetKind(), u.GetName(), kept)
		}
	}
}

func TestChart_isInAnyNamespace(t *testing.T) {
	t.Parallel()
	out, err := helm(t, "template", "any", "chart", "--namespace", "elsewhere", "--kube-version", "1.37",
		"--set", "monitoring.enabled=true,namespaces={team-a}").Output()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte(operatorNamespace)) {
		t.Errorf("something is in %s", operatorNamespace)
	}
}

// chartPod is the pod of the chart with values.
func chartPod(t testing.TB, values string) *corev1.Pod {
	t.Helper()
	return managerPod(t, render(t, values))
}

const libraryValues = `
libraries:
  - name: softhsm
    path: /opt/softhsm/lib/libsofthsm2.so
    volumes:
      - name: softhsm
        mountPath: /opt/softhsm
        image: {reference: "registry.example.com/softhsm:v1"}
      - name: tokens
        mountPath: /var/lib/softhsm
        readOnly: false
        persistentVolumeClaim: {claimName: tokens}
    allowedPaths: ["/dev/hsm0:rw"]
    environment:
      - {name: SOFTHSM2_CONF, value: /opt/softhsm/softhsm2.conf}
      - {name: HSM_PASSWORD, valueFrom: {secretKeyRef: {name: hsm, key: password}}}
  - name: nss
    path: /opt/nss/libsoftokn3.so
    parameters: configdir='sql:/var/lib/nss' certPrefix='' flags=
    volumes: [{name: nss, mountPath: /opt/nss, emptyDir: {}}]
initContainers:
  - name: copy
    image: registry.example.com/nss:v1
    command: [cp, -R, /nss/., /opt/nss]
    volumeMounts: [{name: nss, mountPath: /opt/nss}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
fsGroup: 65532`

func TestChart_libraries(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	pod := chartPod(t, libraryValues)
	manager := pod.Spec.Containers[0]
	usual := managerPod(t, build(t, "default")).Spec.Containers[0]
	g.Expect(manager.Args).To(Equal(append(usual.Args,
		"--pkcs11-module=softhsm=/opt/softhsm/lib/libsofthsm2.so",
		"--pkcs11-allow-path=softhsm=/opt/softhsm",
		"--pkcs11-allow-path=softhsm=/var/lib/softhsm:rw",
		"--pkcs11-allow-path=softhsm=/dev/hsm0:rw",
		"--pkcs11-env=softhsm=SOFTHSM2_CONF",
		"--pkcs11-env=softhsm=HSM_PASSWORD",
		"--pkcs11-module=nss=/opt/nss/libsoftokn3.so",
		"--pkcs11-parameters=nss=configdir='sql:/var/lib/nss' certPrefix='' flags=",
		"--pkcs11-allow-path=nss=/opt/nss",
	)))
	g.Expect(manager.Env).To(HaveLen(len(usual.Env) + 2))
	g.Expect(manager.Env[len(usual.Env):]).To(Equal([]corev1.EnvVar{
		{Name: "SOFTHSM2_CONF", Value: "/opt/softhsm/softhsm2.conf"},
		{Name: "HSM_PASSWORD", ValueFrom: &corev1.EnvVarSource{
			SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "hsm"}, Key: "password"},
		}},
	}))
	g.Expect(manager.VolumeMounts).To(Equal([]corev1.VolumeMount{
		{Name: "softhsm", MountPath: "/opt/softhsm", ReadOnly: true},
		{Name: "tokens", MountPath: "/var/lib/softhsm"},
		{Name: "nss", MountPath: "/opt/nss", ReadOnly: true},
	}))
	g.Expect(pod.Spec.Volumes).To(Equal([]corev1.Volume{
		{Name: "softhsm", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "registry.example.com/softhsm:v1"}}},
		{Name: "tokens", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "tokens"}}},
		{Name: "nss", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}))
	g.Expect(pod.Spec.SecurityContext.FSGroup).To(HaveValue(BeEquivalentTo(65532)))
}

func TestChart_gateway_hasTheLibrariesOfTheOperator(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	const values = libraryValues + "\ngateway: {enabled: true, replicas: 3}\nimage: {repository: registry.example.com/keyconvoy, tag: v2}"
	manager := chartPod(t, values).Spec
	gateway := find[appsv1.Deployment](t, render(t, values), "Deployment", "keyconvoy-gateway")
	pod := gateway.Spec.Template.Spec
	g.Expect(gateway.Spec.Replicas).To(HaveValue(BeEquivalentTo(3)))
	g.Expect(pod.Containers[0].Image).To(Equal("registry.example.com/keyconvoy:v2"))
	isOfLibrary := func(arg string) bool { return strings.HasPrefix(arg, "--pkcs11") }
	of := func(args []string) []string {
		return slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return !isOfLibrary(arg) })
	}
	g.Expect(of(pod.Containers[0].Args)).To(Equal(of(manager.Containers[0].Args)))
	g.Expect(pod.Containers[0].VolumeMounts).To(ContainElements(manager.Containers[0].VolumeMounts))
	g.Expect(pod.Volumes).To(ContainElements(manager.Volumes))
	g.Expect(pod.Volumes).To(HaveLen(len(manager.Volumes)+1), "the certificate has a volume, too")
	g.Expect(pod.InitContainers).To(Equal(manager.InitContainers))
}

func TestChart_csi_hasTheClientImageOfTheRelease(t *testing.T) {
	t.Parallel()
	objects := render(t, "csi: {enabled: true}\nimage: {repository: registry.example.com/keyconvoy, tag: v2}")
	daemons := find[appsv1.DaemonSet](t, objects, "DaemonSet", "keyconvoy-csi")
	if image := daemons.Spec.Template.Spec.Containers[0].Image; image != "registry.example.com/keyconvoy:v2-client" {
		t.Errorf("the image is %s", image)
	}
}

// The API server takes the pod with libraries under the restricted Pod Security Standard, and the binary its flags.
func TestChart_withLibraries_runsUnderRestrictedPodSecurity(t *testing.T) {
	t.Parallel()
	c, w := warned(t)
	ensureNamespaces(t, c, build(t, "default"))
	pod := chartPod(t, libraryValues)
	if err := c.Create(t.Context(), pod.DeepCopy(), client.DryRunAll); err != nil || len(w.get()) > 0 {
		t.Errorf("the pod is refused: %v %q", err, w.get())
	}
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"run", "."}, pod.Spec.Containers[0].Args...), "--help")...)
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%q: %v\n%s", pod.Spec.Containers[0].Args, err, out)
	}
}

func TestChart_otherValues(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	objects := render(t, `
image: {repository: registry.example.com/keyconvoy, tag: v2, pullSecrets: [registry]}
replicas: 2
resources: {limits: {memory: 1Gi}}
nodeSelector: {hsm: "true"}
tolerations: [{key: hsm, operator: Exists}]
args: [--zap-log-level=2]
networkPolicy: {egress: [{to: [{ipBlock: {cidr: 192.0.2.10/32}}], ports: [{protocol: TCP, port: 1792}]}]}
monitoring: {enabled: true, labels: {release: prometheus}}`)
	deployment := find[appsv1.Deployment](t, objects, "Deployment", "keyconvoy-controller-manager")
	pod := deployment.Spec.Template.Spec
	g.Expect(deployment.Spec.Replicas).To(HaveValue(BeEquivalentTo(2)))
	g.Expect(pod.Containers[0].Image).To(Equal("registry.example.com/keyconvoy:v2"))
	g.Expect(pod.ImagePullSecrets).To(Equal([]corev1.LocalObjectReference{{Name: "registry"}}))
	g.Expect(pod.Containers[0].Resources.Limits.Memory().String()).To(Equal("1Gi"))
	g.Expect(pod.NodeSelector).To(Equal(map[string]string{"hsm": "true"}))
	g.Expect(pod.Tolerations).To(Equal([]corev1.Toleration{{Key: "hsm", Operator: corev1.TolerationOpExists}}))
	g.Expect(pod.Containers[0].Args).To(ContainElement("--zap-log-level=2"))

	usual := find[networkingv1.NetworkPolicy](t, build(t, "default"), "NetworkPolicy", "keyconvoy-controller-manager")
	policy := find[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy", usual.Name)
	g.Expect(policy.Spec.Egress).To(HaveLen(len(usual.Spec.Egress) + 1))
	g.Expect(policy.Spec.Egress[len(usual.Spec.Egress)].To[0].IPBlock.CIDR).To(Equal("192.0.2.10/32"))

	labelled := 0
	for _, u := range objects {
		if u.GetLabels()["release"] == "prometheus" {
			labelled++
		}
	}
	g.Expect(labelled).To(Equal(2), "the ServiceMonitor and the PrometheusRule")

	digest := "sha256:" + strings.Repeat("0", 64)
	g.Expect(chartPod(t, "image: {digest: "+digest+"}").Spec.Containers[0].Image).To(Equal("keyconvoy@" + digest))
}

// Each wrong value is an error that names it.
func TestChart_wrongValues(t *testing.T) {
	t.Parallel()
	for values, field := range map[string]string{
		"replica: 2":                               "replica",
		"replicas: two":                            "/replicas",
		"replicas: -1":                             "/replicas",
		"image: keyconvoy:v1":                      "/image",
		"image: {repository: ''}":                  "/image/repository",
		"image: {digest: v1}":                      "/image/digest",
		"args: [zap-log-level=2]":                  "/args/0",
		"libraries: [{name: softhsm}]":             "path",
		"libraries: [{name: Soft_HSM, path: /l}]":  "/libraries/0/name",
		"libraries: [{name: softhsm, path: l.so}]": "/libraries/0/path",
		"libraries: [{name: softhsm, path: /l, volumes: [{name: v, mountPath: /v}]}]": "/libraries/0/volumes/0",
		"libraries: [{name: softhsm, path: /l, environment: {A: b}}]":                 "/libraries/0/environment",
		"namespaces: team-a":              "/namespaces",
		"namespaces: ['team-*']":          "/namespaces/0",
		"policies: false":                 "/policies",
		"networkPolicy: {enabled: 'yes'}": "/networkPolicy/enabled",
		"monitoring: {labels: [release]}": "/monitoring/labels",
		"createNamespace: keyconvoy":      "/createNamespace",
		"csi: {image: keyconvoy}":         "/csi/image",
		"gateway: true":                   "/gateway",
		// The values fit the schema, and not one another.
		"{namespaces: [team-a], gateway: {enabled: true}}": "leave namespaces empty",
		"fsGroup: staff":                   "/fsGroup",
		"monitoring: {serviceMonitor: {}}": "serviceMonitor",
	} {
		t.Run(values, func(t *testing.T) {
			t.Parallel()
			cmd := helm(t, "template", "keyconvoy", "chart", "--kube-version", "1.37", "--values", "-")
			cmd.Stdin = strings.NewReader(values)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), field) {
				t.Errorf("%v; the message does not name %s:\n%s", err, field, out)
			}
		})
	}
}

// The values that the comments of values.yaml show work.
func TestChart_theExampleInTheValues(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("chart/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "library may use:\n#\n")
	example, _, found := strings.Cut(after, "\nlibraries: []")
	if !found {
		t.Fatal("there is no example")
	}
	values := "libraries:\n"
	for line := range strings.Lines(example + "\n") {
		values += strings.TrimPrefix(line, "#")
	}
	pod := chartPod(t, values)
	if len(pod.Spec.Volumes) != 2 || len(pod.Spec.Containers[0].VolumeMounts) != 2 {
		t.Errorf("the pod has the volumes %v", pod.Spec.Volumes)
	}
}

func TestChart_lint(t *testing.T) {
	t.Parallel()
	if out, err := helm(t, "lint", "--strict", "chart").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A release is a Secret, which holds all objects and must be smaller than a mebibyte.
func TestChart_packaged_isSmall(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := helm(t, "package", "chart", "--destination", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	packages, err := filepath.Glob(filepath.Join(dir, "keyconvoy-*.tgz"))
	if err != nil || len(packages) != 1 {
		t.Fatalf("%q %v", packages, err)
	}
	info, err := os.Stat(packages[0])
	if err != nil || info.Size() > 256*1024 {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}
