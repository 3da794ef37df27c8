//go:build cgo

package pkcs11

import (
	"sync"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// A token with fewer sessions than MaxSessions costs time, and fails no call: each waits for a session of another one.
func TestModule_tokenWithFewSessions_callsWait(t *testing.T) {
	cfg, control := onFaulty(t, tokens.SoftHSM(t))
	cfg.MaxSessions = 8
	m, err := open(t.Context(), &token.Libraries{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close(t.Context()) }()
	f := fixtureOf(t, m)
	control.Inject(faulty.Fault{Kind: faulty.Limit, Parameter: 4}) // of which one keeps the login
	var calls sync.WaitGroup
	for range 32 {
		calls.Go(func() {
			for range 10 {
				if _, err := m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 32, Binding: f.binding}); err != nil {
					t.Errorf("GenerateDataKey: %v", err)
				}
			}
		})
	}
	calls.Wait()
	if control.Fired() == 0 {
		t.Error("the token had enough sessions")
	}
}
