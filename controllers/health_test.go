package controllers_test

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

var record = flag.Bool("record", false, "write the recordings that other tests read, instead of comparing with them")

// recordedObjects are objects as the operator leaves them. hack/monitoring asks Argo CD's script and Flux'
// expressions about them.
const recordedObjects = "../config/health/testdata/objects.yaml"

// recording is an object in a state that has a name.
type recording struct {
	Name string `json:"name"`
	// Health is Ready, Stalled or Progressing.
	Health string         `json:"health"`
	Object map[string]any `json:"object"`
}

func TestHealth_recordings_areWhatTheOperatorWrites(t *testing.T) {
	t.Parallel()
	o := startOperator(t, harness.WithModules(func(r *hsmtest.Recorder) {
		r.FailAll("DestroyWrappingKey", hsm.Errorf(hsm.NotSupported, "it cannot do that"))
	}))
	var all []recording
	take := func(name, health string, object client.Object) {
		all = append(all, recording{name, health, o.recorded(t, object)})
	}

	take("a key store that serves", "Ready", o.store(t, onSoftware))
	take("a key store for the cluster that serves", "Ready", o.clusterStore(t, onSoftware))
	take("a key that is Enabled", "Ready", o.enabledKey(t, "enabled", nil, consenting("All")))
	disabled := o.enabledKey(t, "disabled", nil)
	o.desire(t, disabled, v1alpha1.DesiredDisabled, 0)
	o.keyIs(t, disabled, "Disabled")
	take("a key that is Disabled, as its owner wants", "Ready", disabled)
	take("a key that the module generated", "Ready", o.generated(t, "generated"))
	take("a data key", "Ready", o.dataKey(t, "dek", underKey("enabled")))
	take("an export", "Ready", o.export(t, "export", toBlob(sm2Recipient().public.Base64()), withSM2))
	o.teamNamespaces(t, 2)
	spread := o.clusterExport(t)
	o.Ready(t, spread)
	take("an export to many namespaces", "Ready", spread)

	access := accessKey("access")
	o.Make(t, &corev1.ServiceAccount{ObjectMeta: named("app")}, access)
	o.Ready(t, access)
	take("an access key", "Ready", access)

	pending := o.pendingKey(t, "pending")
	take("a key that waits for its material", "Progressing", pending)
	homeless := generatedKey("homeless", func(s *v1alpha1.GeneratedKeySpec) { s.KeyStoreRef.Name = "none" })
	o.Make(t, homeless)
	o.Waits(t, homeless, v1alpha1.ReasonKeyStoreNotFound)
	take("a key that waits for the key store that generates it", "Progressing", homeless)
	early := newDataKey("early", underKey("pending"))
	o.Make(t, early)
	o.Waits(t, early, "RejectedPendingImport")
	take("a data key that waits for its key", "Progressing", early)
	waiting := newExport("waiting", ofDataKey("none"))
	o.Make(t, waiting)
	o.Waits(t, waiting, v1alpha1.ReasonKeyNotReady)
	take("an export that waits for its data key", "Progressing", waiting)
	spreading := o.newClusterExport(toEachConfigMap)
	spreading.Name += "-pending"
	o.Make(t, spreading)
	o.Waits(t, spreading, v1alpha1.ReasonNamespacesPending)
	take("an export to many namespaces that have no recipients yet", "Progressing", spreading)

	unknown := &v1alpha1.KeyStore{ObjectMeta: named("unknown"), Spec: tokenSpec("unheard-of", "any")}
	unknownOfAll := &v1alpha1.ClusterKeyStore{
		ObjectMeta: named(o.OwnNamespace + "-unknown"), Spec: v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: unknown.Spec},
	}
	o.Make(t, unknown, unknownOfAll)
	o.Waits(t, unknown, v1alpha1.ReasonSourceNotFound)
	o.Waits(t, unknownOfAll, v1alpha1.ReasonSourceNotFound)
	take("a key store that waits for its PIN", "Progressing", unknown)
	take("a key store for the cluster that waits for its PIN", "Progressing", unknownOfAll)
	o.givePIN(t, o.Namespace, "vQ4-7pZk\x00")
	o.givePIN(t, o.OwnNamespace, "vQ4-7pZk\x00")
	o.Stalls(t, unknown, v1alpha1.ReasonPINRefused)
	o.Stalls(t, unknownOfAll, v1alpha1.ReasonPINRefused)
	take("a key store with a PIN that no token has", "Stalled", unknown)
	take("a key store for the cluster with a PIN that no token has", "Stalled", unknownOfAll)
	o.givePIN(t, o.Namespace, "vQ4-7pZk")
	o.givePIN(t, o.OwnNamespace, "vQ4-7pZk")
	o.Waits(t, unknown, v1alpha1.ReasonModuleMisconfigured)
	o.Waits(t, unknownOfAll, v1alpha1.ReasonModuleMisconfigured)
	take("a key store whose module is not allowed", "Progressing", unknown)
	take("a key store for the cluster whose module is not allowed", "Progressing", unknownOfAll)
	refused := o.pendingKey(t, "refused")
	o.give(t, refused, inline([]byte("no material"), refused.Status.ImportParameters.ImportToken))
	o.Stalls(t, refused, "InvalidKeyMaterial")
	take("a key with the wrong material", "Stalled", refused)
	o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN)
	token := &v1alpha1.KeyStore{ObjectMeta: named("token"), Spec: storeSpec(onSoftHSM)}
	o.Make(t, token)
	o.Ready(t, token)
	unable := generatedKey("unable", generatedSpec(hsm.SM4), func(s *v1alpha1.GeneratedKeySpec) { s.KeyStoreRef.Name = "token" })
	o.Make(t, unable)
	o.Stalls(t, unable, "UnsupportedOperation")
	take("a key of a type that the module cannot generate", "Stalled", unable)
	broken := newDataKey("broken", underKey("enabled"), func(s *v1alpha1.DataKeySpec) { s.CiphertextBlob = "AA==" })
	o.Make(t, broken)
	o.Stalls(t, broken, "InvalidParameter")
	take("a data key from what is no blob", "Stalled", broken)
	wrong := newExport("wrong", toBlob("no key"))
	o.Make(t, wrong)
	o.Stalls(t, wrong, "InvalidParameter")
	take("an export to something that is no public key", "Stalled", wrong)
	taken := accessKey("taken")
	o.Make(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "taken"}}, taken)
	o.Stalls(t, taken, v1alpha1.ReasonTargetNotOwned)
	take("an access key whose Secret exists already", "Stalled", taken)
	spreadWrong := o.newClusterExport(func(s *v1alpha1.ClusterExportedDataKeySpec) { s.Template.PublicKey.Blob = "no key" })
	spreadWrong.Name += "-wrong"
	o.Make(t, spreadWrong)
	o.counts(t, spreadWrong, 2, 0, 2)
	o.Stalls(t, spreadWrong, v1alpha1.ReasonNamespacesFailed)
	take("an export to many namespaces, to something that is no public key", "Stalled", spreadWrong)

	o.Remove(t, refused)
	o.Waits(t, refused, "UnsupportedOperation", "Deletion is waiting")
	take("a key whose deletion has failed", "Progressing", refused)

	// From here on they are not reconciled.
	o.Stop(t)
	o.Change(t, wrong, func() { wrong.Spec.PublicKey.Blob = rsaRecipient().public.Base64() })
	take("an export that was repaired a moment ago", "Progressing", wrong)
	o.Remove(t, disabled)
	take("a key that was deleted a moment ago", "Progressing", disabled)
	fresh := importedKey("fresh")
	o.Make(t, fresh)
	take("a key that was made a moment ago", "Progressing", fresh)
	freshExport := newExport("fresh")
	o.Make(t, freshExport)
	take("an export that was made a moment ago", "Progressing", freshExport)
	freshAccess := accessKey("fresh")
	o.Make(t, freshAccess)
	take("an access key that was made a moment ago", "Progressing", freshAccess)

	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	text = append([]byte("# Objects as the operator left them, with what any health check may read. Made by\n"+
		"# go test ./controllers -run TestHealth -record\n"), text...)
	if *record {
		if err := os.WriteFile(recordedObjects, text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if was, err := os.ReadFile(recordedObjects); err != nil || string(was) != string(text) {
		t.Errorf("%s is not current (%v); run: go test ./controllers -run TestHealth -record\nnow it would be\n%s", recordedObjects, err, text)
	}
}

// recorded is what a health check may read of an object on the API server, without what varies from run to
// run.
func (o *operator) recorded(t testing.TB, object client.Object) map[string]any {
	t.Helper()
	o.Read(t, object)
	kind, err := o.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	ours := strings.NewReplacer(o.OwnNamespace, "keyconvoy-system", o.Namespace, "team-a")
	text := ours.Replace(harness.StatusJSON(object))
	var status map[string]any
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatal(err)
	}
	const epoch = "2026-01-01T00:00:00Z"
	metadata := map[string]any{"name": ours.Replace(object.GetName()), "generation": object.GetGeneration()}
	if object.GetNamespace() != "" {
		metadata["namespace"] = ours.Replace(object.GetNamespace())
	}
	if object.GetDeletionTimestamp() != nil {
		metadata["deletionTimestamp"], metadata["finalizers"] = epoch, object.GetFinalizers()
	}
	recorded := map[string]any{"apiVersion": kind.GroupVersion().String(), "kind": kind.Kind, "metadata": metadata}
	kept := map[string]any{}
	for _, field := range []string{"observedGeneration", "conditions", "keyState"} {
		if value, ok := status[field]; ok {
			kept[field] = value
		}
	}
	conditions, _ := kept["conditions"].([]any)
	for _, c := range conditions {
		c.(map[string]any)["lastTransitionTime"] = epoch
	}
	if len(kept) > 0 {
		recorded["status"] = kept
	}
	return recorded
}

