package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// observer watches the objects of a kind in the cluster and counts those that are ready. Each run has one, even a run of
// the bare client, because a watch costs the API server time.
type observer struct {
	stop    context.CancelFunc
	isReady func(*watchEvent) bool

	mu      sync.Mutex
	objects map[string]bool // by namespace and name: whether it is Ready
	ready   int
	changed chan struct{} // closed at the next change
	err     error         // why the watch ended
}

// watchEvent contains the needed fields of a watch event.
type watchEvent struct {
	Type   string
	Object struct {
		Metadata struct {
			Name, Namespace string
			Generation      int64
		}
		Status struct {
			ObservedGeneration int64
			KeyVersionID       string
			Conditions         []struct{ Type, Status string }
		}
	}
}

// observe observes the ExportedDataKeys.
func (c *cluster) observe(ctx context.Context) (*observer, error) {
	return c.observeEach(ctx, "exporteddatakeys", (*watchEvent).isReady)
}

// observeEach observes the objects of a resource. isReady decides which ones count.
func (c *cluster) observeEach(ctx context.Context, resource string, isReady func(*watchEvent) bool) (*observer, error) {
	ctx, cancel := context.WithCancel(ctx)
	o := &observer{stop: cancel, isReady: isReady, objects: map[string]bool{}, changed: make(chan struct{})}
	body, err := c.watch(ctx, resource)
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		// The API server ends a watch whose client reads too slowly. A new watch begins with all existing objects.
		for err == nil && ctx.Err() == nil {
			o.follow(body)
			body, err = c.watch(ctx, resource)
		}
		o.see(nil, err)
	}()
	return o, nil
}

func (c *cluster) watch(ctx context.Context, resource string) (io.ReadCloser, error) {
	return httpGet(ctx, c.http, c.cfg.Host+"/apis/keyconvoy.io/v1alpha1/"+resource+"?watch=1", "")
}

// follow reads events until the watch ends.
func (o *observer) follow(body io.ReadCloser) {
	defer body.Close()
	in := json.NewDecoder(bufio.NewReaderSize(body, 1<<16))
	for {
		var e watchEvent
		if in.Decode(&e) != nil || e.Type == "ERROR" {
			return
		}
		o.see(&e, nil)
	}
}

func (o *observer) see(e *watchEvent, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	if e == nil {
		o.err = fmt.Errorf("the watch has ended: %w", err)
		return
	}
	name := e.Object.Metadata.Namespace + "/" + e.Object.Metadata.Name
	if o.objects[name] {
		o.ready--
	}
	delete(o.objects, name)
	if e.Type != "DELETED" {
		o.objects[name] = o.isReady(e)
		if o.objects[name] {
			o.ready++
		}
	}
}

func (e *watchEvent) isReady() bool {
	for _, c := range e.Object.Status.Conditions {
		if c.Type == v1alpha1.ConditionReady {
			return c.Status == "True" && e.Object.Status.ObservedGeneration == e.Object.Metadata.Generation
		}
	}
	return false
}

// wait waits until a condition is true for the observed objects.
func (o *observer) wait(ctx context.Context, wanted func(ready int, objects map[string]bool) bool) (time.Time, error) {
	for {
		o.mu.Lock()
		done, changed, ready, all, err := wanted(o.ready, o.objects), o.changed, o.ready, len(o.objects), o.err
		o.mu.Unlock()
		switch {
		case done:
			return time.Now(), nil
		case err != nil:
			return time.Time{}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%d of %d objects are ready: %w", ready, all, ctx.Err())
		}
	}
}

// waitReady waits until n objects are ready.
func (o *observer) waitReady(ctx context.Context, n int) (time.Time, error) {
	return o.wait(ctx, func(ready int, _ map[string]bool) bool { return ready >= n })
}

// waitSeen waits until n objects were observed, ready or not.
func (o *observer) waitSeen(ctx context.Context, n int) error {
	_, err := o.wait(ctx, func(_ int, objects map[string]bool) bool { return len(objects) >= n })
	return err
}

func (o *observer) readyNow() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ready
}
