package process

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultTimeout = 30 * time.Second
	slowFactor     = 4
	// looksPerTimeout is how often the watchdog looks at the calls during the timeout, and so how late it can be.
	looksPerTimeout = 8
)

// slow are the calls that may take slowFactor times as long as others.
var slow = map[string]bool{"dlopen": true, "C_Initialize": true, "C_Finalize": true, "C_Login": true, "C_GenerateKeyPair": true}

// watchdog finds calls into the library that do not return. It looks at them from time to time: a timer for each call would cost
// more than many calls do, because each new timer wakes a thread.
type watchdog struct {
	timeout time.Duration
	hang    func(function string, after time.Duration)

	last   atomic.Uint64
	shards [64]shard // of the calls in progress, so that their goroutines rarely wait for each other
}

type shard struct {
	mu    sync.Mutex
	calls map[uint64]call
}

type call struct {
	function string
	began    time.Time
}

func newWatchdog(timeout time.Duration, hang func(function string, after time.Duration)) *watchdog {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	w := &watchdog{timeout: timeout, hang: hang}
	for i := range w.shards {
		w.shards[i].calls = map[uint64]call{}
	}
	go w.run()
	return w
}

// watch has a call watched until end is called.
func (w *watchdog) watch(function string) (end func()) {
	id := w.last.Add(1)
	s := &w.shards[id%uint64(len(w.shards))]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[id] = call{function, time.Now()}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.calls, id)
	}
}

func (w *watchdog) run() {
	for now := range time.Tick(w.timeout / looksPerTimeout) {
		if function, limit := w.hanging(now); function != "" {
			w.hang(function, limit)
		}
	}
}

// hanging returns a call that has taken longer than its limit.
func (w *watchdog) hanging(now time.Time) (function string, limit time.Duration) {
	for i := range w.shards {
		if function, limit = w.hangingIn(&w.shards[i], now); function != "" {
			break
		}
	}
	return function, limit
}

func (w *watchdog) hangingIn(s *shard, now time.Time) (function string, limit time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		limit := w.timeout
		if slow[c.function] {
			limit *= slowFactor
		}
		if now.Sub(c.began) > limit {
			return c.function, limit
		}
	}
	return "", 0
}
