package cli_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// createKey puts a key that waits for material into a namespace of its own, as an operator would
// leave it.
func createKey(t testing.TB, env *testenv.Env, change func(*v1alpha1.ImportedKey)) *v1alpha1.ImportedKey {
	t.Helper()
	key := importedKey(t, change)
	key.Namespace = env.Namespace(t)
	status := key.Status
	if err := env.Client.Create(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	key.Status = status
	if err := env.Client.Status().Update(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	return key
}

func reread(t testing.TB, env *testenv.Env, key *v1alpha1.ImportedKey) *v1alpha1.ImportedKey {
	t.Helper()
	var now v1alpha1.ImportedKey
	if err := env.Client.Get(t.Context(), client.ObjectKeyFromObject(key), &now); err != nil {
		t.Fatal(err)
	}
	return &now
}

// checkMaterial checks that the key in the cluster has the canary as its material.
func checkMaterial(t testing.TB, env *testenv.Env, key *v1alpha1.ImportedKey) {
	t.Helper()
	material := reread(t, env, key).Spec.Material
	if material == nil {
		t.Fatal("no material arrived")
	}
	if material.ImportToken != importToken || material.EncryptedKeyMaterialFrom != nil || material.ImportTokenFrom != nil {
		t.Errorf("the material is %+v", material)
	}
	opened := rsaPair(t).decrypt(t, "RSAES_OAEP_SHA_256", unbase64(t, material.EncryptedKeyMaterial))
	if !bytes.Equal(opened, canary) {
		t.Error("other material arrived")
	}
}

func TestWrapApply_saysWhatIsWrongAndLeavesTheKeyAlone(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	admin := env.Kubeconfig(t, nil, "default")
	guest := env.Kubeconfig(t, env.AddUser("guest"), "default")
	for name, test := range map[string]struct {
		args     []string
		material []byte
		change   func(*v1alpha1.ImportedKey)
		says     []string
	}{
		"a key that is not there": {
			args: []string{"--kubeconfig", admin, "--key", "payment"},
			says: []string{"ImportedKey payment does not exist in namespace test-", "kubectl get importedkeys"},
		},
		"a user who may not": {
			args: []string{"--kubeconfig", guest, "--key", "payments"},
			says: []string{"permission denied", "get", "importedkeys.keyconvoy.io", `"guest"`},
		},
		"a wrong length": {
			args: []string{"--kubeconfig", admin, "--key", "payments"}, material: canary[1:],
			says: []string{"AES_256 requires 32 bytes, but the material has 31"},
		},
		"no parameters yet": {
			args:   []string{"--kubeconfig", admin, "--key", "payments"},
			change: func(key *v1alpha1.ImportedKey) { key.Status.ImportParameters = nil },
			says:   []string{"kubectl wait"},
		},
		"a kubeconfig that is not there": {
			args: []string{"--kubeconfig", "no/such/file", "--key", "payments"},
			says: []string{"no/such/file"},
		},
		"no kubeconfig at all": {
			args: []string{"--key", "payments"},
			says: []string{"set KUBECONFIG or --kubeconfig", "--parameters"},
		},
		"an unknown context": {
			args: []string{"--kubeconfig", admin, "--context", "production", "--key", "payments"},
			says: []string{"production"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := createKey(t, env, test.change)
			if test.material == nil {
				test.material = canary
			}
			args := append([]string{"wrap", "--apply", "-n", key.Namespace}, test.args...)
			call{args: args, stdin: bytes.NewReader(test.material)}.run(t).fails(t, 1, test.says...)
			if now := reread(t, env, key); now.ResourceVersion != key.ResourceVersion {
				t.Error("it changed the key")
			}
		})
	}
}

func TestWrapApply_saysThatAClusterLacksKeyconvoy(t *testing.T) {
	t.Parallel()
	// As a kube-apiserver answers for a group that it does not have.
	empty := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "404 page not found", http.StatusNotFound)
	}))
	defer empty.Close()
	kubeconfig := (&testenv.Env{}).Kubeconfig(t, &rest.Config{Host: empty.URL}, "default")
	keyconvoy(t, "wrap", "--kubeconfig", kubeconfig, "--key", "payments", "--in", file(t, "m", canary), "--apply").
		fails(t, 1, "the cluster has no Keyconvoy", "kubectl apply -k config/default")
}

func TestWrapApply_refusesToPatchWithoutPermission(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	key := createKey(t, env, nil)
	allow(t, env, key.Namespace, "reader", "get")
	reader := env.Kubeconfig(t, env.AddUser("reader"), key.Namespace)
	keyconvoy(t, "wrap", "--kubeconfig", reader, "--key", "payments", "--in", file(t, "m", canary), "--apply").
		fails(t, 1, "--apply requires patch", "cannot patch resource")
	keyconvoy(t, "wrap", "--kubeconfig", reader, "--key", "payments", "--in", file(t, "m", canary)).succeeds(t)
}

