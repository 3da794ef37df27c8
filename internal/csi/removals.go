package csi

import (
	"sync"
	"time"
)

// removals delete the objects of fetches that have ended, a moment later and one after another, so that pods that start at once
// do not wait for the deletions of each other. The zero value is ready to use.
type removals struct {
	mu      sync.Mutex
	waiting []func()
	running bool
	idle    sync.WaitGroup
}

// maxWaiting limits how many deletions wait, for example while the API server is unavailable. Kubernetes deletes what is not
// deleted here with the pods.
const maxWaiting = 1000

// add has an object deleted soon, unless too many wait already.
func (r *removals) add(remove func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) >= maxWaiting {
		return
	}
	r.waiting = append(r.waiting, remove)
	if !r.running {
		r.running = true
		r.idle.Go(func() {
			<-time.After(removeAfter)
			r.run()
		})
	}
}

// removeAfter is longer than most pods that start at once need for their data keys.
const removeAfter = 2 * time.Second

// run deletes until nothing waits.
func (r *removals) run() {
	for {
		r.mu.Lock()
		if len(r.waiting) == 0 {
			r.running = false
			r.mu.Unlock()
			return
		}
		next := r.waiting[0]
		r.waiting = r.waiting[1:]
		r.mu.Unlock()
		next()
	}
}

// endWithin limits how long the driver waits for deletions when it ends. Kubernetes deletes what is left with the pods.
const endWithin = 5 * time.Second

// wait waits until all are deleted, but not for longer than endWithin. The caller must add no others.
func (r *removals) wait() {
	done := make(chan struct{})
	go func() {
		r.idle.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(endWithin):
	}
}
