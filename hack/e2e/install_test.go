package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

func TestInstall_runsUnderRestrictedPodSecurityAndIsProbed(t *testing.T) {
	install(t, installation{})
	pod := leader(t)

	privileged := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "privileged", Namespace: operatorNamespace},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: debianImage}}},
	}
	if err := api.Create(t.Context(), privileged); !apierrors.IsForbidden(err) {
		t.Errorf("creating a pod that is not restricted returned %v, want forbidden", err)
	}
	for _, path := range []string{"healthz", "readyz"} {
		url := fmt.Sprintf("http://%s:8081/%s", pod.Status.PodIP, path)
		if response := endpoint(t, http.DefaultClient, url, ""); response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	// The kubelet's own probes: the pod is ready, and nothing has restarted it.
	for _, status := range pod.Status.ContainerStatuses {
		if !status.Ready || status.RestartCount != 0 {
			t.Errorf("ready: %t, restarts: %d", status.Ready, status.RestartCount)
		}
	}
}

func TestInstall_twoReplicas_oneLeads(t *testing.T) {
	install(t, installation{replicas: 2})
	first := leader(t)

	for _, pod := range operatorPods(t) {
		for _, status := range pod.Status.ContainerStatuses {
			if !status.Ready || status.RestartCount != 0 {
				t.Errorf("%s: ready: %t, restarts: %d", pod.Name, status.Ready, status.RestartCount)
			}
		}
	}
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	if now := leader(t); now.UID != first.UID {
		t.Errorf("the leader was %s and is %s", first.Name, now.Name)
	}
}

func TestMetrics_withTheTokenOfAReader(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	kubectl(t, "create", "serviceaccount", "reader", "-n", namespace)
	kubectl(t, "create", "serviceaccount", "other", "-n", namespace)
	kubectl(t, "create", "clusterrolebinding", namespace, "--clusterrole=keyconvoy-metrics-reader",
		"--serviceaccount="+namespace+":reader")
	t.Cleanup(func() { kubectl(t, "delete", "clusterrolebinding", namespace) })
	// The certificate is the operator's own, so that there is no authority to check it against.
	overTLS := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	url := fmt.Sprintf("https://%s:8443/metrics", leader(t).Status.PodIP)

	for who, want := range map[string]int{"": http.StatusUnauthorized, "other": http.StatusForbidden} {
		if response := endpoint(t, overTLS, url, token(t, namespace, who)); response.StatusCode != want {
			t.Errorf("without the role, as %q: %s, want %d", who, response.Status, want)
		}
	}
	eventually(t, "the reader gets the metrics", func() error {
		response := endpoint(t, overTLS, url, token(t, namespace, "reader"))
		text, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(text), "keyconvoy_cache_synced") {
			err = fmt.Errorf("%s: %.200s", response.Status, text)
		}
		return err
	})
}

// token requests a token of a ServiceAccount, if there is one.
func token(t testing.TB, namespace, account string) string {
	t.Helper()
	if account == "" {
		return ""
	}
	request := &authenticationv1.TokenRequest{}
	object := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := api.SubResource("token").Create(t.Context(), object, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// The documented way to stop the operator, docs/install.md, keeps all keys.
func TestInstall_stoppedAndInstalledAgain_objectsAndKeysSurvive(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	newImportedKey(t, namespace, "ClusterKeyStore", "main")
	r := newRecipient(t)
	key, _ := r.exportNow(t, namespace, "before")
	secret := get(t, &corev1.Secret{}, namespace, "before")

	kubectl(t, "delete", "deployment", operatorDeployment, "-n", operatorNamespace, "--wait")
	install(t, installation{})

	after, _ := r.exportNow(t, namespace, "after")
	equal(t, "an export after the installation", after, key)
	waitReady(t, namespace, "importedkey/imported")
	if now := get(t, &corev1.Secret{}, namespace, "before"); now.ResourceVersion != secret.ResourceVersion {
		t.Error("the Secret from before was written again")
	}
}

// Uninstall as docs/install.md says: first the CRDs, while the operator runs.
func TestUninstall_leavesNothing_andAnotherInstallationWorks(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	r := newRecipient(t)
	r.exportNow(t, namespace, "export")

	dir := installation{}.write(t)
	kubectl(t, "delete", "-k", dir+"/../config/crd")
	kubectl(t, "delete", "-k", dir, "--ignore-not-found")

	if left := kubectl(t, "get", "crds,clusterroles,clusterrolebindings,validatingadmissionpolicies,namespaces", "-o", "name"); strings.Contains(left, "keyconvoy") {
		t.Errorf("left is:\n%s", left)
	}
	waitGone(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "export"}})
	install(t, installation{})
	newDataKeyWithoutOld(t, namespace)
	r.exportNow(t, namespace, "export")
}

// Helm continues an installation of kubectl, and kubectl one of Helm, and the keys remain.
func TestInstall_withHelm(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	r := newRecipient(t)
	key, _ := r.exportNow(t, namespace, "by-kubectl")

	run(t, "", os.Getenv("HELM"), "upgrade", "--install", "keyconvoy", filepath.Join(root, "config/chart"), "--namespace", operatorNamespace,
		"--create-namespace", "--take-ownership", "--force-conflicts", "--wait", "--timeout=3m", "--set=replicas=2", "--set=csi.enabled=true",
		"--set=image.repository="+operatorImage, "--set=image.tag=v1")
	if pods := operatorPods(t); len(pods) != 2 {
		t.Errorf("%d pods of the operator, want 2", len(pods))
	}
	kubectl(t, "rollout", "status", "daemonset", "keyconvoy-csi", "-n", csiNamespace, "--timeout=3m")
	byHelm, _ := r.exportNow(t, namespace, "by-helm")
	equal(t, "an export of the operator that Helm installed", byHelm, key)

	run(t, "", os.Getenv("HELM"), "uninstall", "keyconvoy", "--namespace", operatorNamespace, "--wait", "--timeout=3m")
	eventually(t, "no pod of the operator is left", func() error {
		if pods := operatorPods(t); len(pods) != 0 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	install(t, installation{})
	again, _ := r.exportNow(t, namespace, "again")
	equal(t, "an export after Helm uninstalled it and kubectl installed it again", again, key)
}

// newDataKeyWithoutOld creates a data key where the Secret of a DataKey that no longer exists is left: the documents say
// that it remains.
func newDataKeyWithoutOld(t testing.TB, namespace string) {
	t.Helper()
	old := get(t, &corev1.Secret{}, namespace, "ledger")
	if err := api.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	newDataKey(t, namespace, "ClusterKeyStore", "main")
}

func TestExportedDataKey_deleted_itsSecretIsCollected(t *testing.T) {
	install(t, installation{})
	namespace := newNamespace(t)
	newDataKey(t, namespace, "ClusterKeyStore", "main")
	newRecipient(t).exportNow(t, namespace, "export")

	if err := api.Delete(t.Context(), get(t, &v1alpha1.ExportedDataKey{}, namespace, "export")); err != nil {
		t.Fatal(err)
	}
	took := waitGone(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "export"}})
	record("garbage collection of an export's Secret", rounded(took))
}
