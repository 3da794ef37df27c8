//go:build cgo

// Package gateway tests the built gateway with the official clients of the documented API, in all signatures and formats that they have.
package gateway

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

const (
	system = "keyconvoy-system"
	team   = "team-a"
)

// site is an operator and two gateways, built and started as users do.
type site struct {
	client.Client

	ca       string // PEM
	caFile   string
	gateways [2]string // host and port
	pids     [2]int
	operator int          // its process
	killed   map[int]bool // the processes that a test killed
	config   *rest.Config
	// launchOperator starts an operator with a kubeconfig.
	launchOperator func(kubeconfig string) (pid int)
	env            []string // of all processes
	id, key        string   // an access key for the software store
	tokens         map[string]v1alpha1.KeyStoreSpec
}

func root(t testing.TB, path ...string) string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join(append([]string{"..", ".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// start starts the site. It ends with the test.
func start(t testing.TB) *site {
	t.Helper()
	env := &envtest.Environment{
		CRDDirectoryPaths: []string{root(t, "config", "crd", "bases")}, ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: 3 * time.Minute, ControlPlaneStopTimeout: time.Minute,
	}
	cfg, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, env.Stop()) })
	scheme := runtime.NewScheme()
	must(t, clientgoscheme.AddToScheme(scheme))
	must(t, v1alpha1.AddToScheme(scheme))
	s := &site{config: cfg, killed: map[int]bool{}}
	s.Client, err = client.New(cfg, client.Options{Scheme: scheme})
	must(t, err)
	for _, name := range []string{system, team} {
		must(t, s.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
	s.applyRoles(t)
	dir := t.TempDir()
	binary := filepath.Join(dir, "keyconvoy")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Dir = root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.certificates(t, dir)
	softHSM, nss := tokens.SoftHSM(t), tokens.FreshNSS(t)
	libraries := []string{
		"--pkcs11-module=softhsm=" + softHSM.Path, "--pkcs11-allow-path=softhsm=" + softHSM.Dir + ":rw",
		"--pkcs11-module=nss=" + nss.Path, "--pkcs11-parameters=nss=" + nss.Parameters, "--pkcs11-allow-path=nss=" + nss.Dir + ":rw",
	}
	s.env = append(append(os.Environ(), "POD_NAMESPACE="+system), softHSM.Env...)
	s.launchOperator = func(kubeconfig string) int {
		return s.launch(t, binary, libraries, "manager", "--kubeconfig", kubeconfig, "--metrics-bind-address=0", "--health-probe-bind-address=0")
	}
	s.operator = s.launchOperator(kubeconfig(t, dir, cfg, ""))
	for i := range s.gateways {
		s.gateways[i] = freeAddress(t)
		probes := freeAddress(t)
		s.pids[i] = s.launch(t, binary, libraries, "gateway", "--kubeconfig", kubeconfig(t, dir, cfg, "system:serviceaccount:"+system+":gateway"),
			"--bind-address="+s.gateways[i], "--tls-dir="+dir, "--metrics-bind-address=0", "--health-probe-bind-address="+probes)
		eventually(t, func() error {
			response, err := http.Get("http://" + probes + "/readyz")
			if err != nil {
				return err
			}
			defer response.Body.Close()
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("the probe is answered with %s", response.Status)
			}
			return nil
		})
	}
	s.id, s.key = s.accessKey(t, "main", v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware})
	s.tokens = map[string]v1alpha1.KeyStoreSpec{}
	for name, token := range map[string]tokens.Token{"softhsm": softHSM, "nss": nss} {
		must(t, s.Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name}, StringData: map[string]string{"pin": token.PIN},
		}))
		s.tokens[name] = v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{
			Module: name, Token: v1alpha1.TokenSelector{Label: token.Label}, PINSecretRef: &v1alpha1.EntryReference{Name: v1alpha1.ObjectName(name), Key: "pin"},
		}}
	}
	return s
}

// applyRoles applies the permissions of the gateway as config/gateway has them, so that the tests find missing ones.
func (s *site) applyRoles(t testing.TB) {
	t.Helper()
	text, err := os.ReadFile(root(t, "config", "gateway", "rbac.yaml"))
	must(t, err)
	for _, document := range strings.Split(strings.ReplaceAll(string(text), "namespace: system", "namespace: "+system), "\n---\n") {
		u := &unstructured.Unstructured{}
		must(t, yaml.Unmarshal([]byte(document), &u.Object))
		must(t, s.Create(t.Context(), u))
	}
}

// accessKey makes a key store, and an access key that may do everything with keys.
func (s *site) accessKey(t testing.TB, name string, store v1alpha1.KeyStoreSpec) (id, secret string) {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: team, Name: name}
	key := &v1alpha1.AccessKey{ObjectMeta: meta, Spec: v1alpha1.AccessKeySpec{
		ServiceAccountName: v1alpha1.ObjectName(name), KeyStoreRef: &v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: v1alpha1.ObjectName(name)},
	}}
	for _, o := range []client.Object{
		&v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: store}},
		&corev1.ServiceAccount{ObjectMeta: meta},
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"keyconvoy.io"}, Resources: []string{"importedkeys", "generatedkeys"}, Verbs: []string{"get", "list", "create", "update", "use", "export"},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: team, Name: name}},
		},
		key,
	} {
		must(t, s.Create(t.Context(), o))
	}
	object := &corev1.Secret{}
	eventually(t, func() error { return s.Get(t.Context(), client.ObjectKeyFromObject(key), object) })
	return string(object.Data["accessKeyId"]), string(object.Data["accessKeySecret"])
}

// certificates writes a certificate for the gateways, and that of its authority.
func (s *site) certificates(t testing.TB, dir string) {
	t.Helper()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "gateway"}, NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), caKey)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	write := func(name, kind string, content []byte) string {
		text := string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		return text
	}
	write("tls.crt", "CERTIFICATE", der)
	write("tls.key", "PRIVATE KEY", pkcs8)
	s.ca, s.caFile = write("ca.pem", "CERTIFICATE", ca), filepath.Join(dir, "ca.pem")
}

// trust returns a configuration that trusts the authority.
func (s *site) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(s.ca))
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// kubeconfig writes a kubeconfig of the administrator, or of the user that it impersonates.
func kubeconfig(t testing.TB, dir string, cfg *rest.Config, as string) string {
	t.Helper()
	file := clientcmdapi.Config{
		CurrentContext: "test", Contexts: map[string]*clientcmdapi.Context{"test": {Cluster: "test", AuthInfo: "test"}},
		Clusters:  map[string]*clientcmdapi.Cluster{"test": {Server: cfg.Host, CertificateAuthorityData: cfg.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"test": {ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData, Impersonate: as}},
	}
	path := filepath.Join(dir, "kubeconfig-"+strings.NewReplacer(":", "-").Replace(as))
	must(t, clientcmd.WriteToFile(file, path))
	return path
}

// launch starts the binary. It ends with the test.
func (s *site) launch(t testing.TB, binary string, libraries []string, args ...string) (pid int) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(binary, append(args, libraries...)...)
	cmd.Env = s.env
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil && !s.killed[cmd.Process.Pid] {
			t.Errorf("%s ended with %v", args[0], err)
		}
		if t.Failed() {
			t.Logf("The log of %s:\n%s", args[0], log.String())
		}
	})
	return cmd.Process.Pid
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually tries until there is no error.
func eventually(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}
