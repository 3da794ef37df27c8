//go:build cgo

package cli_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/b64"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// The operator as a process, which these tests start one after the other on an API server of their own: it serves
// all objects there are.
func TestManager_log(t *testing.T) {
	t.Parallel()
	env, token := testenv.Another(t), tokens.SoftHSMLabelled(t, "logged")
	t.Run("says at the start what runs", func(t *testing.T) { saysWhatRuns(t, env, token) })
	t.Run("holds no secret at the highest level", func(t *testing.T) { holdsNoSecret(t, env, token) })
}

// The operator carries a key on each kind of store, at the highest level that the flag takes: one at which client-go
// logs bodies, if it is let. Nothing of all that it says holds a secret.
func holdsNoSecret(t *testing.T, env *testenv.Env, token tokens.Token) {
	j := &journey{t: t, env: env, namespace: env.Namespace(t), secrets: map[string][]byte{"PIN": []byte(token.PIN), "material": canary}}
	stop := j.startManager(token, "--zap-log-level=127", "--zap-devel")
	j.create(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "pin"}, StringData: map[string]string{"pin": token.PIN}},
		&v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "hsm"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{
			Module: "softhsm", Token: v1alpha1.TokenSelector{Label: "logged"},
			PINSecretRef: &v1alpha1.EntryReference{Name: "pin", Key: "pin"},
		}}},
		&v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "software"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}},
	)
	for _, store := range []string{"hsm", "software"} {
		j.carry(store)
	}
	j.findRootKeys()
	j.checkLogged(stop())
}

// journey is one operator, and what it must not say.
type journey struct {
	t         *testing.T
	env       *testenv.Env
	namespace string
	secrets   map[string][]byte
	manager   *os.Process // that was started last
}

// startManager returns what ends the operator and says all that it wrote.
func (j *journey) startManager(token tokens.Token, flags ...string) (stop func() string) {
	j.t.Helper()
	c := call{
		args: append([]string{
			"manager", "--kubeconfig", j.env.Kubeconfig(j.t, nil, j.namespace), "--pkcs11-module", "softhsm=" + token.Path,
			"--pkcs11-allow-path", "softhsm=" + token.Dir + ":rw",
			"--metrics-bind-address=0", "--health-probe-bind-address=0",
		}, flags...),
		env: append([]string{"POD_NAMESPACE=" + j.namespace}, token.Env...),
	}
	cmd := c.commandContext(context.Background(), j.t)
	path := filepath.Join(j.t.TempDir(), "log")
	log, err := os.Create(path)
	if err != nil {
		j.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		j.t.Fatal(err)
	}
	j.manager = cmd.Process
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			j.t.Errorf("the manager ended with %v", err)
		}
	}
	j.t.Cleanup(func() {
		end()
		if said, _ := os.ReadFile(path); j.t.Failed() {
			j.t.Logf("The log ends:\n%s", said[max(0, len(said)-20_000):])
		}
	})
	return func() string {
		end()
		said, err := os.ReadFile(path)
		if err != nil {
			j.t.Fatal(err)
		}
		return string(said)
	}
}

func (j *journey) create(objects ...client.Object) {
	j.t.Helper()
	for _, o := range objects {
		o.SetNamespace(j.namespace)
		if err := j.env.Client.Create(j.t.Context(), o); err != nil {
			j.t.Fatal(err)
		}
	}
}

func (j *journey) until(o client.Object, what string, done func() bool) {
	j.t.Helper()
	waitFor(j.t, fmt.Sprintf("%T %s to have %s", o, o.GetName(), what), func() bool {
		if err := j.env.Client.Get(j.t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			j.t.Fatal(err)
		}
		return done()
	})
}

// carry imports material into a store, makes a data key under it and exports that.
func (j *journey) carry(store string) {
	j.t.Helper()
	key := &v1alpha1.ImportedKey{ObjectMeta: metav1.ObjectMeta{Name: "key-" + store}, Spec: v1alpha1.ImportedKeySpec{
		KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: v1alpha1.ObjectName(store)}, KeySpec: "AES_256",
		ImportParameters: &v1alpha1.ImportParametersSpec{WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_1"},
	}}
	j.create(key)
	j.until(key, "import parameters", func() bool { return key.Status.ImportParameters != nil })
	key.Spec.Material = &v1alpha1.MaterialSpec{
		EncryptedKeyMaterial: base64.StdEncoding.EncodeToString(j.wrap(key.Status.ImportParameters)),
		ImportToken:          key.Status.ImportParameters.ImportToken,
	}
	if err := j.env.Client.Update(j.t.Context(), key); err != nil {
		j.t.Fatal(err)
	}
	j.until(key, "its material", func() bool { return meta.IsStatusConditionTrue(key.Status.Conditions, v1alpha1.ConditionReady) })
	recipient := rsaPair(j.t)
	dataKey := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Name: "data-" + store}, Spec: v1alpha1.DataKeySpec{
		KeyRef: v1alpha1.KeyReference{Kind: "ImportedKey", Name: v1alpha1.ObjectName(key.Name)},
	}}
	exported := &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Name: "export-" + store}, Spec: v1alpha1.ExportedDataKeySpec{
		DataKeyRef:      &v1alpha1.DataKeyReference{Name: v1alpha1.ObjectName(dataKey.Name)},
		PublicKey:       v1alpha1.PublicKeySource{Type: v1alpha1.SourceBlob, Blob: string(recipient.publicPEM(j.t))},
		WrappingKeySpec: "RSA_2048", WrappingAlgorithm: "RSAES_OAEP_SHA_256",
	}}
	j.create(dataKey, exported)
	j.until(exported, "a Secret", func() bool { return exported.Status.SecretRef != nil })
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: j.namespace, Name: exported.Status.SecretRef.Name}}
	if err := j.env.Client.Get(j.t.Context(), client.ObjectKeyFromObject(secret), secret); err != nil {
		j.t.Fatal(err)
	}
	j.secrets["data key of "+store] = recipient.decrypt(j.t, "RSAES_OAEP_SHA_256", secret.Data["exportedDataKey"])
}

