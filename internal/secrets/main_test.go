package secrets_test

import (
	"testing"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/secrets"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// untilInForce bounds the wait for a quota or a policy to be in force.
const untilInForce = time.Minute

func TestMain(m *testing.M) { testenv.Main(m) }

// fixture is a namespace and a Client of Secrets, without a cache.
type fixture struct {
	*WithT
	t       *testing.T
	env     *testenv.Env
	ns      string
	secrets *secrets.Client
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	env := testenv.Start(t)
	ns := env.Namespace(t)
	return fixture{NewWithT(t), t, env, ns, secrets.New(env.Client, env.Client, nil, ns)}
}

// make creates an object as another user would.
func (f fixture) make(o client.Object) {
	f.t.Helper()
	o.SetNamespace(f.ns)
	f.Expect(f.env.Client.Create(f.t.Context(), o, client.FieldOwner("another-user"))).To(Succeed())
}

// read reads a Secret that must exist.
func (f fixture) read(name string) *corev1.Secret {
	f.t.Helper()
	s := &corev1.Secret{}
	f.Expect(f.env.Client.Get(f.t.Context(), types.NamespacedName{Namespace: f.ns, Name: name}, s)).To(Succeed())
	return s
}
