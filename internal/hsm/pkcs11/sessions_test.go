//go:build cgo

package pkcs11

import (
	"runtime"
	"sync"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// A token with fewer sessions than MaxSessions costs time, and fails no call: each waits for a session of another one.
func TestModule_tokenWithFewSessions_callsWait(t *testing.T) {
	const limit = 4
	cfg, control := onFaulty(t, tokens.SoftHSM(t))
	cfg.MaxSessions = 2 * limit
	m, err := open(t.Context(), &token.Libraries{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close(t.Context()) }()
	f := fixtureOf(t, m)
	control.Inject(faulty.Fault{Kind: faulty.Limit, Parameter: limit})
	var calls sync.WaitGroup
	endHolders := make(chan struct{})
	for range limit {
		calls.Go(func() {
			if err := m.do(t.Context(), func(*session) error { <-endHolders; return nil }); err != nil {
				t.Errorf("a call that holds its session: %v", err)
			}
		})
	}
	for range 2 * limit {
		calls.Go(func() {
			if _, err := m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 32, Binding: f.binding}); err != nil {
				t.Errorf("GenerateDataKey: %v", err)
			}
		})
	}
	for control.Fired() == 0 && t.Context().Err() == nil {
		runtime.Gosched()
	}
	close(endHolders)
	calls.Wait()
}
