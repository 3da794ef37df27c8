package controllers_test

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestImportedKey_secondReconcileAndRestart_costNothing(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			store := o.store(t, kind)
			wrapping := under("RSA_2048", "RSAES_OAEP_SHA_1")
			fromInline := o.enabledKey(t, "inline", nil, wrapping)
			fromSource := o.pendingKey(t, "source", wrapping)
			pending := o.pendingKey(t, "pending", wrapping)
			p := fromSource.Status.ImportParameters
			o.Make(t, &corev1.Secret{ObjectMeta: named("source"), Data: map[string][]byte{"material": wrapUnder(t, p, o.material(32))}})
			o.give(t, fromSource, &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret("source", "material"), ImportToken: p.ImportToken})
			o.enabled(t, fromSource)
			keys := []client.Object{fromInline, fromSource, pending}
			o.Settled(t, pending)
			o.quiet(t, fromInline, fromSource)

			for _, key := range keys {
				o.Touch(t, key)
			}
			o.costsNothing(t)

			var versions []string
			for _, key := range keys {
				o.Read(t, key)
				versions = append(versions, key.GetResourceVersion())
			}
			o.Restart(t)
			o.Settled(t, append(keys, store)...)
			if w := o.Writes(); len(w) != 0 {
				t.Errorf("the restart wrote: %v", w)
			}
			if calls := o.Calls(); len(calls) != 0 {
				t.Errorf("the restart called the module: %v", calls)
			}
			for i, key := range keys {
				if o.Read(t, key); key.GetResourceVersion() != versions[i] {
					t.Errorf("%s changed", key.GetName())
				}
			}
		})
	}
}

func TestImportedKey_firstImport_costsOneStatusWriteAndOneEvent(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := o.pendingKey(t, "key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.Settled(t, key)
	p := key.Status.ImportParameters
	m := inline(wrapUnder(t, p, o.material(32)), p.ImportToken)
	o.ForgetCounts()
	o.Again(t, key, func() { o.give(t, key, m) })
	o.enabled(t, key)
	o.Event(t, key, "KeyState")
	if w := o.Writes(); len(w) != 2 || w["patch importedkeys/status"] != 1 || w["create events"] != 1 {
		t.Errorf("it wrote: %v", w)
	}
	if r := o.Requests.All().Reads; len(r) != 0 {
		t.Errorf("it read: %v", r)
	}
	if calls := o.Calls(); calls["ImportKey"] != 1 || calls["CreateWrappingKey"] != 0 {
		t.Errorf("it called: %v", calls)
	}
}

// cut lets a test keep an operator's status writes from the API server.
type cut struct{ on atomic.Bool }

var errCut = errors.New("no way to the API server")

func (c *cut) option() harness.Option {
	return harness.WithConfig(func(cfg *rest.Config) {
		cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if c.on.Load() && r.Method == http.MethodPatch && strings.HasSuffix(r.URL.Path, "/status") {
					return nil, errCut
				}
				return next.RoundTrip(r)
			})
		})
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// sealed are the names of the Secrets with the software store's keys.
func (o *operator) sealed(t testing.TB) map[string]bool {
	t.Helper()
	var list corev1.SecretList
	if err := o.List(t.Context(), &list, client.InNamespace(o.OwnNamespace)); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, s := range list.Items {
		if s.Type == "keyconvoy.io/sealed-key" {
			names[s.Name] = true
		}
	}
	return names
}

func TestOperator_endsBetweenMakingAPairAndSayingSo_findsThePairAgain(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			var c cut
			o := startOperator(t, c.option())
			o.store(t, kind)
			c.on.Store(true)
			key := importedKey("key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
			o.called(t, "CreateWrappingKey", func() { o.Make(t, key) })
			o.Stop(t)
			c.on.Store(false)

			o.Start(t)
			o.Waits(t, key, v1alpha1.ReasonPendingImport)
			pairs := o.pairs(t, key)
			if len(pairs) != 1 {
				t.Fatalf("the module has %d pairs, want 1", len(pairs))
			}
			if pairs[0].ID != publishedPair(t, key) {
				t.Error("it publishes another pair than the module has")
			}
		})
	}
}

func TestOperator_endsBetweenImportAndSayingSo_findsTheKeyAgain(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			var c cut
			o := startOperator(t, c.option())
			o.store(t, kind)
			key := o.pendingKey(t, "key", under("RSA_2048", "RSAES_OAEP_SHA_1"))
			p := key.Status.ImportParameters
			c.on.Store(true)
			m := inline(wrapUnder(t, p, o.material(32)), p.ImportToken)
			o.called(t, "ImportKey", func() { o.give(t, key, m) })
			o.Stop(t)
			c.on.Store(false)
			before := o.sealed(t)
			o.Read(t, key)
			if key.Status.KeyState != "PendingImport" {
				t.Fatalf("the status says %s; the test shows nothing", key.Status.KeyState)
			}

			o.Start(t)
			o.enabled(t, key)
			if !o.inModule(t, key) {
				t.Error("the key is not in the module")
			}
			if n := len(o.pairs(t, key)); n != 1 {
				t.Errorf("the module has %d pairs, want 1", n)
			}
			if after := o.sealed(t); len(after) != len(before) {
				t.Errorf("the store has %d records, before %d", len(after), len(before))
			}
		})
	}
}

// The material may be sealed and nothing known of it while the key is deleted: nothing is left behind.
func TestOperator_endsBetweenImportAndSayingSo_leavesNoOrphan(t *testing.T) {
	t.Parallel()
	var c cut
	o := startOperator(t, c.option())
	o.store(t, onSoftware)
	bare := o.sealed(t)
	key := o.pendingKey(t, "key", withDeletionPolicy(v1alpha1.DeletionDelete))
	p := key.Status.ImportParameters
	c.on.Store(true)
	m := inline(wrapUnder(t, p, o.material(32)), p.ImportToken)
	o.called(t, "ImportKey", func() { o.give(t, key, m) })
	o.Stop(t)
	o.Remove(t, key)
	c.on.Store(false)
	o.Start(t)
	o.Gone(t, key)
	// The key of the import tokens stays: it is the store's.
	if left := o.sealed(t); len(left) > len(bare)+1 {
		t.Errorf("%d records are left, %d before", len(left), len(bare))
	}
}

// called does something and waits until a call of that method, to the module that was opened last, is over.
func (o *operator) called(t testing.TB, method string, cause func()) {
	t.Helper()
	over := make(chan struct{})
	o.Module(t).After(method, sync.OnceFunc(func() { close(over) }))
	cause()
	select {
	case <-over:
	case <-time.After(harness.Patience):
		t.Fatalf("%s is not called", method)
	}
}
