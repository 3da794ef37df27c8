package software

import (
	"sync"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// secret is key material in memory. It can be wiped while others want it: who is using it finishes
// first, and who comes later learns that it is gone, and never sees zeros as if they were a key.
type secret struct {
	mu    sync.RWMutex
	gone  bool
	bytes redact.Bytes
}

// newSecret keeps b.
func newSecret(b []byte) *secret { return &secret{bytes: b} }

// use calls f with the bytes, which f must not keep, or returns gone.
func (s *secret) use(gone error, f func(redact.Bytes) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.gone {
		return gone
	}
	return f(s.bytes)
}

func (s *secret) wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	s.bytes.Wipe()
}