func allow(t testing.TB, env *testenv.Env, namespace, user string, verbs ...string) {
	t.Helper()
	name := metav1.ObjectMeta{Name: user, Namespace: namespace}
	for _, object := range []client.Object{
		&rbacv1.Role{ObjectMeta: name, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"keyconvoy.io"}, Resources: []string{"importedkeys"}, Verbs: verbs,
		}}},
		&rbacv1.RoleBinding{ObjectMeta: name,
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}}},
	} {
		if err := env.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	waitAllowed(t, env, authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{
		Namespace: namespace, Group: "keyconvoy.io", Resource: "importedkeys", Verb: verbs[0],
	}})
}

func TestWrapApply_putsTheMaterialIn(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	fromConfigMap := func(key *v1alpha1.ImportedKey) {
		from := &v1alpha1.EntrySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: "m", Key: "k"}}
		key.Spec.Material = &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: from, ImportTokenFrom: from}
	}
	for name, test := range map[string]struct {
		change    func(*v1alpha1.ImportedKey)
		inContext bool // the namespace is that of the kubeconfig's context
		inEnv     bool // the kubeconfig is that of the environment
	}{
		"where there was none":                    {},
		"in the namespace of the context":         {inContext: true},
		"with the environment's kubeconfig":       {inEnv: true},
		"in the place of references":              {change: fromConfigMap},
		"in the place of what was there":          {change: func(key *v1alpha1.ImportedKey) { key.Spec.Material = oldMaterial() }},
		"in the place of a reference and a value": {change: func(key *v1alpha1.ImportedKey) { fromConfigMap(key); halfOld(key) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := createKey(t, env, test.change)
			c := call{args: []string{"wrap", "--key", "payments", "--apply", "--in", file(t, "m", canary)}}
			contextNamespace := "default"
			if test.inContext {
				contextNamespace = key.Namespace
			} else {
				c.args = append(c.args, "-n", key.Namespace)
			}
			kubeconfig := env.Kubeconfig(t, nil, contextNamespace)
			if test.inEnv {
				c.env = []string{"KUBECONFIG=" + kubeconfig}
			} else {
				c.args = append(c.args, "--kubeconfig", kubeconfig)
			}
			got := c.run(t).succeeds(t)
			checkMaterial(t, env, key)
			for _, words := range []string{"importedkey.keyconvoy.io/payments patched", "kubectl wait --for=condition=Ready importedkey/payments -n " + key.Namespace} {
				if !strings.Contains(got.out, words) {
					t.Errorf("it says %q, without %q", got.out, words)
				}
			}
			checkFieldManager(t, reread(t, env, key))
		})
	}
}

func TestWrapApply_renewsMaterialThatExpired(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	for when, want := range map[string]bool{"never": false, "2126-01-02T03:04:05Z": true} {
		key := createKey(t, env, func(key *v1alpha1.ImportedKey) { key.Spec.Material = expired() })
		keyconvoy(t, "wrap", "--kubeconfig", env.Kubeconfig(t, nil, key.Namespace), "--key", "payments", "--apply",
			"--in", file(t, "m", canary), "--expire-time", when).succeeds(t)
		checkMaterial(t, env, key)
		if at := reread(t, env, key).Spec.Material.ExpireTime; (at != nil) != want || at != nil && at.UTC().Format(time.RFC3339) != when {
			t.Errorf("%s became %v", when, at)
		}
	}
}

func oldMaterial() *v1alpha1.MaterialSpec {
	return &v1alpha1.MaterialSpec{EncryptedKeyMaterial: "b2xk", ImportToken: "b2xk"}
}

func halfOld(key *v1alpha1.ImportedKey) {
	key.Spec.Material.ImportTokenFrom = nil
	key.Spec.Material.ImportToken = "b2xk"
}

func checkFieldManager(t testing.TB, key *v1alpha1.ImportedKey) {
	t.Helper()
	for _, entry := range key.ManagedFields {
		if entry.Manager == "keyconvoy-wrap" && strings.Contains(entry.FieldsV1.GetRawString(), "f:encryptedKeyMaterial") {
			return
		}
	}
	t.Errorf("the material is not keyconvoy-wrap's: %+v", key.ManagedFields)
}

