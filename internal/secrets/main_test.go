package secrets_test

import (
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/internal/secrets"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

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
	return fixture{NewWithT(t), t, env, env.Namespace(t), secrets.New(env.Client, env.Client)}
}

func (f fixture) key(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: f.ns, Name: name}
}

// make makes an object as somebody else would.
func (f fixture) make(o client.Object) {
	f.t.Helper()
	o.SetNamespace(f.ns)
	f.Expect(f.env.Client.Create(f.t.Context(), o, client.FieldOwner("somebody"))).To(Succeed())
}

// read reads a Secret that must exist.
func (f fixture) read(name string) *corev1.Secret {
	f.t.Helper()
	s := &corev1.Secret{}
	f.Expect(f.env.Client.Get(f.t.Context(), f.key(name), s)).To(Succeed())
	return s
}
