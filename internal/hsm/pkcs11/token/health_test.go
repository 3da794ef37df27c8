//go:build cgo

package token

import (
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// Tokens support different operations. Until the right one is known, a health check tries all.
func TestHealthCheck_triesEachOperationUntilOneIsChosen(t *testing.T) {
	softHSM := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(softHSM))
	spy := tokens.SpyOn(t, softHSM)
	rejected := []uint{}
	for _, mechanism := range []uint{p11.CKM_AES_ECB_ENCRYPT_DATA, p11.CKM_AES_CMAC} {
		rejected = append(rejected, mechanism)
		spy.Reject(rejected...)
		if err := check(t.Context(), tok); err != nil {
			t.Errorf("without %d mechanisms: %v", len(rejected), err)
		}
	}
	err := tok.Do(t.Context(), func(s *Session) error {
		s.ProveHealthBy(DerivationProof)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	hsmtest.WantKind(t, check(t.Context(), tok), hsm.Internal, "HealthCheck, if the operation is derivation, without it")
}

// If a device is lost, its health check does not try further operations.
func TestHealthCheck_deviceLost_fails(t *testing.T) {
	softHSM := tokens.SoftHSM(t)
	tok := mustOpen(t, configOf(softHSM))
	spy := tokens.SpyOn(t, softHSM)
	spy.Inject(tokens.Failing(p11.CKR_DEVICE_ERROR, tokens.Always, "C_DeriveKey"))
	hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck")
	if n := spy.Count("C_SignInit", "C_EncryptInit"); n != 0 {
		t.Errorf("%d further operations, want 0", n)
	}
}
