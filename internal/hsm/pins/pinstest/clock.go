package pinstest

import (
	"sync"
	"time"
)

// Clock is a clock that only a test advances. The zero value shows a time in September 2026.
type Clock struct {
	mu       sync.Mutex
	advanced time.Duration
}

// Now returns the time of the clock.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Unix(1_790_000_000, 0).Add(c.advanced)
}

// Advance advances the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advanced += d
}
