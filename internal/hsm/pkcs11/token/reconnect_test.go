//go:build cgo

package token

import (
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

func TestReconnect_stopsAtTheFirstStepThatHelps(t *testing.T) {
	token := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(token))
	spy := tokens.SpyOn(t, token)
	for sentence, tc := range map[string]struct {
		code                    p11.Error
		failures                int // of C_DeriveKey: one in the operation, one in each health check that fails
		logins, initializations int
	}{
		"a new session helps": {p11.CKR_SESSION_HANDLE_INVALID, 1, 0, 0},
		"a new login helps":   {p11.CKR_USER_NOT_LOGGED_IN, 2, 1, 0},
		"C_Initialize helps":  {p11.CKR_DEVICE_ERROR, 3, 2, 1},
	} {
		t.Run(sentence, func(t *testing.T) {
			spy.Reset()
			spy.Inject(tokens.Failing(tc.code, tc.failures, "C_DeriveKey"))
			if err := tok.Do(t.Context(), derive); err != nil {
				t.Error(err)
			}
			if l, i := spy.Count("C_Login"), spy.Count("C_Initialize"); l != tc.logins || i != tc.initializations {
				t.Errorf("%d logins and %d initializations, want %d and %d", l, i, tc.logins, tc.initializations)
			}
		})
	}
}

func TestReconnect_deadDevice_waitsForTheBackoff(t *testing.T) {
	token := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(token))
	spy := tokens.SpyOn(t, token)
	spy.Inject(tokens.Failing(p11.CKR_DEVICE_ERROR, tokens.Always, "C_DeriveKey"))
	attempts := 0
	for _, seconds := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		for range 3 { // only the first call reconnects
			hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck")
		}
		attempts++
		if n := spy.Count("C_Initialize"); n != attempts {
			t.Fatalf("%d initializations before the backoff of %d s, want %d", n, seconds, attempts)
		}
		clock.Advance(seconds*time.Second - 1)
		hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck before the backoff ends")
		clock.Advance(1)
	}
	spy.Inject(nil)
	if err := check(t.Context(), tok); err != nil {
		t.Errorf("the device works again: %v", err)
	}
}

// A token that is missing makes the library read its list of tokens again, but not while another token is connected.
func TestReconnect_missingToken_doesNotDisturbConnectedOnes(t *testing.T) {
	one, two := tokens.SoftHSM(t), tokens.SoftHSM(t)
	tok, other := mustOpen(t, configOf(one)), mustOpen(t, configOf(two))
	spy := tokens.SpyOn(t, one)
	before := other.connectionID()
	tok.selector.Label = "elsewhere"
	tok.disconnect(t.Context())
	for range 3 {
		hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck")
		clock.Advance(maxBackoff)
	}
	if n := spy.Count("C_Initialize"); n != 0 || other.connectionID() != before {
		t.Errorf("%d initializations, want 0", n)
	}
	mustClose(t, other)
	hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck")
	if n := spy.Count("C_Initialize"); n != 1 {
		t.Errorf("%d initializations while no other token is connected, want 1", n)
	}
}

func TestReconnect_missingToken_isUnavailableUntilItReturns(t *testing.T) {
	token := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(token))
	spy := tokens.SpyOn(t, token)
	selected := tok.selector
	tok.selector.Label = "elsewhere"
	spy.Inject(tokens.Failing(p11.CKR_DEVICE_REMOVED, 1, "C_DeriveKey"))
	tok.disconnect(t.Context())
	hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck") // not Misconfigured: the configuration is the same
	tok.selector = selected
	clock.Advance(maxBackoff)
	if err := check(t.Context(), tok); err != nil {
		t.Error(err)
	}
}

func TestReconnect_PINChanged_isTriedOnce(t *testing.T) {
	token := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(token))
	spy := tokens.SpyOn(t, token)
	err := tok.Do(t.Context(), func(s *Session) error { return spy.SetPIN(s.handle, token.PIN, "another one") })
	if err != nil {
		t.Fatal(err)
	}
	if err := spy.CloseAllSessionsDirectly(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		hsmtest.WantKind(t, check(t.Context(), tok), hsm.Locked, "HealthCheck")
	}
	if n := spy.Count("C_Login"); n != 1 {
		t.Errorf("%d calls of C_Login, want 1", n)
	}
}

// A token cannot tell whether an invalid input or a failed device is the cause of these codes.
func TestDo_blamedInput_isReportedOnlyIfTheTokenIsHealthy(t *testing.T) {
	token := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(token))
	spy := tokens.SpyOn(t, token)
	invalid := hsm.Errorf(hsm.InvalidBlob, "the blob is invalid")
	op := func(*Session) error { return BlameInput(invalid, p11.Error(p11.CKR_GENERAL_ERROR)) }
	hsmtest.WantKind(t, tok.Do(t.Context(), op), hsm.InvalidBlob, "a healthy token")
	if n := spy.Count("C_Login", "C_Initialize"); n != 0 {
		t.Errorf("%d logins and initializations, want 0", n)
	}
	spy.Inject(tokens.Failing(p11.CKR_GENERAL_ERROR, tokens.Always, "C_GenerateKey"))
	hsmtest.WantKind(t, tok.Do(t.Context(), op), hsm.Unavailable, "a failed device")
}
