//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto/aes"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// The self-test attacks session keys. Its result must be the same for the keys in the token, and in the threat model.
func TestKeyProtection_isTheSameForKeysInTheToken(t *testing.T) {
	tokens.OnEach(t, keyProtectionIsTheSame)
	for name, newToken := range served {
		t.Run(name, func(t *testing.T) {
			tok, _ := newToken(t)
			keyProtectionIsTheSame(t, tok)
		})
	}
}

func keyProtectionIsTheSame(t *testing.T, tok tokens.Token) {
	t.Helper()
	f := newFixture(t, configOf(tok))
	found := describe(t, f.m).KeyProtection
	var methods []string
	err := f.m.do(t.Context(), func(s *session) error {
		master, err := s.master(f.id)
		if err != nil {
			return err
		}
		private, err := s.private(f.pair.ID)
		if err != nil {
			return err
		}
		test := newSelfTest(s)
		for target, attacks := range map[p11.ObjectHandle][]attack{master: masterKeyAttacks(s.can.derivation), private: wrappingKeyAttacks()} {
			for _, a := range attacks {
				allowed, err := test.try(a.method, func(s *session) error { return a.run(test, s, target) })
				if err != nil {
					return err
				}
				if allowed {
					methods = append(methods, a.method)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(methods)
	if reported := slices.Sorted(slices.Values(found.Methods)); !slices.Equal(methods, reported) {
		t.Errorf("the self-test reports\n%q; on a real key\n%q work", reported, methods)
	}
	f.mustWork(t) // the attacks did not damage the keys

	state, inPage := threatModel(t, describe(t, f.m).Info.Manufacturer)
	if state != string(found.State) || !slices.Equal(slices.Sorted(slices.Values(inPage)), methods) {
		t.Errorf("docs/threat-model.md has %s, %q; the self-test reports %+v", state, inPage, found)
	}
}

// threatModel returns what the page has about the modules of a manufacturer.
func threatModel(t testing.TB, manufacturer string) (state string, methods []string) {
	t.Helper()
	page, err := os.ReadFile("../../../docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	for row := range strings.Lines(string(page)) {
		cells := strings.Split(row, "|")
		if len(cells) == 6 && strings.Contains(cells[1], manufacturer) {
			for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[3], -1) {
				methods = append(methods, quoted[1])
			}
			return strings.Trim(cells[2], " `"), methods
		}
	}
	t.Fatalf("docs/threat-model.md has no row for %q", manufacturer)
	return "", nil
}

// The self-test does not look at the result of an attack. This test shows that it is the key.
func TestKeyProtection_NSS_revealsAWrappedMasterKey(t *testing.T) {
	f := newFixture(t, configOf(tokens.NSS(t)))
	known := bytes.Repeat([]byte{7}, 32)
	var wrapped []byte
	err := f.m.do(t.Context(), func(s *session) error {
		master, err := s.master(f.id)
		if err != nil {
			return err
		}
		with, err := s.CreateSessionObject(append(secretKey(p11.CKK_AES, false),
			p11.NewAttribute(p11.CKA_WRAP, true), p11.NewAttribute(p11.CKA_VALUE, known)))
		if err != nil {
			return err
		}
		wrapped, err = s.WrapKey(token.Mechanism(p11.CKM_AES_ECB), with, master)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(known)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 32)
	block.Decrypt(out, wrapped[:16])
	block.Decrypt(out[16:], wrapped[16:])
	if !bytes.Equal(out, f.material) {
		t.Error("the wrapped key is not the master key, so the threat model is wrong")
	}
}

func TestKeyProtection_moduleThatReturnsOK_isChecked(t *testing.T) {
	for function, want := range map[string]struct {
		state  hsm.KeyProtectionState
		method string
	}{
		"C_WrapKey":           {hsm.NotEnforced, "C_WrapKey with CKM_AES_KEY_WRAP_PAD"},
		"C_GetAttributeValue": {hsm.NotEnforced, "C_GetAttributeValue of CKA_VALUE"},
		// The module returns CKR_OK, but the attribute has its old value.
		"C_SetAttributeValue": {hsm.Enforced, ""},
	} {
		t.Run(function, func(t *testing.T) {
			// Both tokens exist before C_Initialize, because SoftHSM does not find new ones later.
			first, second := tokens.SoftHSM(t), tokens.SoftHSM(t)
			mustOpen(t, configOf(first))
			tokens.SpyOn(t, first).Forgive(function)
			got := describe(t, mustOpen(t, configOf(second))).KeyProtection
			if got.State != want.state || (want.method != "" && !slices.Contains(got.Methods, want.method)) {
				t.Errorf("KeyProtection = %+v", got)
			}
		})
	}
}

// hardenedBy is the hardening of every key, by module. NSS accepts the other attributes for session objects only.
var hardenedBy = map[string]hardening{"SoftHSM": fullyHardened, "NSS": unmodifiable}

func TestKeys_areHardened(t *testing.T) {
	for kind, newToken := range tokens.Kinds {
		t.Run(kind, func(t *testing.T) {
			f := newFixture(t, configOf(newToken(t)))
			f.mustWork(t)
			err := f.m.do(t.Context(), func(s *session) error {
				master, err := s.master(f.id)
				if err != nil {
					return err
				}
				private, err := s.private(f.pair.ID)
				if err != nil {
					return err
				}
				mac, err := s.macKey()
				if err != nil {
					return err
				}
				for name, key := range map[string]struct {
					handle     p11.ObjectHandle
					mechanisms []uint
				}{
					"master key": {master, s.can.derivation.mechanisms()}, "import key": {private, pairMechanisms(s.can.needsRawRSA(s.cfg), false)}, "MAC key": {mac, macMechanisms},
				} {
					if err := s.checkHardened(key.handle, hardenedBy[kind], key.mechanisms); err != nil {
						t.Errorf("the %s: %v", name, err)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// If a token rejects an attribute, keys have no such attribute, and only the self-test tries it.
func TestKeys_tokenRejectsAttributes_areCreatedWithout(t *testing.T) {
	for name, test := range map[string]struct {
		forbidden []uint
		state     hsm.KeyProtectionState
	}{
		"CKA_ALLOWED_MECHANISMS": {[]uint{p11.CKA_ALLOWED_MECHANISMS}, hsm.Enforced},
		"CKA_COPYABLE":           {[]uint{p11.CKA_COPYABLE}, hsm.Enforced}, // SoftHSM allows no copy with more usages anyway
		"CKA_MODIFIABLE":         {[]uint{p11.CKA_MODIFIABLE}, hsm.NotEnforced},
		"all":                    {[]uint{p11.CKA_ALLOWED_MECHANISMS, p11.CKA_COPYABLE, p11.CKA_MODIFIABLE}, hsm.NotEnforced},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := tokens.SoftHSM(t), tokens.SoftHSM(t)
			mustOpen(t, configOf(first))
			spy := tokens.SpyOn(t, first)
			spy.Forbid(test.forbidden...)
			m := mustOpen(t, configOf(second))
			if got := describe(t, m).KeyProtection; got.State != test.state {
				t.Errorf("KeyProtection = %+v", got)
			}
			tried := spy.Count("forbidden")
			f := fixtureOf(t, m)
			f.mustWork(t)
			if again := spy.Count("forbidden"); tried == 0 || again != tried {
				t.Errorf("%d templates were rejected by Open, and %d after creating keys", tried, again)
			}
		})
	}
}

// Earlier versions created keys without hardening.
func TestMasterKey_withoutHardening_isUsed(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		id := uuid.New()
		err := m.do(t.Context(), func(s *session) error {
			_, err := s.CreateObject(append(byEncryptData.masterTemplate(id, hsm.AES256, hsm.Owner{}, true, 0), p11.NewAttribute(p11.CKA_VALUE, make([]byte, 32))))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.DestroyKey(t.Context(), id) }()
		if _, err := m.FindKey(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
}

func TestSelfTest_destroysWhatACrashedOneLeft(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		leave := func(created time.Time) {
			err := m.do(t.Context(), func(s *session) error {
				template := byEncryptData.masterTemplate(uuid.New(), hsm.AES256, hsm.Owner{}, true, 0)
				for _, a := range template {
					switch a.Type {
					case p11.CKA_LABEL:
						a.Value = []byte(selfTestLabel)
					case p11.CKA_ID:
						a.Value = selfTestID(created)
					}
				}
				_, err := s.CreateObject(append(template, p11.NewAttribute(p11.CKA_VALUE, bytes.Repeat([]byte{byte(created.Hour())}, 32))))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		leave(time.Now().Add(-2 * selfTestMaxAge))
		if m := mustOpen(t, configOf(tok)); objects(t, m) != 0 {
			t.Errorf("%d objects, want 0", objects(t, m))
		}
		// The object of a self-test that is running is kept.
		leave(time.Now())
		if m := mustOpen(t, configOf(tok)); objects(t, m) != 1 {
			t.Errorf("%d objects, want 1", objects(t, m))
		}
		err := m.do(t.Context(), func(s *session) error {
			handles, err := s.FindObjects(nil)
			for _, h := range handles {
				err = errors.Join(err, s.DestroyObject(h))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
