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
	wanted []hsm.Capability // of a module that returned a wrong result, until a check finds right ones
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
	is, err := m.Describe(ctx)
	if lacks := is.Lacks(s.wanted); err == nil && lacks != nil {
		err = hsm.Errorf(hsm.WrongResult, "the module does not support %+v any more", *lacks)
	}
	if err != nil {
		_ = m.Close(ctx)
		return nil, err
	}
	s.module, s.lost = m, lost
	return m, nil
}

// checked records the result of a check. A module that returned a wrong result is opened again before the next call.
func (s *store) checked(m hsm.Module, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.wanted = nil
	case hsm.KindOf(err) == hsm.WrongResult && s.module == m:
		is, _ := m.Describe(context.Background())
		s.wanted = is.Capabilities
		s.lost.Store(true)
	}
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
