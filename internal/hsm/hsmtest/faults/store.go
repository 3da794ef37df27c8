//go:build cgo

package faults

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// callTime bounds each call of a module, as a reconciler does.
const callTime = 30 * time.Second

// store is a key store as its users see it: calls open the module if it is not open.
type store struct {
	provider hsm.Provider
	cfg      hsm.Config

	mu     sync.Mutex // held while the module is opened or closed
	module hsm.Module // nil while it is not open
	lost   *atomic.Bool
}

// do runs a call. A module that was lost is opened again before it.
func (s *store) do(call func(context.Context, hsm.Module) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	m, err := s.open(ctx)
	if err != nil {
		return err
	}
	return call(ctx, m)
}

func (s *store) open(ctx context.Context) (hsm.Module, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.module != nil && !s.lost.Load() {
		return s.module, nil
	}
	if err := s.closeModule(ctx); err != nil {
		return nil, err
	}
	lost, cfg := new(atomic.Bool), s.cfg
	cfg.Lost = func(*hsm.Error) { lost.Store(true) }
	m, err := s.provider.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.module, s.lost = m, lost
	return m, nil
}

// close closes the module. Calls that would open it again wait, so that the library is finalized.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return s.closeModule(ctx)
}

func (s *store) closeModule(ctx context.Context) error {
	if s.module == nil {
		return nil
	}
	m := s.module
	s.module = nil
	return m.Close(ctx)
}
