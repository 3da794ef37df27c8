//go:build cgo

package pkcs11

import (
	"path/filepath"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// onFaulty returns the configuration of a token behind the faulty library, and what controls it.
func onFaulty(t *testing.T, tok tokens.Token) (Config, *faulty.Control) {
	t.Helper()
	dir := t.TempDir()
	cfg := configOf(tok)
	var err error
	if cfg.Path, err = faulty.Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	control, err := faulty.NewControl(filepath.Join(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range control.Env(tok.Path) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	control.Reset(tok.PIN)
	return cfg, control
}

// garbage are faults of functions that return CKR_OK, and that a check finds: values, handles, lists, other keys, and calls without an
// effect.
var garbage = []faulty.Fault{
	{Kind: faulty.Garbage, Functions: []string{"C_CreateObject"}},
	{Kind: faulty.Garbage, Functions: []string{"C_CreateObject"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_DeriveKey"}},
	{Kind: faulty.Garbage, Functions: []string{"C_DeriveKey"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_DestroyObject"}},
	{Kind: faulty.Garbage, Functions: []string{"C_FindObjects"}},
	{Kind: faulty.Garbage, Functions: []string{"C_FindObjects"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_GenerateKey"}},
	{Kind: faulty.Garbage, Functions: []string{"C_GenerateKey"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_GenerateRandom"}},
	{Kind: faulty.Garbage, Functions: []string{"C_GetAttributeValue"}},
	{Kind: faulty.Garbage, Functions: []string{"C_GetAttributeValue"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_Sign"}},
	{Kind: faulty.Garbage, Functions: []string{"C_Sign"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_UnwrapKey"}},
	{Kind: faulty.Garbage, Functions: []string{"C_UnwrapKey"}, Inside: true},
	{Kind: faulty.Garbage, Functions: []string{"C_WrapKey"}},
	{Kind: faulty.Garbage, Functions: []string{"C_WrapKey"}, Inside: true},
	{Kind: faulty.OtherKey, Functions: []string{"C_CreateObject"}},
	{Kind: faulty.OtherKey, Functions: []string{"C_DeriveKey"}},
	{Kind: faulty.OtherKey, Functions: []string{"C_UnwrapKey"}},
	// The first call of a check that wraps is for a data key, the second one for an export.
	{Kind: faulty.Garbage, Functions: []string{"C_WrapKey"}, First: 2},
	{Kind: faulty.Garbage, Functions: []string{"C_WrapKey"}, First: 2, Inside: true},
}

func TestCheck_garbage_isNoticed(t *testing.T) {
	for kind, newToken := range tokens.Kinds {
		t.Run(kind, func(t *testing.T) {
			cfg, control := onFaulty(t, newToken(t))
			m, err := open(t.Context(), &token.Libraries{ReinitializeInterval: -1, Now: clock.Now}, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = m.Close(t.Context()) }()
			for _, fault := range garbage {
				control.Inject(fault)
				hsmtest.WantKind(t, m.Check(t.Context()), hsm.WrongResult, "Check with %+v", fault)
				control.End()
				clock.Advance(backoff)
				if err := m.Check(t.Context()); err != nil {
					t.Errorf("Check after %+v: %v", fault, err)
				}
			}
		})
	}
}

// A token that works and rejects what it did during the self-test must be tested again.
func TestCheck_rejectedOperation_isAWrongResult(t *testing.T) {
	tok := tokens.SoftHSM(t)
	m := mustOpen(t, configOf(tok))
	spy := tokens.SpyOn(t, tok)
	spy.Reject(p11.CKM_RSA_PKCS_OAEP)
	detail := hsmtest.WantKind(t, m.Check(t.Context()), hsm.WrongResult, "Check without OAEP")
	if !strings.Contains(detail, "export with RSAES_OAEP_SHA_1") {
		t.Errorf("%q does not name the step", detail)
	}
}

// A device that fails during a check has returned no wrong result. (SoftHSM returns CKR_GENERAL_ERROR if it derived another key than
// that under which the data key is wrapped, so C_UnwrapKey is left out.)
func TestCheck_deviceLost_isUnavailable(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		spy := tokens.SpyOn(t, tok)
		for _, function := range []string{"C_CreateObject", "C_GenerateKey", "C_WrapKey", "C_FindObjectsInit", "C_SignInit"} {
			for _, code := range []p11.Error{p11.CKR_GENERAL_ERROR, p11.CKR_DEVICE_ERROR, p11.CKR_HOST_MEMORY} {
				spy.Inject(tokens.Failing(code, tokens.Always, function))
				hsmtest.WantKind(t, m.Check(t.Context()), hsm.Unavailable, "Check while %s returns %v", function, code)
				spy.Inject(nil)
				clock.Advance(backoff)
			}
		}
	})
}

// A token that accepts wrapped keys only is checked without a key of known value, and without a key pair, which takes long.
func TestCheck_withoutKeysOfKnownValue(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		spy := spyLoaded(t, tok)
		spy.Forbid(p11.CKA_VALUE)
		m := mustOpen(t, configOf(tok))
		spy.Reset()
		spy.Forbid(p11.CKA_VALUE)
		if err := m.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if spy.Count("C_GenerateKeyPair") != 0 || spy.Count("C_WrapKey") == 0 {
			t.Errorf("Check generates %d key pairs and wraps %d times", spy.Count("C_GenerateKeyPair"), spy.Count("C_WrapKey"))
		}
	})
}

func TestCheck_leavesNoObjects(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		for range 3 {
			if err := m.Check(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n := objects(t, m); n != 0 {
			t.Errorf("%d objects after checks of an empty token, want 0", n)
		}
	})
}
