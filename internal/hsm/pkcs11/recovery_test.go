//go:build cgo

package pkcs11

import (
	"context"
	"sync/atomic"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// Other parts of a process, such as another PKCS#11 client, call the same library.
func TestRecovery_callsOfOthers_areSurvived(t *testing.T) {
	for name, call := range map[string]func(*tokens.Spy, tokens.Token) error{
		"C_Finalize": func(spy *tokens.Spy, _ tokens.Token) error { return spy.Ctx.Finalize() },
		"C_Finalize and C_Initialize": func(spy *tokens.Spy, tok tokens.Token) error {
			if err := spy.Ctx.Finalize(); err != nil {
				return err
			}
			return spy.InitializeDirectly(tok)
		},
		"C_CloseAllSessions": func(spy *tokens.Spy, _ tokens.Token) error { return spy.CloseAllSessionsDirectly() },
		"C_Logout":           func(spy *tokens.Spy, _ tokens.Token) error { return spy.LogoutDirectly() },
	} {
		t.Run(name, func(t *testing.T) {
			tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
				f, other := newFixture(t, configOf(tok)), mustOpen(t, configOf(tok))
				tag, err := f.m.Authenticate(t.Context(), []byte("message"))
				if err != nil {
					t.Fatal(err)
				}
				blob := f.generate(t, 32)
				before := objects(t, f.m)
				if err := call(tokens.SpyOn(t, tok), tok); err != nil {
					t.Fatal(err)
				}
				// The first operation does not report that the key is missing.
				if _, err := other.FindKey(t.Context(), f.id); err != nil {
					t.Errorf("the other module of the token: %v", err)
				}
				f.mustWork(t)
				if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
					t.Errorf("a blob of before: %v", err)
				}
				if again, err := other.Authenticate(t.Context(), []byte("message")); err != nil || string(again) != string(tag) {
					t.Errorf("the tag changed: %v", err)
				}
				if after := objects(t, f.m); after != before {
					t.Errorf("%d objects, want %d", after, before)
				}
			})
		})
	}
}

// A single device error, with any code and in any call, does not fail an operation.
func TestRecovery_oneDeviceError_isSurvived(t *testing.T) {
	tok := tokens.SoftHSM(t)
	f := newFixture(t, configOf(tok))
	spy := tokens.SpyOn(t, tok)
	codes := 0
	for code := p11.Error(0); code < 0x200; code++ {
		if token.ClassOf(code) != token.ConnectionLost {
			continue
		}
		codes++
		for _, function := range []string{"C_OpenSession", "C_DeriveKey", "C_GenerateKey", "C_WrapKey", "C_UnwrapKey", "C_FindObjectsInit"} {
			spy.Inject(tokens.Failing(code, 1, function))
			f.mustWork(t)
		}
	}
	spy.Inject(nil)
	if codes != 9 {
		t.Errorf("%d codes, want 9", codes)
	}
	if n := objects(t, f.m); n != 4 { // key pair, master key, MAC key
		t.Errorf("%d objects, want 4", n)
	}
}

func TestRecovery_deadDevice_isUnavailableUntilItWorksAgain(t *testing.T) {
	all := map[p11.Error]tokens.Token{p11.CKR_DEVICE_ERROR: tokens.SoftHSM(t), p11.CKR_GENERAL_ERROR: tokens.SoftHSM(t)}
	for code, tok := range all {
		f := newFixture(t, configOf(tok))
		blob := f.generate(t, 32)
		spy := tokens.SpyOn(t, tok)
		spy.Inject(tokens.Failing(code, tokens.Always, "C_DeriveKey", "C_GenerateKey", "C_UnwrapKey", "C_WrapKey"))
		for range 10 {
			_, err := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 32, Binding: f.binding})
			hsmtest.WantKind(t, err, hsm.Unavailable, "GenerateDataKey")
			hsmtest.WantKind(t, f.m.Check(t.Context()), hsm.Unavailable, "Check")
			hsmtest.WantKind(t, f.m.VerifyDataKey(t.Context(), f.open(blob)), hsm.Unavailable, "VerifyDataKey of a valid blob")
		}
		if n := spy.Count("C_Initialize"); n != 1 {
			t.Errorf("%d initializations before the backoff ends, want 1", n)
		}
		spy.Inject(nil)
		clock.Advance(backoff)
		f.mustWork(t)
	}
}