// The patch is taken by kubectl and the API server, and leaves the rest of the ConfigMap alone.
func TestHealth_argoCDPatch_isTakenByTheServer(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "argocd-cm", Namespace: o.Namespace}, Data: map[string]string{"url": "kept"}}
	o.Make(t, cm)
	out, err := exec.CommandContext(t.Context(), o.Env.Kubectl(), "--kubeconfig", o.Env.Kubeconfig(t, nil, ""),
		"-n", o.Namespace, "patch", "configmap", "argocd-cm", "--patch-file", "../config/health/argocd-cm.yaml").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	o.Read(t, cm)
	if cm.Data["url"] != "kept" {
		t.Error("the patch takes away what was there")
	}
	for _, kind := range kindsOf(t, o) {
		if script := cm.Data["resource.customizations.health.keyconvoy.io_"+kind]; !strings.Contains(script, "return health") {
			t.Errorf("there is no script for %s: %q", kind, script)
		}
	}
}

// kindsOf are the kinds of ours that the API server knows.
func kindsOf(t testing.TB, o *operator) []string {
	t.Helper()
	var kinds []string
	for kind := range o.Scheme().KnownTypes(v1alpha1.GroupVersion) {
		if o.Scheme().Recognizes(v1alpha1.GroupVersion.WithKind(kind + "List")) {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) < 6 {
		t.Fatalf("only %v", kinds)
	}
	return kinds
}
