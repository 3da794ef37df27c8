//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// No input is to blame for a lack of memory or sessions, even if a health check happens to pass: an object would stall that is right.
func TestRecovery_lackOfResources_isNotBlamedOnTheInput(t *testing.T) {
	tok := tokens.SoftHSM(t)
	f := newFixture(t, configOf(tok))
	blob := f.generate(t, 32)
	spy := tokens.SpyOn(t, tok)
	for _, code := range []p11.Error{p11.CKR_HOST_MEMORY, p11.CKR_DEVICE_MEMORY} {
		for _, function := range []string{"C_UnwrapKey", "C_WrapKey"} {
			spy.Inject(tokens.Failing(code, tokens.Always, function))
			_, err := f.m.ImportKey(t.Context(), f.importOf(t, uuid.New(), f.material))
			hsmtest.WantKind(t, err, hsm.Unavailable, "ImportKey of valid material while %s returns %v", function, code)
			if function == "C_UnwrapKey" {
				hsmtest.WantKind(t, f.m.VerifyDataKey(t.Context(), f.open(blob)), hsm.Unavailable, "VerifyDataKey of a valid blob while %s returns %v", function, code)
				_, err = f.m.ExportDataKey(t.Context(), f.export(blob, wrapping.RSAESOAEPSHA1))
				hsmtest.WantKind(t, err, hsm.Unavailable, "ExportDataKey of a valid blob while %s returns %v", function, code)
			}
			spy.Inject(nil)
			clock.Advance(backoff)
		}
	}
}

// A module that lacks memory while it is opened must not count as one that supports less, or that protects its keys better.
func TestOpen_lackOfResources_isNotTakenForALackOfSupport(t *testing.T) {
	tok := tokens.SoftHSM(t)
	cfg := configOf(tok)
	want := describe(t, mustOpen(t, cfg))
	spy := tokens.SpyOn(t, tok)
	// One attack succeeds, and is not rejected because memory is lacking.
	spy.Forgive("C_WrapKey")
	spy.Inject(tokens.Failing(p11.CKR_DEVICE_MEMORY, tokens.Always, "C_WrapKey"))
	if got := describe(t, mustOpen(t, cfg)).KeyProtection; got.State != hsm.NotEnforced {
		t.Errorf("the key protection is %s if the attacks lack memory", got.State)
	}
	spy.Reset()
	for _, function := range []string{"C_WrapKey", "C_UnwrapKey", "C_GenerateKeyPair"} {
		spy.Inject(tokens.Failing(p11.CKR_HOST_MEMORY, tokens.Always, function))
		m, err := Open(t.Context(), cfg)
		spy.Inject(nil)
		clock.Advance(backoff)
		if err != nil {
			hsmtest.WantKind(t, err, hsm.Unavailable, "Open while %s returns CKR_HOST_MEMORY", function)
			continue
		}
		if got := describe(t, m); len(got.Capabilities) != len(want.Capabilities) || got.KeyProtection.State != want.KeyProtection.State {
			t.Errorf("Open while %s returns CKR_HOST_MEMORY succeeds, with\n%v\ninstead of\n%v", function, got.Capabilities, want.Capabilities)
		}
		_ = m.Close(t.Context())
	}
}
