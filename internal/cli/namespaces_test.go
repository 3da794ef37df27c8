package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

const limitedAccount = "system:serviceaccount:keyconvoy-system:keyconvoy-controller-manager"

// limitedOperator is config/namespaced on an API server of its own: its roles, and the operator as a process that is its
// ServiceAccount and has its arguments.
func limitedOperator(t *testing.T) *testenv.Env {
	t.Helper()
	env := testenv.Another(t)
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"keyconvoy-system", "team-a", "team-b", "elsewhere"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"ledger": "yes"}}}
		if err := env.Client.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), env.Kubectl(), "--kubeconfig", env.Kubeconfig(t, nil, ""),
		"apply", "--server-side", "-k", filepath.Join(root, "config", "namespaced")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	waitAllowed(t, env, authorizationv1.SubjectAccessReviewSpec{
		User:               limitedAccount,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "team-b", Verb: "watch", Resource: "secrets"},
	})

	var deployment appsv1.Deployment
	key := client.ObjectKey{Namespace: "keyconvoy-system", Name: "keyconvoy-controller-manager"}
	if err := env.Client.Get(t.Context(), key, &deployment); err != nil {
		t.Fatal(err)
	}
	var limits []string
	for _, arg := range deployment.Spec.Template.Spec.Containers[0].Args {
		if strings.HasPrefix(arg, "--namespaces=") {
			limits = append(limits, arg)
		}
	}
	c := call{
		args: append([]string{
			"manager", "--leader-elect", "--kubeconfig", env.Kubeconfig(t, env.AddUser(limitedAccount), "keyconvoy-system"),
			"--metrics-bind-address", "0", "--health-probe-bind-address", "0",
		}, limits...),
		env: []string{"POD_NAMESPACE=keyconvoy-system"},
	}
	cmd := c.commandContext(t.Context(), t)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait()
		said, _ := os.ReadFile(log.Name())
		if t.Failed() || !cmd.ProcessState.Success() || strings.Contains(string(said), "is forbidden") {
			t.Errorf("the manager ended with %s\n%s", cmd.ProcessState, said)
		}
	})
	return env
}

func TestManager_limitedToNamespaces_servesThemAndHasNoRightsElsewhere(t *testing.T) {
	t.Parallel()
	env := limitedOperator(t)
	stores := map[string]*v1alpha1.KeyStore{}
	for _, namespace := range []string{"elsewhere", "team-a", "team-b"} {
		stores[namespace] = &v1alpha1.KeyStore{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "store"},
			Spec:       v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware},
		}
	}
	everywhere := &v1alpha1.ClusterKeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: "everywhere"},
		Spec:       v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}},
	}
	key := &v1alpha1.ImportedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "key"},
		Spec: v1alpha1.ImportedKeySpec{
			KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: "everywhere"}, KeySpec: "AES_256",
			ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "EC_SM2", WrappingAlgorithm: "SM2PKE"},
		},
	}
	export := &v1alpha1.ClusterExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Name: "ledger"},
		Spec: v1alpha1.ClusterExportedDataKeySpec{
			NamespaceSelector: v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"ledger": "yes"}},
			Template: v1alpha1.ExportTemplate{
				DataKeyRef:      v1alpha1.NamespacedReference{Namespace: "team-a", Name: "ledger"},
				PublicKey:       v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="},
				WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
			},
		},
	}
	across := &v1alpha1.ExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-b", Name: "across"},
		Spec: v1alpha1.ExportedDataKeySpec{
			DataKeyRef:      &v1alpha1.DataKeyReference{Namespace: "elsewhere", Name: "ledger"},
			PublicKey:       v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: "AA=="},
			WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
		},
	}
	for _, object := range []client.Object{stores["elsewhere"], stores["team-a"], stores["team-b"], everywhere, key, export, across} {
		if err := env.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	is := func(object client.Object, done func() bool) {
		t.Helper()
		waitFor(t, object.GetNamespace()+"/"+object.GetName(), func() bool {
			if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
				t.Fatal(err)
			}
			return done()
		})
	}
	for _, namespace := range []string{"team-a", "team-b"} {
		is(stores[namespace], func() bool {
			return meta.IsStatusConditionTrue(stores[namespace].Status.Conditions, v1alpha1.ConditionReady)
		})
	}
	is(everywhere, func() bool { return meta.IsStatusConditionTrue(everywhere.Status.Conditions, v1alpha1.ConditionReady) })
	is(key, func() bool { return key.Status.ImportParameters != nil })
	// team-a and team-b: the operator's own namespace takes no export.
	is(export, func() bool { return export.Status.ObservedGeneration > 0 && export.Status.SelectedNamespaces == 2 })

	var exports v1alpha1.ExportedDataKeyList
	waitFor(t, "the exports", func() bool {
		if err := env.Client.List(t.Context(), &exports); err != nil {
			t.Fatal(err)
		}
		return len(exports.Items) == 3
	})
	for _, e := range exports.Items {
		if e.Namespace == "elsewhere" {
			t.Error("a namespace that the operator is not limited to got an export")
		}
	}
	// What is in other namespaces than those of the operator does not exist for it: that is no failure to retry.
	is(across, func() bool {
		ready := meta.FindStatusCondition(across.Status.Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason != v1alpha1.ReasonAPIServer
	})
	is(stores["elsewhere"], func() bool { return true })
	if len(stores["elsewhere"].Status.Conditions) > 0 {
		t.Error("the operator serves a namespace that it was not given")
	}

	account := env.As(t, limitedAccount)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "secret"}}
	if err := env.Client.Create(t.Context(), secret.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"read a Secret": func() error {
			return account.Get(t.Context(), client.ObjectKeyFromObject(secret), &corev1.Secret{})
		},
		"write a Secret": func() error {
			return account.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "other"}})
		},
		"delete a Secret":       func() error { return account.Delete(t.Context(), secret.DeepCopy()) },
		"list all Secrets":      func() error { return account.List(t.Context(), &corev1.SecretList{}) },
		"list all ConfigMaps":   func() error { return account.List(t.Context(), &corev1.ConfigMapList{}) },
		"list all ImportedKeys": func() error { return account.List(t.Context(), &v1alpha1.ImportedKeyList{}) },
	} {
		if err := try(); !apierrors.IsForbidden(err) {
			t.Errorf("the operator's account may %s: %v", what, err)
		}
	}
	if err := account.List(t.Context(), &corev1.SecretList{}, client.InNamespace("team-a")); err != nil {
		t.Errorf("in a namespace that it serves: %v", err)
	}
}
