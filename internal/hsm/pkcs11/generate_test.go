//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

func generateRequest() hsm.GenerateKeyRequest {
	id := uuid.New()
	return hsm.GenerateKeyRequest{
		KeyVersionID: id, Spec: hsm.AES256, Owner: hsm.Owner{Namespace: "team-a", Name: "payments", Origin: hsm.OriginGenerated, KeyID: id, Number: 1},
	}
}

// keysWithID returns how many master keys with that identifier are in the token.
func keysWithID(t *testing.T, m *Module, id uuid.UUID) (n int) {
	t.Helper()
	err := m.do(t.Context(), func(s *session) error {
		handles, err := s.FindObjects(masterName(id).Template())
		n = len(handles)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Two processes do not see each other's locks, so both may find no key and generate one. (NSS replaces a key by another one
// with its CKA_ID, so with NSS only one process may use a token.)
func TestGenerateKey_inTwoProcesses_keepsOneKey(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	req := generateRequest()
	first, err := m.GenerateKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	// The other process has searched before the first key was in the token.
	err = m.do(t.Context(), func(s *session) error { _, err := s.generateMaster(req); return err })
	hsmtest.WantKind(t, err, hsm.Unavailable, "the second process")
	if again, err := m.GenerateKey(t.Context(), req); err != nil || again != first {
		t.Errorf("GenerateKey = %+v, %v; want %+v", again, err, first)
	}
	if n := keysWithID(t, m, req.KeyVersionID); n != 1 {
		t.Errorf("%d keys with the same identifier", n)
	}
}

// If a process ends before it destroyed its own key, there is no telling which one made data keys.
func TestGenerateKey_ofWhichThereAreTwo_isRefused(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	req := generateRequest()
	for range 2 {
		err := m.do(t.Context(), func(s *session) error {
			_, err := s.GenerateKey(p11.CKM_AES_KEY_GEN, generatedTemplate(req.Spec,
				s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, req.Owner, true, s.can.hardenedGenerated)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.GenerateKey(t.Context(), req)
	hsmtest.WantKind(t, err, hsm.Internal, "GenerateKey")
	if n := keysWithID(t, m, req.KeyVersionID); n != 2 {
		t.Errorf("%d keys, want both", n)
	}
}

// A token that lost its login shows no private objects.
func TestGenerateKey_loginLost_createsNoSecondKey(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		req := generateRequest()
		first, err := m.GenerateKey(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if err := tokens.SpyOn(t, tok).LogoutDirectly(); err != nil {
			t.Fatal(err)
		}
		if again, err := m.GenerateKey(t.Context(), req); err != nil || again != first {
			t.Errorf("GenerateKey = %+v, %v; want %+v", again, err, first)
		}
		if n := keysWithID(t, m, req.KeyVersionID); n != 1 {
			t.Errorf("%d keys with the same identifier", n)
		}
	})
}

// A token that is full, or fails after the key is in it, leaves no key, or one that the next call finds.
func TestGenerateKey_fails_leavesAtMostOneKey(t *testing.T) {
	tok := tokens.SoftHSM(t)
	if err := mustOpen(t, configOf(tok)).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spy := tokens.SpyOn(t, tok)
	m := mustOpen(t, configOf(tok))
	for _, function := range []string{"C_GenerateKey", "C_DeriveKey", "C_FindObjectsInit"} {
		req := generateRequest()
		spy.Inject(tokens.Failing(p11.CKR_DEVICE_MEMORY, tokens.Always, function))
		if _, err := m.GenerateKey(t.Context(), req); err == nil {
			t.Errorf("GenerateKey succeeds while %s fails", function)
		}
		spy.Inject(nil)
		if n := keysWithID(t, m, req.KeyVersionID); n > 1 {
			t.Errorf("%d keys after %s failed", n, function)
		}
		if _, err := m.GenerateKey(t.Context(), req); err != nil {
			t.Errorf("GenerateKey after %s failed: %v", function, err)
		}
		if n := keysWithID(t, m, req.KeyVersionID); n != 1 {
			t.Errorf("%d keys after %s failed and worked again", n, function)
		}
	}
}
