package software

import (
	"sync"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// secret is key material in memory. It can be wiped during use: wipe waits for calls of use, and later calls fail instead of
// getting zeros as a key.
type secret struct {
	mu    sync.RWMutex
	wiped bool
	bytes redact.Bytes
}

// newSecret returns a secret that owns b.
func newSecret(b []byte) *secret { return &secret{bytes: b} }

// use calls f with the bytes, which f must not keep. If the secret was wiped, it returns errWiped.
func (s *secret) use(errWiped error, f func(redact.Bytes) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.wiped {
		return errWiped
	}
	return f(s.bytes)
}

func (s *secret) wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wiped = true
	s.bytes.Wipe()
}
