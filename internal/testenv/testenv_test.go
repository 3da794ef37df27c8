package testenv_test

import (
	"os/exec"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestAddUser_hasNoPermissionsByDefault(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	ns := env.Namespace(t)

	err := env.As(t, "eve").List(t.Context(), &v1alpha1.DataKeyList{}, client.InNamespace(ns))
	g.Expect(apierrors.IsForbidden(err)).To(BeTrue(), "%v", err)
	g.Expect(env.Client.List(t.Context(), &v1alpha1.DataKeyList{}, client.InNamespace(ns))).To(Succeed())
}

func TestKubeconfig_worksForAnotherProcess(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	ns := env.Namespace(t)

	for user, cfg := range map[string]string{
		"kubernetes-admin": env.Kubeconfig(t, nil, ns),
		"ada":              env.Kubeconfig(t, env.AddUser("ada"), ns),
	} {
		out, err := exec.CommandContext(t.Context(), env.Kubectl(), "--kubeconfig", cfg,
			"auth", "whoami", "-o", "jsonpath={.status.userInfo.username}").CombinedOutput()
		g.Expect(err).NotTo(HaveOccurred(), string(out))
		if user == "ada" {
			g.Expect(strings.TrimSpace(string(out))).To(Equal(user))
		}
	}
}

func TestCounting_separatesWritesReadsListsAndWatches(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	env := testenv.Start(t)
	ns, other := env.Namespace(t), env.Namespace(t)
	cfg, counter := env.Counting()
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: env.Scheme})
	g.Expect(err).NotTo(HaveOccurred())

	secret := corev1ac.Secret("s", ns).WithStringData(map[string]string{"k": "v"})
	g.Expect(c.Apply(t.Context(), secret, client.FieldOwner("test"), client.ForceOwnership)).To(Succeed())
	key := client.ObjectKey{Namespace: ns, Name: "s"}
	g.Expect(c.Get(t.Context(), key, &corev1.Secret{})).To(Succeed())
	meta := &metav1.PartialObjectMetadata{}
	meta.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	g.Expect(c.Get(t.Context(), key, meta)).To(Succeed())
	g.Expect(c.List(t.Context(), &corev1.SecretList{}, client.InNamespace(ns))).To(Succeed())
	watch, err := c.Watch(t.Context(), &corev1.SecretList{}, client.InNamespace(ns))
	g.Expect(err).NotTo(HaveOccurred())
	watch.Stop()

	key2 := &v1alpha1.KeyStore{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "k"},
		Spec:       v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware},
	}
	g.Expect(c.Create(t.Context(), key2)).To(Succeed())
	key2.Status.ObservedGeneration = 1
	g.Expect(c.Status().Update(t.Context(), key2)).To(Succeed())
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"observedGeneration":2}}`))
	g.Expect(c.Status().Patch(t.Context(), key2, patch)).To(Succeed())
	g.Expect(c.Delete(t.Context(), key2)).To(Succeed())
	g.Expect(c.DeleteAllOf(t.Context(), &corev1.Secret{}, client.InNamespace(ns))).To(Succeed())
	g.Expect(c.Get(t.Context(), client.ObjectKey{Name: ns}, &corev1.Namespace{})).To(Succeed())

	g.Expect(counter.In(ns)).To(Equal(testenv.Counts{
		Writes: map[string]int{
			"apply secrets": 1, "create keystores": 1, "update keystores/status": 1, "patch keystores/status": 1,
			"delete keystores": 1, "deletecollection secrets": 1,
		},
		Reads:   map[string]int{"get secrets": 2},
		Lists:   map[string]int{"list secrets": 1},
		Watches: map[string]int{"watch secrets": 1},
	}))
	g.Expect(counter.In(other).Writes).To(BeEmpty())
	g.Expect(counter.In("").Reads).To(Equal(map[string]int{"get namespaces": 1}))
	g.Expect(counter.Where(func(r testenv.Request) bool { return r.Metadata }).Reads).To(Equal(map[string]int{"get secrets": 1}))

	counter.Reset()
	g.Expect(counter.Requests()).To(BeEmpty())
}