func TestRecovery_keyRecreatedByAnother_isFoundAgain(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f, other := newFixture(t, configOf(tok)), mustOpen(t, configOf(tok))
		f.mustWork(t) // the handle is cached
		if err := other.DestroyKey(t.Context(), f.id); err != nil {
			t.Fatal(err)
		}
		_, err := f.m.FindKey(t.Context(), f.id)
		hsmtest.WantKind(t, err, hsm.NotFound, "FindKey of a key that another module destroyed")
		if _, err := other.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
			t.Fatal(err)
		}
		f.mustWork(t)
		spy := tokens.SpyOn(t, tok)
		spy.Inject(tokens.Failing(p11.CKR_KEY_HANDLE_INVALID, 1, "C_DeriveKey"))
		f.generate(t, 32)
		if n := spy.Count("C_Initialize", "C_Login"); n != 0 {
			t.Errorf("an invalid handle causes %d logins and initializations, want 0", n)
		}
	})
}

func TestRecovery_ambiguousCodes_areDecidedByAHealthCheck(t *testing.T) {
	tok := tokens.SoftHSM(t)
	f := newFixture(t, configOf(tok))
	blob := f.generate(t, 32)
	bad := blob
	bad.Payload = append([]byte(nil), blob.Payload...)
	bad.Payload[3] ^= 1
	spy := tokens.SpyOn(t, tok)
	hsmtest.WantKind(t, f.m.VerifyDataKey(t.Context(), f.open(bad)), hsm.InvalidBlob, "an invalid blob in a healthy module")
	if n := spy.Count("C_Initialize", "C_Login"); n != 0 {
		t.Errorf("%d logins and initializations, want 0", n)
	}
	// A transient failure and a valid blob.
	spy.Inject(tokens.Failing(p11.CKR_GENERAL_ERROR, 1, "C_UnwrapKey"))
	if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil || spy.Count("C_Initialize", "C_Login") != 0 {
		t.Errorf("a valid blob after one failure: %v", err)
	}
	// An unhealthy module and a valid blob.
	spy.Inject(tokens.Failing(p11.CKR_GENERAL_ERROR, 3, "C_UnwrapKey", "C_GenerateKey")) // twice, and the health check
	if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
		t.Errorf("a valid blob after recovery: %v", err)
	}
	// An unhealthy module and an invalid blob.
	spy.Inject(tokens.Failing(p11.CKR_GENERAL_ERROR, 3, "C_UnwrapKey", "C_GenerateKey"))
	hsmtest.WantKind(t, f.m.VerifyDataKey(t.Context(), f.open(bad)), hsm.InvalidBlob, "an invalid blob after recovery")
}

// A library that returns the handle of a master key for a derived key must not make the master key disappear, which would be
// destroyed with the derived key.
func TestRecovery_wrongHandle_destroysNoKey(t *testing.T) {
	tok := tokens.SoftHSM(t)
	wrong := &wrongHandle{}
	libraries := &token.Libraries{Load: func(path string) (c token.Cryptoki, err error) {
		wrong.Cryptoki, err = token.LoadLibrary(path)
		return wrong, err
	}}
	m, err := open(t.Context(), libraries, configOf(tok))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	f := fixtureOf(t, m)
	blob := f.generate(t, 32)
	wrong.on.Store(true)
	if err := m.VerifyDataKey(t.Context(), f.open(blob)); err == nil {
		t.Error("a blob opens under a key that was not derived")
	}
	wrong.on.Store(false)
	f.mustWork(t)
}

// wrongHandle is a library whose C_DeriveKey returns the handle of the base key while on is set.
type wrongHandle struct {
	token.Cryptoki

	on atomic.Bool
}

func (w *wrongHandle) DeriveKey(s p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, t []*p11.Attribute) (p11.ObjectHandle, error) {
	if w.on.Load() {
		return base, nil
	}
	return w.Cryptoki.DeriveKey(s, m, base, t)
}
