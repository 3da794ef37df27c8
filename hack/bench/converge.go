package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// convergeRun is the reconciliation of n new exports of one data key until all are Ready. They exist before the operator
// starts, so that the measurement does not include their creation. The clock starts when its caches are filled.
type convergeRun struct {
	Store     string         `json:"store"`
	Algorithm string         `json:"algorithm"`
	PublicKey string         `json:"publicKey"` // inline or ConfigMap
	Objects   int            `json:"objects"`
	Start     float64        `json:"startSeconds"` // from the start of the process until its caches are filled
	Seconds   float64        `json:"seconds"`
	PerSecond float64        `json:"perSecond"`
	Limit     float64        `json:"limitPerSecond"` // of the bare client at its best concurrency, just before and after
	Ratio     float64        `json:"ratioToLimit"`
	Ratios    []float64      `json:"ratios"` // of all runs; this is the median run
	Writes    float64        `json:"writesPerObject"`
	Reads     float64        `json:"readsPerObject"`
	Requests  map[string]int `json:"requests"`
	Calls     map[string]int `json:"moduleCalls"`
	CPU       float64        `json:"cpuSeconds"`
	PeakMiB   float64        `json:"peakMiB"`
}

// restartRun is a start of the operator with n Ready exports, and a new one that is created at the same time.
type restartRun struct {
	Store    string         `json:"store"`
	Objects  int            `json:"objects"`
	Start    float64        `json:"startSeconds"`     // from the start of the process until its caches are filled
	New      float64        `json:"newObjectSeconds"` // from then until the new export is Ready
	Settled  float64        `json:"settledSeconds"`   // from then until every old export was reconciled
	Requests map[string]int `json:"requests"`         // all, including two writes for the new export
	Calls    map[string]int `json:"moduleCalls"`      // including the one for the new export
	CPU      float64        `json:"cpuSeconds"`
	PeakMiB  float64        `json:"peakMiB"`
}

// steadyRun is a period in which n exports are Ready and the operator has nothing to do.
type steadyRun struct {
	Store    string         `json:"store"`
	Objects  int            `json:"objects"`
	Seconds  float64        `json:"seconds"`
	Requests map[string]int `json:"requests"`
	Sent     int            `json:"requestsSent"` // by the operator, as it counts them
	Rate     float64        `json:"requestsPerSecond"`
	CPU      float64        `json:"cpuSeconds"`
	PeakMiB  float64        `json:"peakMiB"`
}

// scene is a cluster with a key in a store, a data key, and n exports that were not reconciled yet.
type scene struct {
	*cluster
	store     *store
	recipient *recipient
	n         int
}

