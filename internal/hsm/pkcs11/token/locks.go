//go:build cgo

package token

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// mutex is a sync.RWMutex whose waiters give up when their context is done: a C call may hang while the mutex is held. While
// a caller waits for the write lock, no other caller gets the read lock.
type mutex struct{ readers *semaphore.Weighted }

// maxReaders is more than there can be operations.
const maxReaders = 1 << 30

func newMutex() mutex { return mutex{semaphore.NewWeighted(maxReaders)} }

func (m mutex) lock(ctx context.Context) error  { return acquire(ctx, m.readers, maxReaders) }
func (m mutex) unlock()                         { m.readers.Release(maxReaders) }
func (m mutex) rLock(ctx context.Context) error { return acquire(ctx, m.readers, 1) }
func (m mutex) rUnlock()                        { m.readers.Release(1) }

// acquire is Weighted.Acquire, but it also succeeds if ctx is done and no wait is needed: a token whose context is done must
// still be closed.
func acquire(ctx context.Context, s *semaphore.Weighted, n int64) error {
	if s.TryAcquire(n) {
		return nil
	}
	return s.Acquire(ctx, n)
}

// byKey has one value per key, created on first use. The zero value is ready for use. Values are never removed, so keys must
// be few: the selectors of key stores, for example.
type byKey[K comparable, V any] struct {
	mu     sync.Mutex
	values map[K]V
}

func (b *byKey[K, V]) get(key K, newValue func() V) V {
	b.mu.Lock()
	defer b.mu.Unlock()
	value, ok := b.values[key]
	if !ok {
		if b.values == nil {
			b.values = map[K]V{}
		}
		value = newValue()
		b.values[key] = value
	}
	return value
}