func TestWrap_makesAPatchThatKubectlTakes(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	for name, test := range map[string]struct {
		format  string
		kubectl []string
	}{
		"as a merge patch": {"yaml", []string{"patch", "importedkey", "payments", "--type", "merge", "--patch-file"}},
		"as JSON":          {"json", []string{"patch", "importedkey", "payments", "--type", "merge", "--patch-file"}},
		"server-side":      {"yaml", []string{"apply", "--server-side", "-f"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := createKey(t, env, nil)
			kubeconfig := env.Kubeconfig(t, nil, key.Namespace)
			kubectl := func(args ...string) []byte {
				out, err := exec.Command(env.Kubectl(), append([]string{"--kubeconfig", kubeconfig}, args...)...).Output()
				if err != nil {
					t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
				}
				return out
			}
			// The whole offline journey: what kubectl prints, wrapped elsewhere, brought back.
			parameters := file(t, "key.yaml", kubectl("get", "importedkey", "payments", "-o", "yaml"))
			out := file(t, "patch.yaml", nil)
			keyconvoy(t, "wrap", "--parameters", parameters, "--in", file(t, "m", canary), "--format", test.format, "--out", out).succeeds(t)
			kubectl(append(test.kubectl, out)...)
			checkMaterial(t, env, key)
		})
	}
}

func TestWrap_makesAPatchThatIsRefusedOnAnotherKey(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	key := createKey(t, env, func(key *v1alpha1.ImportedKey) { key.Name = "other" })
	out := file(t, "patch.yaml", nil)
	keyconvoy(t, "wrap", "--parameters", importedKeyFile(t, nil), "--in", file(t, "m", canary), "--out", out).succeeds(t)
	cmd := exec.Command(env.Kubectl(), "--kubeconfig", env.Kubeconfig(t, nil, key.Namespace),
		"patch", "importedkey", "other", "--type", "merge", "--patch-file", out)
	if said, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("it was taken: %s", said)
	}
}

func TestCompletion_offersWhatTheClusterHas(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	key := createKey(t, env, nil)
	createOther := importedKey(t, func(other *v1alpha1.ImportedKey) { other.Name, other.Namespace = "ledger", key.Namespace })
	if err := env.Client.Create(t.Context(), createOther); err != nil {
		t.Fatal(err)
	}
	kubeconfig := env.Kubeconfig(t, nil, key.Namespace)
	for name, test := range map[string]struct {
		binary  string
		args    []string
		offers  []string
		without string
	}{
		"keys":                     {"", []string{"__complete", "wrap", "--key", ""}, []string{"ledger\tAES_256", "payments\tAES_256"}, ""},
		"keys by prefix":           {"", []string{"__complete", "wrap", "--key", "pay"}, []string{"payments\tAES_256"}, "ledger"},
		"keys of a namespace":      {"", []string{"__complete", "wrap", "-n", "default", "--key", ""}, nil, "payments"},
		"keys through kubectl":     {"kubectl_complete-keyconvoy", []string{"wrap", "--key", ""}, []string{"payments\tAES_256"}, ""},
		"namespaces":               {"", []string{"__complete", "wrap", "-n", "test-"}, []string{key.Namespace}, "default"},
		"contexts":                 {"", []string{"__complete", "wrap", "--context", ""}, []string{"test"}, ""},
		"algorithms":               {"", []string{"__complete", "unwrap", "--algorithm", ""}, []string{"RSAES_OAEP_SHA_256", "SM2PKE"}, "PKCS1"},
		"formats of SM2":           {"", []string{"__complete", "unwrap", "--sm2-format", ""}, []string{"C1C3C2", "ASN1"}, ""},
		"encodings":                {"", []string{"__complete", "unwrap", "--encoding", ""}, []string{"raw", "hex", "base64"}, ""},
		"formats of a patch":       {"", []string{"__complete", "wrap", "--format", ""}, []string{"yaml", "json"}, ""},
		"no files where none goes": {"", []string{"__complete", "wrap", "--key", "x"}, nil, "payments"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := call{name: test.binary, args: test.args, env: []string{"KUBECONFIG=" + kubeconfig}}.run(t).succeeds(t)
			for _, offer := range test.offers {
				if !strings.Contains("\n"+got.out, "\n"+offer) {
					t.Errorf("it offers %q, without %q", got.out, offer)
				}
			}
			if test.without != "" && strings.Contains(got.out, test.without) {
				t.Errorf("it offers %q", got.out)
			}
		})
	}
}

func TestCompletion_isSoonOverWithoutACluster(t *testing.T) {
	t.Parallel()
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	kubeconfig := (&testenv.Env{}).Kubeconfig(t, &rest.Config{Host: silent.URL}, "default")
	start := time.Now()
	got := call{args: []string{"__complete", "wrap", "--key", ""}, env: []string{"KUBECONFIG=" + kubeconfig}}.run(t)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the shell waited %s", took)
	}
	if strings.Contains(got.out, "error") {
		t.Errorf("it offers %q", got.out)
	}
}

func TestCompletion_scriptsAreMade(t *testing.T) {
	t.Parallel()
	script := keyconvoy(t, "completion", "bash").succeeds(t).out
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash does not take the script: %s", out)
	}
	for _, shell := range []string{"zsh", "fish", "powershell"} {
		keyconvoy(t, "completion", shell).succeeds(t)
	}
}