// newScene creates a scene. The caller must stop it, even after an error.
func newScene(ctx context.Context, t *tools, newStore storeMaker, r *recipient, n int) (*scene, error) {
	c, err := newCluster(ctx, t)
	s := &scene{cluster: c, recipient: r, n: n}
	if err != nil {
		return s, err
	}
	if s.store, err = newStore(ctx, c.dir); err != nil {
		return s, err
	}
	o, err := c.startOperator(ctx, s.store, false)
	if err != nil {
		return s, err
	}
	if err := c.bringKey(ctx, s.store); err != nil {
		return s, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	if err := o.stop(); err != nil {
		return s, err
	}
	return s, c.createExports(ctx, r, 0, n)
}

// storeMaker creates a store, with its files in a directory.
type storeMaker func(ctx context.Context, dir string) (*store, error)

func storeNamed(name string) storeMaker {
	return func(ctx context.Context, dir string) (*store, error) { return newStore(ctx, name, dir) }
}

// stop may be called again.
func (s *scene) stop() {
	if s.cluster != nil {
		s.cluster.stop()
		s.cluster = nil
	}
}

// converge waits until the operator has reconciled all exports, and leaves it running.
//
// If profiles is a directory, it also writes profiles of the operator there, which slows the operator down a little.
func (s *scene) converge(ctx context.Context, profiles string) (*operator, convergeRun, error) {
	run := convergeRun{Store: s.store.name, Algorithm: s.recipient.Algorithm, PublicKey: s.recipient.From, Objects: s.n}
	seen, err := s.observe(ctx)
	if err != nil {
		return nil, run, err
	}
	defer seen.stop()
	if err := seen.waitSeen(ctx, s.n); err != nil {
		return nil, run, err
	}
	before, err := s.requestsUntilNow(ctx)
	if err != nil {
		return nil, run, err
	}
	o, err := s.startOperator(ctx, s.store, profiles != "")
	if err != nil {
		return nil, run, err
	}
	start, err := o.waitReady(ctx)
	if err != nil {
		return nil, run, err
	}
	keep := o.profile(ctx, s.n)
	end, err := seen.waitReady(ctx, s.n)
	if err != nil {
		return nil, run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	after, err := o.count(ctx)
	if err != nil {
		return nil, run, err
	}
	spent := after.since(counts{requests: before})
	run.Start, run.Seconds = start.Seconds(), end.Sub(o.sync()).Seconds()
	run.PerSecond = float64(s.n) / run.Seconds
	run.Requests, run.Calls = spent.requests, spent.calls
	run.Writes, run.Reads = spent.perObject(writeVerbs, s.n), spent.perObject(readVerbs, s.n)
	run.CPU, run.PeakMiB = spent.usage.cpu.Seconds(), mib(spent.usage.peak)
	if err := keep(filepath.Join(profiles, fmt.Sprintf("%s-%s-%s-%d", run.Store, run.Algorithm, run.PublicKey, run.Objects))); err != nil {
		return nil, run, err
	}
	return o, run, s.verify(ctx, s.recipient, s.n)
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// restart stops the operator, starts it again, and creates one more export at the same time.
func (s *scene) restart(ctx context.Context, o *operator) (*operator, restartRun, error) {
	run := restartRun{Store: s.store.name, Objects: s.n}
	if err := o.stop(); err != nil {
		return nil, run, err
	}
	seen, err := s.observe(ctx)
	if err != nil {
		return nil, run, err
	}
	defer seen.stop()
	if _, err := seen.waitReady(ctx, s.n); err != nil {
		return nil, run, err
	}
	before, err := s.requestsUntilNow(ctx)
	if err != nil {
		return nil, run, err
	}
	if o, err = s.startOperator(ctx, s.store, false); err != nil {
		return nil, run, err
	}
	if err := s.Create(ctx, s.recipient.export(s.n)); err != nil {
		return nil, run, err
	}
	s.n++
	start, err := o.waitReady(ctx)
	if err != nil {
		return nil, run, err
	}
	served, err := seen.waitReady(ctx, s.n)
	if err != nil {
		return nil, run, err
	}
	settled, err := o.waitSettled(ctx, s.n)
	if err != nil {
		return nil, run, err
	}
	after, err := o.count(ctx)
	if err != nil {
		return nil, run, err
	}
	spent := after.since(counts{requests: before})
	run.Start, run.New, run.Settled = start.Seconds(), served.Sub(o.sync()).Seconds(), settled.Sub(o.sync()).Seconds()
	run.Requests, run.Calls = spent.requests, spent.calls
	delete(run.Requests, "POST exporteddatakeys") // by the benchmark itself
	run.CPU, run.PeakMiB = spent.usage.cpu.Seconds(), mib(spent.usage.peak)
	return o, run, s.verify(ctx, s.recipient, s.n)
}

// steady counts the requests and calls of an operator that has nothing to do.
func (s *scene) steady(ctx context.Context, o *operator, during time.Duration) (steadyRun, error) {
	run := steadyRun{Store: s.store.name, Objects: s.n}
	before, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	start := time.Now()
	if err := pause(ctx, during); err != nil {
		return run, err
	}
	after, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	spent := after.since(before)
	run.Seconds = time.Since(start).Seconds()
	run.Requests, run.Sent, run.Rate = spent.requests, spent.sent, float64(spent.sent)/run.Seconds
	run.CPU, run.PeakMiB = spent.usage.cpu.Seconds(), mib(spent.usage.peak)
	return run, nil
}

// pause waits. The duration is part of the measurement.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
