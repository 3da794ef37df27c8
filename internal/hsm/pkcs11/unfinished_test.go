//go:build cgo

package pkcs11

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// leaveUnfinished leaves in a token of SoftHSM what a process leaves that ends while the library creates an object: all attributes
// but the value.
func leaveUnfinished(t *testing.T, m *Module, template func(*session) []*p11.Attribute, values ...uint) {
	t.Helper()
	err := m.do(t.Context(), func(s *session) error {
		attributes := slices.DeleteFunc(template(s), func(a *p11.Attribute) bool {
			return a.Type == p11.CKA_VALUE_LEN || a.Type == p11.CKA_MODULUS_BITS || slices.Contains(values, a.Type)
		})
		for _, value := range values {
			attributes = append(attributes, p11.NewAttribute(value, []byte{}))
		}
		_, err := s.CreateObject(attributes)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// retry calls an operation that needs an unfinished key until it succeeds. Another process may be creating the key, so only a call
// that finds it after creationTime destroys it.
func retry[T any](t *testing.T, operation func() (T, error)) T {
	t.Helper()
	for _, wait := range []time.Duration{0, creationTime / 2, creationTime} {
		clock.Advance(wait)
		_, err := operation()
		hsmtest.WantKind(t, err, hsm.Unavailable, "the operation, before the key is created again")
	}
	result, err := operation()
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestGenerateKey_unfinished_isReplaced(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	req := generateRequest()
	leaveUnfinished(t, m, func(s *session) []*p11.Attribute {
		return s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, req.Owner, true, s.can.hardenedGenerated)
	}, p11.CKA_VALUE)
	made := retry(t, func() (hsm.Key, error) { return m.GenerateKey(t.Context(), req) })
	if found, err := m.FindKey(t.Context(), req.KeyVersionID); err != nil || found.Fingerprint != made.Fingerprint || found.Owner != req.Owner {
		t.Errorf("FindKey = %+v, %v; want %+v", found, err, made)
	}
	if n := keysWithID(t, m, req.KeyVersionID); n != 1 {
		t.Errorf("%d keys with the same identifier", n)
	}
}

// A key that was finished and refuses to work stays: whatever was made with it would be lost.
func TestUnfinished_keyThatRefuses_isKept(t *testing.T) {
	tok := tokens.SoftHSM(t)
	f := newFixture(t, configOf(tok))
	req := generateRequest()
	made, err := f.m.GenerateKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := f.m.Authenticate(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	again := f.importOf(t, f.id, f.material)
	spy := tokens.SpyOn(t, tok)
	defer spy.Inject(nil)
	// Once, and always: then a fresh key refuses, too.
	for _, times := range []int{1, tokens.Always} {
		for _, code := range []p11.Error{p11.CKR_MECHANISM_INVALID, p11.CKR_KEY_SIZE_RANGE, p11.CKR_KEY_FUNCTION_NOT_PERMITTED} {
			for range 2 {
				spy.Inject(tokens.Failing(code, times, "C_DeriveKey", "C_SignInit"))
				_, _ = f.m.GenerateKey(t.Context(), req)
				_, _ = f.m.ImportKey(t.Context(), again)
				_, _ = f.m.Authenticate(t.Context(), []byte("message"))
				spy.Inject(nil)
				clock.Advance(creationTime)
			}
			if key, err := f.m.GenerateKey(t.Context(), req); err != nil || key != made {
				t.Errorf("GenerateKey after %v = %+v, %v; want %+v", code, key, err, made)
			}
			if _, err := f.m.ImportKey(t.Context(), again); err != nil {
				t.Errorf("ImportKey after %v: %v", code, err)
			}
			if now, err := f.m.Authenticate(t.Context(), []byte("message")); err != nil || string(now) != string(tag) {
				t.Errorf("Authenticate after %v: the tag changed: %v", code, err)
			}
		}
	}
}

func TestImportKey_unfinished_isReplaced(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	for _, ownedByAnother := range []bool{false, true} {
		req := f.importOf(t, uuid.New(), f.material)
		owner := req.Owner
		if ownedByAnother {
			owner.Name = "another"
		}
		leaveUnfinished(t, f.m, func(s *session) []*p11.Attribute {
			return s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, owner, true, s.can.hardened)
		}, p11.CKA_VALUE)
		if ownedByAnother {
			_, err := f.m.ImportKey(t.Context(), req)
			hsmtest.WantKind(t, err, hsm.Internal, "ImportKey over a key of another owner")
			continue
		}
		made := retry(t, func() (hsm.Key, error) { return f.m.ImportKey(t.Context(), req) })
		if found, err := f.m.FindKey(t.Context(), req.KeyVersionID); err != nil || found.Fingerprint != made.Fingerprint || found.Owner != req.Owner {
			t.Errorf("FindKey = %+v, %v; want %+v", found, err, made)
		}
		if n := keysWithID(t, f.m, req.KeyVersionID); n != 1 {
			t.Errorf("%d keys with the same identifier", n)
		}
	}
}

func TestAuthenticate_unfinishedKey_isReplaced(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	leaveUnfinished(t, m, func(s *session) []*p11.Attribute {
		return append(macTemplate(true), s.can.hardenedMAC.attributes(macMechanisms)...)
	}, p11.CKA_VALUE)
	tag := retry(t, func() ([]byte, error) { return m.Authenticate(t.Context(), []byte("message")) })
	if again, err := m.Authenticate(t.Context(), []byte("message")); err != nil || string(again) != string(tag) {
		t.Errorf("the tag changed: %v", err)
	}
}

// SoftHSM finishes the public half first.
func TestCreateWrappingKey_unfinished_isReplaced(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	req := hsm.WrappingKeyRequest{ID: uuid.New(), Owner: f.id, Spec: f.pair.Spec, NotAfter: f.pair.NotAfter}
	for half, values := range [][]uint{
		nil,
		{p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT, p11.CKA_PRIVATE_EXPONENT, p11.CKA_PRIME_1, p11.CKA_PRIME_2, p11.CKA_EXPONENT_1, p11.CKA_EXPONENT_2, p11.CKA_COEFFICIENT},
	} {
		leaveUnfinished(t, f.m, func(s *session) []*p11.Attribute {
			public, private := pairTemplates(2048, req.ID, pairLabel(req), true, s.can.needsRawRSA(s.cfg))
			if half == 0 {
				public = append(public, p11.NewAttribute(p11.CKA_MODULUS, bytes.Repeat([]byte{0xff}, 256)), p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
			}
			return append([][]*p11.Attribute{public, private}[half],
				p11.NewAttribute(p11.CKA_CLASS, []uint{p11.CKO_PUBLIC_KEY, p11.CKO_PRIVATE_KEY}[half]), p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA))
		}, values...)
	}
	made, err := f.m.CreateWrappingKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	f.pair = made
	if _, err := f.m.ImportKey(t.Context(), f.importOf(t, uuid.New(), f.material)); err != nil {
		t.Errorf("an import under the new pair: %v", err)
	}
}
