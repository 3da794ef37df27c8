package cli_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestManager_usedWronglyExitsWith2AndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"a library without a name":        {[]string{"--pkcs11-module", "/usr/lib/softhsm.so"}, "NAME=PATH"},
		"parameters of no library":        {[]string{"--pkcs11-parameters", "nss=flags="}, "--pkcs11-module"},
		"no namespace of its own":         {nil, "POD_NAMESPACE"},
		"profiles for everybody":          {[]string{"--profiling", "0.0.0.0:6060"}, "loopback"},
		"profiles for the network":        {[]string{"--profiling", "192.0.2.1:6060"}, "loopback"},
		"profiles on all interfaces":      {[]string{"--profiling", ":6060"}, "127.0.0.1:6060"},
		"profiles at whatever a name is":  {[]string{"--profiling", "localhost:6060"}, "IP address"},
		"profiles at no port":             {[]string{"--profiling", "127.0.0.1"}, "port"},
		"an invalid name of a namespace":  {[]string{"--namespaces", "team-a,Team B"}, "Team B"},
		"an argument where none belongs":  {[]string{"now"}, "now"},
		"profiles on an IPv6 all-address": {[]string{"--profiling", "[::]:6060"}, "loopback"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keyconvoy(t, append([]string{"manager"}, test.args...)...).fails(t, 2, test.says)
		})
	}
}

func TestManager_showsMetricsToThoseWhoMayReadThemOnly(t *testing.T) {
	t.Parallel()
	m := startManager(t)
	allowed, other := m.account(t, "prometheus"), m.account(t, "another-account")
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: m.namespace},
		Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{"/metrics"}, Verbs: []string{"get"}}},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: m.namespace},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: m.namespace, Name: "prometheus"}},
	}
	if err := m.env.Client.Create(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	if err := m.env.Client.Create(t.Context(), binding); err != nil {
		t.Fatal(err)
	}

	// The API server takes a moment to see a new role.
	waitAllowed(t, m.env, authorizationv1.SubjectAccessReviewSpec{
		User:                  "system:serviceaccount:" + m.namespace + ":prometheus",
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/metrics", Verb: "get"},
	})
	code, body := m.get(t, "https://"+m.metrics+"/metrics", "Bearer "+allowed)
	if code != http.StatusOK {
		t.Fatalf("an account that may read the metrics gets %d: %.200q", code, body)
	}
	if !strings.Contains(body, "\nrest_client_requests_total{") {
		t.Errorf("these are no metrics: %.200q", body)
	}
	for name, test := range map[string]struct {
		authorization string
		code          int
	}{
		"no token":                    {"", http.StatusUnauthorized},
		"an empty token":              {"Bearer ", http.StatusUnauthorized},
		"a token that is not valid":   {"Bearer not-a-token", http.StatusUnauthorized},
		"a token of another kind":     {"Basic " + allowed, http.StatusUnauthorized},
		"an account without the role": {"Bearer " + other, http.StatusForbidden},
		"the right token, cut short":  {"Bearer " + allowed[:len(allowed)-8], http.StatusUnauthorized},
		"the right token":             {"Bearer " + allowed, http.StatusOK},
		"the right token, in small":   {"bearer " + allowed, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			code, body := m.get(t, "https://"+m.metrics+"/metrics", test.authorization)
			if code != test.code {
				t.Errorf("it gets %d, want %d: %.200q", code, test.code, body)
			}
			if test.code != http.StatusOK && strings.Contains(body, "rest_client") {
				t.Error("it is shown metrics all the same")
			}
		})
	}
}

