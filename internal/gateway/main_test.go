package gateway_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/gateway"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// replica is a gateway of a test's operator.
type replica struct {
	o       *harness.Operator
	handler http.Handler
	audit   harness.Buffer
}

// run starts an operator with a software store, and a gateway.
func run(t *testing.T) (*harness.Operator, *replica) {
	t.Helper()
	o := harness.Run(t, testenv.Start(t))
	o.Make(t, &v1alpha1.KeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: "main"}, Spec: v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware},
	})
	return o, start(t, o)
}

// settings are what is different in a gateway.
type settings struct {
	modules   hsm.Provider
	failPatch *atomic.Bool // whether the patches of objects fail; nil for no
}

// start starts another gateway.
func start(t *testing.T, o *harness.Operator, changes ...func(*settings)) *replica {
	t.Helper()
	s := settings{modules: inprocess.Provider(nil)}
	for _, change := range changes {
		change(&s)
	}
	scheme, err := gateway.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	caches, err := gateway.CacheOptions(o.OwnNamespace)
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := ctrl.NewManager(o.Env.Config, ctrl.Options{
		Scheme: scheme, Cache: caches, Client: gateway.ClientOptions(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
		NewClient: func(cfg *rest.Config, options ctrlclient.Options) (ctrlclient.Client, error) {
			c, err := ctrlclient.New(cfg, options)
			return marking{c, o, s.failPatch}, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{o: o}
	ctx, cancel := context.WithCancel(context.Background())
	r.handler, err = gateway.Setup(ctx, mgr, gateway.Options{
		Modules: s.modules, OperatorNamespace: o.OwnNamespace, Audit: audit.New(&r.audit, ctrl.Log),
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("The gateway ended with %v", err)
		}
	})
	return r
}

// marking gives the objects that a gateway creates the mark of the test's operator, which sees no others.
type marking struct {
	ctrlclient.Client

	o         *harness.Operator
	failPatch *atomic.Bool
}

// Patch implements client.Client.
func (m marking) Patch(ctx context.Context, object ctrlclient.Object, patch ctrlclient.Patch, options ...ctrlclient.PatchOption) error {
	if m.failPatch != nil && m.failPatch.Load() {
		return errEnded
	}
	return m.Client.Patch(ctx, object, patch, options...)
}

// Create implements client.Client.
func (m marking) Create(ctx context.Context, object ctrlclient.Object, options ...ctrlclient.CreateOption) error {
	switch object.(type) {
	case *v1alpha1.ImportedKey, *v1alpha1.GeneratedKey:
		object.SetLabels(m.o.Mark())
	}
	return m.Client.Create(ctx, object, options...)
}

// client is who calls gateways with an access key.
type client struct {
	id, secret string
	object     *v1alpha1.AccessKey
}

// allow makes a ServiceAccount in a namespace with the verbs on keys of a namespace, and an access key for it.
func (r *replica) allow(t *testing.T, namespace, name string, verbs ...string) *client {
	t.Helper()
	r.o.Make(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	r.grant(t, namespace, namespace, name, verbs...)
	object := &v1alpha1.AccessKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.AccessKeySpec{
			ServiceAccountName: v1alpha1.ObjectName(name), KeyStoreRef: &v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "main"},
		},
	}
	r.o.Make(t, object)
	r.o.Ready(t, object)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	r.o.Read(t, secret)
	c := &client{id: string(secret.Data["accessKeyId"]), secret: string(secret.Data["accessKeySecret"]), object: object}
	r.eventually(t, c, "DescribeKey", map[string]string{"KeyId": uuid.NewString()}, "Forbidden.KeyNotFound")
	return c
}

// grant gives a ServiceAccount verbs on the keys of a namespace.
func (r *replica) grant(t *testing.T, of, namespace, name string, verbs ...string) {
	t.Helper()
	if len(verbs) == 0 {
		return
	}
	binding := namespace + "-" + name
	r.o.Make(t,
		&rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Namespace: of, Name: binding},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"keyconvoy.io"}, Resources: []string{"importedkeys", "generatedkeys"}, Verbs: verbs}},
		},
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: of, Name: binding},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: binding},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
		})
}

// all are the verbs of an administrator of keys.
var all = []string{"get", "list", "create", "update", "use", "export"}

// answer is the answer to a request.
type answer struct {
	status int
	body   map[string]any
}

func (a answer) code() string {
	code, _ := a.body["Code"].(string)
	return code
}

// text returns a member, by the names on the path to it.
func (a answer) text(t *testing.T, path ...string) string {
	t.Helper()
	value := any(a.body)
	for _, name := range path {
		object, ok := value.(map[string]any)
		if !ok {
			t.Fatalf("There is no %v in %v", path, a.body)
		}
		value = object[name]
	}
	return fmt.Sprint(value)
}

// call sends a request, signed as official clients do.
func (r *replica) call(t *testing.T, c *client, action string, parameters map[string]string) answer {
	t.Helper()
	query := url.Values{}
	for name, value := range parameters {
		query.Set(name, value)
	}
	empty := sha256.Sum256(nil)
	headers := map[string]string{
		"host": "gateway.test", "x-acs-action": action, "x-acs-version": "2016-01-20", "x-acs-date": time.Now().UTC().Format(time.RFC3339),
		"x-acs-signature-nonce": uuid.NewString(), "x-acs-content-sha256": hex.EncodeToString(empty[:]),
	}
	names := slices.Sorted(maps.Keys(headers))
	text := "POST\n/\n" + strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(query.Encode()) + "\n"
	for _, name := range names {
		text += name + ":" + headers[name] + "\n"
	}
	digest := sha256.Sum256([]byte(text + "\n" + strings.Join(names, ";") + "\n" + headers["x-acs-content-sha256"]))
	mac := hmac.New(sha256.New, []byte(c.secret))
	mac.Write([]byte("ACS3-HMAC-SHA256\n" + hex.EncodeToString(digest[:])))
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/?"+query.Encode(), nil)
	request.Host = headers["host"]
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	request.Header.Set("Authorization", fmt.Sprintf("ACS3-HMAC-SHA256 Credential=%s,SignedHeaders=%s,Signature=%x", c.id, strings.Join(names, ";"), mac.Sum(nil)))
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, request)
	out := answer{status: w.Code}
	decoder := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
	if err := decoder.Decode(&out.body); err != nil {
		t.Fatalf("The answer is no JSON: %v: %s", err, w.Body)
	}
	return out
}

// ok calls an operation that must succeed.
func (r *replica) ok(t *testing.T, c *client, action string, parameters map[string]string) answer {
	t.Helper()
	out := r.call(t, c, action, parameters)
	if out.status != http.StatusOK {
		t.Fatalf("%s is answered with %d %v", action, out.status, out.body)
	}
	return out
}

// fails calls an operation that must fail with a code.
func (r *replica) fails(t *testing.T, c *client, action string, parameters map[string]string, code string) answer {
	t.Helper()
	out := r.call(t, c, action, parameters)
	if out.code() != code {
		t.Errorf("%s is answered with %d %v, want %s", action, out.status, out.body, code)
	}
	return out
}

// eventually calls an operation until it ends with a code, "" for success.
func (r *replica) eventually(t *testing.T, c *client, action string, parameters map[string]string, code string) (out answer) {
	t.Helper()
	harness.Eventually(t, func() string {
		if out = r.call(t, c, action, parameters); out.code() != code {
			return fmt.Sprintf("%s is answered with %d %v, want %q", action, out.status, out.body, code)
		}
		return ""
	})
	return out
}
