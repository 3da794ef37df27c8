package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// namespacesRun is an export to n namespaces by one ClusterExportedDataKey.
type namespacesRun struct {
	Store      string         `json:"store"`
	Namespaces int            `json:"namespaces"`
	Seconds    float64        `json:"seconds"` // from its creation until every namespace has its Secret
	PerSecond  float64        `json:"perSecond"`
	Writes     float64        `json:"writesPerNamespace"` // the ExportedDataKey, its Secret, its status
	Reads      float64        `json:"readsPerNamespace"`
	Requests   map[string]int `json:"requests"`
	CPU        float64        `json:"cpuSeconds"`
	PeakMiB    float64        `json:"peakMiB"`
}

const (
	labelWanted = "bench.keyconvoy.io/wanted"
	everywhere  = "everywhere" // the ClusterExportedDataKey
)

// distribute exports the data key of the scene to n namespaces.
func (s *scene) distribute(ctx context.Context, n int) (namespacesRun, error) {
	run := namespacesRun{Store: s.store.name, Namespaces: n}
	err := forEach(ctx, n, setUpConcurrency, func(ctx context.Context, i int) error {
		return s.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("team-%05d", i), Labels: map[string]string{labelWanted: "yes"},
		}})
	})
	if err != nil {
		return run, err
	}
	seen, err := s.observe(ctx)
	if err != nil {
		return run, err
	}
	defer seen.stop()
	o, err := s.startOperator(ctx, s.store, false)
	if err != nil {
		return run, err
	}
	if _, err := o.waitReady(ctx); err != nil {
		return run, err
	}
	before, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	object := s.everywhere()
	start := time.Now()
	if err := s.Create(ctx, object); err != nil {
		return run, err
	}
	end, err := seen.waitReady(ctx, n)
	if err != nil {
		return run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	if err := s.until(ctx, object, func() bool { return object.Status.ReadyNamespaces == int32(n) }); err != nil { //nolint:gosec // n is small
		return run, err
	}
	after, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	spent := after.since(before)
	run.Seconds = end.Sub(start).Seconds()
	run.PerSecond = float64(n) / run.Seconds
	run.Writes, run.Reads = spent.perObject(writeVerbs, n), spent.perObject(readVerbs, n)
	run.Requests, run.CPU, run.PeakMiB = spent.requests, spent.usage.cpu.Seconds(), mib(spent.usage.peak)
	return run, o.stop()
}

func (s *scene) everywhere() *v1alpha1.ClusterExportedDataKey {
	return &v1alpha1.ClusterExportedDataKey{
		ObjectMeta: metav1.ObjectMeta{Name: everywhere},
		Spec: v1alpha1.ClusterExportedDataKeySpec{
			NamespaceSelector: v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{labelWanted: "yes"}},
			Template: v1alpha1.ExportTemplate{
				DataKeyRef:        v1alpha1.NamespacedReference{Namespace: namespace, Name: dataKeyName},
				PublicKey:         v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceBlob, Blob: s.recipient.key.Public().Base64()},
				WrappingKeySpec:   s.recipient.keySpec(),
				WrappingAlgorithm: v1alpha1.ExportAlgorithm(s.recipient.Algorithm),
			},
		},
	}
}