// A replica that does not lead fills its caches, too. Until it has, it says what is missing.
func TestManager_isReadyWhenItsCachesAreFilled_andOtherwiseSaysWhy(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	user := env.Namespace(t)
	mayWatch := func(name string, resources ...string) {
		role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user + name}, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"", "keyconvoy.io", "coordination.k8s.io"}, Resources: resources, Verbs: []string{"get", "list", "watch"},
		}}}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: user + name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: user}},
		}
		for _, o := range []client.Object{role, binding} {
			if err := env.Client.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	mayWatch("-first", "keystores", "clusterkeystores", "generatedkeys", "datakeys", "exporteddatakeys", "clusterexporteddatakeys", "accesskeys",
		"secrets", "configmaps", "namespaces", "leases")
	m := startManagerAs(t, env.AddUser(user))

	waitFor(t, "the reason to be given", func() bool {
		code, body := m.get(t, "http://"+m.probes+"/readyz", "")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "ImportedKey") && strings.Contains(body, "forbidden") && strings.Count(body, "the cache of") == 1
	})
	if code, _ := m.get(t, "http://"+m.probes+"/healthz", ""); code != http.StatusOK {
		t.Errorf("/healthz answers %d: a restart would not help", code)
	}
	mayWatch("-second", "importedkeys")
	waitFor(t, "the manager to be ready", func() bool {
		code, _ := m.get(t, "http://"+m.probes+"/readyz?verbose", "")
		return code == http.StatusOK
	})
}

// How it ends is checked when the test is over.
func TestManager_whoseCachesAreNotFilled_endsAllTheSame(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	m := startManagerAs(t, env.AddUser(env.Namespace(t)))
	waitFor(t, "the reason to be given", func() bool {
		_, body := m.get(t, "http://"+m.probes+"/readyz", "")
		return strings.Contains(body, "forbidden")
	})
}

func TestManager_servesProfilesOnTheLoopbackInterface(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	m := startManager(t, "--profiling", address)

	if code, body := m.get(t, "http://"+address+"/debug/pprof/cmdline", ""); code != http.StatusOK || !strings.Contains(body, "manager") {
		t.Errorf("the profiles answer %d %q", code, body)
	}
	if code, _ := m.get(t, "http://"+m.probes+"/debug/pprof/cmdline", ""); code != http.StatusNotFound {
		t.Errorf("the probes' address answers for profiles, too: %d", code)
	}
}

// manager is the operator as a process. It is ready and never becomes the leader: the objects of other tests are
// not for it.
type manager struct {
	env       *testenv.Env
	namespace string
	metrics   string
	probes    string
	client    *http.Client
}

func startManager(t *testing.T, flags ...string) *manager {
	t.Helper()
	return startManagerAs(t, nil, flags...)
}

// startManagerAs starts it as a user of the cluster; nil for the administrator.
func startManagerAs(t *testing.T, user *rest.Config, flags ...string) *manager {
	t.Helper()
	env := testenv.Start(t)
	m := &manager{
		env: env, namespace: env.Namespace(t), metrics: freeAddress(t), probes: freeAddress(t),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	leader := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: "manager.keyconvoy.io"},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To("another"), LeaseDurationSeconds: ptr.To[int32](3600),
			RenewTime: ptr.To(metav1.NowMicro()), AcquireTime: ptr.To(metav1.NowMicro()),
		},
	}
	if err := env.Client.Create(t.Context(), leader); err != nil {
		t.Fatal(err)
	}
	c := call{
		args: append([]string{
			"manager", "--leader-elect", "--kubeconfig", env.Kubeconfig(t, user, m.namespace),
			"--metrics-bind-address", m.metrics, "--health-probe-bind-address", m.probes,
		}, flags...),
		env: []string{"POD_NAMESPACE=" + m.namespace},
	}
	cmd := c.commandContext(t.Context(), t)
	// When the test is over it ends as in a rollout.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Minute
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
		if m.client.CloseIdleConnections(); !cmd.ProcessState.Success() {
			said, _ := os.ReadFile(log.Name())
			t.Errorf("the manager ended with %s\n%s", cmd.ProcessState, said)
		}
	})
	waitFor(t, "the manager to get ready", func() bool {
		return m.answers("http://"+m.probes+"/readyz") && m.answers("https://"+m.metrics+"/metrics")
	})
	return m
}

func (m *manager) answers(url string) bool {
	resp, err := m.client.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return true
}

// get returns what an address answers.
func (m *manager) get(t *testing.T, url, authorization string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := m.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// account makes a ServiceAccount, and returns a token of it.
func (m *manager) account(t *testing.T, name string) string {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: m.namespace, Name: name}}
	if err := m.env.Client.Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	request := &authenticationv1.TokenRequest{}
	if err := m.env.Client.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// freeAddress has an IP address of its own, all of 127/8 being loopback: a port of 127.0.0.1 could become that
// of a connection before it is used.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(256), 1+rand.N(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
