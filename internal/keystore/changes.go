package keystore

import (
	"context"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Change reports the state of a key store that has changed. Suspect tells its own reconciler; the other states tell
// those who wait for it.
type Change struct {
	ID    ID
	State State
}

// Changes returns a source of the key stores whose state has changed, for a controller.
func (r *Registry) Changes(requests func(context.Context, Change) []reconcile.Request) source.Source {
	changes := make(chan event.TypedGenericEvent[Change], maxSuspects)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subscribers = append(r.subscribers, changes)
	return source.TypedChannel(changes, handler.TypedEnqueueRequestsFromMapFunc(requests))
}

// maxSuspects is more than there are key stores: all of one library become suspect at once when its process ends.
const maxSuspects = 1024

// MarkTried records that a key store has been looked at, and reports whether that was the first time since the start.
func (r *Registry) MarkTried(id ID) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first = !r.tried[id]
	r.tried[id] = true
	return first
}

// Tried reports whether a key store has been looked at since the start.
func (r *Registry) Tried(id ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.tried[id]
}

// Announce tells those who wait for a key store that it is ready, or how its first opening ended. It blocks until they
// have taken the news, or the context ends.
func (r *Registry) Announce(ctx context.Context, id ID, state State) {
	r.mu.RLock()
	subscribers := slices.Clone(r.subscribers)
	r.mu.RUnlock() // a send may block, and must not block other calls
	for _, changes := range subscribers {
		select {
		case changes <- event.TypedGenericEvent[Change]{Object: Change{id, state}}:
		case <-ctx.Done():
			return
		}
	}
}

// suspect has a key store's module checked soon, because a call found that it does not answer.
func (r *Registry) suspect(id ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.modules[id]
	if m == nil || m.suspect {
		return
	}
	m.suspect = true
	for _, changes := range r.subscribers {
		select {
		case changes <- event.TypedGenericEvent[Change]{Object: Change{id, Suspect}}:
		default: // so many are suspect that this one can wait for its health check
		}
	}
}
