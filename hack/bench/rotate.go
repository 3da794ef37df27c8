package main

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// rotateRun is the rotation of a GeneratedKey, after which n DataKeys are re-encrypted.
type rotateRun struct {
	Store     string         `json:"store"`
	DataKeys  int            `json:"dataKeys"`
	Seconds   float64        `json:"seconds"` // from the request until each DataKey is under the new version
	PerSecond float64        `json:"perSecond"`
	Limit     float64        `json:"limitPerSecond"` // of the bare client, just before and after
	Ratio     float64        `json:"ratioToLimit"`
	Writes    float64        `json:"writesPerDataKey"` // its Secret, its status
	Reads     float64        `json:"readsPerDataKey"`
	Requests  map[string]int `json:"requests"`
	Calls     map[string]int `json:"moduleCalls"`
	CPU       float64        `json:"cpuSeconds"`
	PeakMiB   float64        `json:"peakMiB"`
}

const generatedName = "generated"

// rotate makes n data keys under a GeneratedKey, and rotates it.
func (s *scene) rotate(ctx context.Context, n int) (rotateRun, error) {
	run := rotateRun{Store: s.store.name, DataKeys: n}
	o, err := s.startOperator(ctx, s.store, false)
	if err != nil {
		return run, err
	}
	key, err := s.makeDataKeys(ctx, n)
	if err != nil {
		return run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	first := key.Status.PrimaryVersion
	moved := func(e *watchEvent) bool {
		return e.isReady() && e.Object.Metadata.Name != dataKeyName && e.Object.Status.KeyVersionID != first
	}
	seen, err := s.observeEach(ctx, "datakeys", moved)
	if err != nil {
		return run, err
	}
	defer seen.stop()
	if err := seen.waitSeen(ctx, n); err != nil {
		return run, err
	}
	before, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	start := time.Now()
	asked := key.DeepCopy()
	metav1.SetMetaDataAnnotation(&asked.ObjectMeta, v1alpha1.AnnotationRotate, "now")
	if err := s.Patch(ctx, asked, client.MergeFrom(key)); err != nil {
		return run, err
	}
	end, err := seen.waitReady(ctx, n)
	if err != nil {
		return run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	after, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	spent := after.since(before)
	run.Seconds = end.Sub(start).Seconds()
	run.PerSecond = float64(n) / run.Seconds
	run.Writes, run.Reads = spent.perObject(writeVerbs, n), spent.perObject(readVerbs, n)
	run.Requests, run.Calls, run.CPU, run.PeakMiB = spent.requests, spent.calls, spent.usage.cpu.Seconds(), mib(spent.usage.peak)
	return run, o.stop()
}

// makeDataKeys makes a GeneratedKey and n DataKeys under it, and waits until they are Ready.
func (s *scene) makeDataKeys(ctx context.Context, n int) (*v1alpha1.GeneratedKey, error) {
	key := &v1alpha1.GeneratedKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: generatedName},
		Spec: v1alpha1.GeneratedKeySpec{
			KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: storeName}, KeySpec: "AES_256",
		},
	}
	if err := s.Create(ctx, key); err != nil {
		return nil, err
	}
	if err := s.until(ctx, key, func() bool { return key.Status.PrimaryVersion != "" }); err != nil {
		return nil, err
	}
	seen, err := s.observeEach(ctx, "datakeys", func(e *watchEvent) bool { return e.isReady() && e.Object.Metadata.Name != dataKeyName })
	if err != nil {
		return nil, err
	}
	defer seen.stop()
	err = forEach(ctx, n, setUpConcurrency, func(ctx context.Context, i int) error {
		return s.Create(ctx, &v1alpha1.DataKey{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("dek-%05d", i)},
			Spec: v1alpha1.DataKeySpec{
				KeyRef:       v1alpha1.KeyReference{Kind: "GeneratedKey", Name: generatedName},
				Reencryption: &v1alpha1.ReencryptionSpec{Policy: v1alpha1.ReencryptOnRotation},
			},
		})
	})
	if err != nil {
		return nil, err
	}
	_, err = seen.waitReady(ctx, n)
	return key, err
}