func (j *journey) wrap(p *v1alpha1.ImportParameters) []byte {
	j.t.Helper()
	spki, err := b64.Decode(p.PublicKey)
	if err != nil {
		j.t.Fatal(err)
	}
	public := openssl(j.t, spki, "pkey", "-pubin", "-inform", "DER")
	args := append([]string{"pkeyutl", "-encrypt", "-pubin", "-inkey", file(j.t, "public.pem", public)}, opensslOptions[p.WrappingAlgorithm]...)
	return openssl(j.t, j.secrets["material"], args...)
}

// findRootKeys finds what the software store seals its keys under.
func (j *journey) findRootKeys() {
	j.t.Helper()
	var all corev1.SecretList
	if err := j.env.Client.List(j.t.Context(), &all, client.InNamespace(j.namespace)); err != nil {
		j.t.Fatal(err)
	}
	for _, s := range all.Items {
		if root := s.Data["rootKey"]; root != nil {
			j.secrets["root key"] = root
		}
	}
	if j.secrets["root key"] == nil {
		j.t.Fatal("there is no root key to look for")
	}
}

// dumped matches a line of hex.Dump, as client-go logs a body of protobuf.
var dumped = regexp.MustCompile(`[0-9a-f]{8}  ([0-9a-f]{2}(?: {1,2}[0-9a-f]{2}){0,15})`)

// undump returns what was dumped in a text.
func undump(said string) string {
	var raw []byte
	for _, line := range dumped.FindAllStringSubmatch(said, -1) {
		part, err := hex.DecodeString(strings.ReplaceAll(line[1], " ", ""))
		if err == nil {
			raw = append(raw, part...)
		}
	}
	return string(raw)
}

// checkLogged looks for each secret in plain, Base64, hexadecimal, as JSON writes bytes, as Go prints them, and in
// dumps of bytes.
func (j *journey) checkLogged(said string) {
	j.t.Helper()
	if !strings.Contains(said, "Reconcile successful") && !strings.Contains(said, "Reconcile done") {
		j.t.Error("the log is not at a high level: it does not tell of every reconcile")
	}
	lower := strings.ToLower(said + undump(said))
	for name, secret := range j.secrets {
		text, err := json.Marshal(string(secret))
		if err != nil {
			j.t.Fatal(err)
		}
		for form, value := range map[string]string{
			"as it is": string(secret), "in JSON": strings.Trim(string(text), `"`), "as Go prints bytes": strings.Trim(fmt.Sprint(secret), "[]"),
			"in Base64": strings.TrimRight(base64.StdEncoding.EncodeToString(secret), "="), "in hex": hex.EncodeToString(secret),
		} {
			if strings.Contains(lower, strings.ToLower(value)) {
				j.t.Errorf("the log has the %s %s", name, form)
			}
		}
	}
}

// At a start, people see what runs, and not what the libraries do.
func saysWhatRuns(t *testing.T, env *testenv.Env, token tokens.Token) {
	j := &journey{t: t, env: env, namespace: env.Namespace(t)}
	stop := j.startManager(token, "--pkcs11-module=missing=/no/such/library.so", "--audit-log=off")
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "missing"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{Module: "missing", Token: v1alpha1.TokenSelector{Label: "x"}}}}
	j.create(store)
	j.until(store, "a condition", func() bool { return meta.IsStatusConditionTrue(store.Status.Conditions, v1alpha1.ConditionReconciling) })
	said := stop()
	resolved, err := filepath.EvalSymlinks(token.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{
		`"msg":"Starting Keyconvoy","version":"dev"`, `"namespace":"` + j.namespace + `"`, `"auditLog":"off"`,
		`"module":"softhsm","path":"` + token.Path + `","resolvedPath":"` + resolved + `"`,
		`"The PKCS#11 library cannot be found","module":"missing","path":"/no/such/library.so"`,
	} {
		if !strings.Contains(said, words) {
			t.Errorf("the log does not say %s", words)
		}
	}
	// Why the library does not load, once, in one line, with the linker's words.
	failures := 0
	for line := range strings.Lines(said) {
		var l struct{ Level, Msg, Error, Reason, Stacktrace string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Errorf("a line is not JSON: %s", line)
		}
		if l.Stacktrace != "" {
			t.Errorf("a line has the stack of the program: %s", line)
		}
		if l.Level == "error" && l.Msg == "The operator failed to reconcile the object" {
			failures++
			if l.Reason != v1alpha1.ReasonModuleMisconfigured || !strings.Contains(l.Error, "/no/such/library.so") {
				t.Errorf("the failure has no cause: %s", line)
			}
		}
		for _, noise := range []string{"EventSource", "Starting workers", "0xc0"} {
			if strings.Contains(line, noise) {
				t.Errorf("a line is for developers: %s", line)
			}
		}
	}
	if failures != 1 {
		t.Errorf("the failure is logged %d times", failures)
	}
}
