package controllers

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// gate refuses the requests for one resource while it is closed. Closing it ends the watches that run.
type gate struct {
	next     http.RoundTripper
	resource string

	mu     sync.Mutex
	closed bool
	ends   []context.CancelFunc
}

// RoundTrip implements http.RoundTripper.
func (g *gate) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(req.URL.Path, "/"+g.resource) {
		return g.next.RoundTrip(req)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		status := `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "The gate is closed."}`
		return &http.Response{
			StatusCode: http.StatusForbidden, Request: req, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(status)),
		}, nil
	}
	ctx, end := context.WithCancel(req.Context())
	g.ends = append(g.ends, end)
	return g.next.RoundTrip(req.WithContext(ctx))
}

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
	for _, end := range g.ends {
		end()
	}
	g.ends = nil
}

// A kind whose list or watch keeps failing is named, by the check and by the metrics, until it is followed again. The
// other kinds are not affected.
func TestCaches_nameTheKindThatIsNotFollowed(t *testing.T) {
	t.Parallel()
	env := testenv.Start(t)
	cfg := rest.CopyConfig(env.Config)
	g := &gate{resource: "importedkeys", closed: true}
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		g.next = next
		return g
	})
	informers, err := cache.New(cfg, cache.Options{Scheme: env.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	caches := NewCaches()
	if err := caches.follow(t.Context(), informers); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(caches)
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running.Go(func() { _ = informers.Start(ctx) })

	until := func(says ...string) {
		t.Helper()
		waitUntil(t, func() bool {
			err := caches.Check()
			if len(says) == 0 {
				return err == nil
			}
			return err != nil && strings.Count(err.Error(), "the cache of") == 1 && strings.Contains(err.Error(), says[0]) && strings.Contains(err.Error(), says[1])
		}, func() any { return caches.Check() })
	}
	until("the cache of ImportedKey is not filled: ", "The gate is closed.")
	if synced, failed := seriesOf(t, registry, "ImportedKey"); synced != 0 || failed == 0 {
		t.Errorf("the metrics say synced %v and %v errors", synced, failed)
	}
	g.set(false)
	until()
	if synced, _ := seriesOf(t, registry, "ImportedKey"); synced != 1 {
		t.Error("the metric does not say that the cache is filled")
	}

	_, before := seriesOf(t, registry, "ImportedKey")
	g.set(true)
	until("the cache of ImportedKey does not follow the API server: ", "The gate is closed.")
	if synced, failed := seriesOf(t, registry, "ImportedKey"); synced != 0 || failed < before+failuresInARow {
		t.Errorf("the metrics say synced %v and %v errors after %v", synced, failed, before)
	}
	if synced, failed := seriesOf(t, registry, "DataKey"); synced != 1 || failed != 0 {
		t.Errorf("the metrics say of another kind synced %v and %v errors", synced, failed)
	}
	g.set(false)
	// The API server tells of a change, or within a minute that there is none.
	key := &v1alpha1.ImportedKey{ObjectMeta: metav1.ObjectMeta{Namespace: env.Namespace(t), Name: "key"}}
	key.Spec.KeyStoreRef = v1alpha1.KeyStoreReference{Kind: keystore.KindKeyStore, Name: "store"}
	key.Spec.KeySpec = "SM4"
	key.Spec.ImportParameters = &v1alpha1.ImportParametersSpec{WrappingKeySpec: "EC_SM2", WrappingAlgorithm: "SM2PKE"}
	if err := env.Client.Create(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	until()
}

func seriesOf(t *testing.T, registry *prometheus.Registry, kind string) (synced, failed float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if m.GetLabel()[0].GetValue() == kind {
				synced += m.GetGauge().GetValue()
				failed += m.GetCounter().GetValue()
			}
		}
	}
	return synced, failed
}

// waitUntil waits for what other processes do: it is patient with slow machines.
func waitUntil(t *testing.T, done func() bool, state func() any) {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("Still: %v", state())
		case <-tick.C:
		}
	}
}
