//go:build cgo

package pkcs11

import (
	"slices"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// An attack is a way in which someone with the PIN might get the value of a sensitive and non-extractable key, or add usages to
// it. run returns nil if the token allows it.
//
// CKR_OK is enough to count as allowed: the module claims protection only if the token rejects every attack, and the result of
// an attack is not always readable at once (a key of one byte can be guessed by its use).
type attack struct {
	method string
	run    func(t *selfTest, s *session, key p11.ObjectHandle) error
}

// wrapMechanisms are the mechanisms with which the self-test tries to wrap a key under an AES key of known value. It tries all of
// them, because C_GetMechanismList is only a hint.
var wrapMechanisms = []struct {
	name      string
	mechanism uint
	iv        int
	pads      bool // it wraps keys of any length
}{
	{"CKM_AES_KEY_WRAP", p11.CKM_AES_KEY_WRAP, 0, false},
	{"CKM_AES_KEY_WRAP_PAD", p11.CKM_AES_KEY_WRAP_PAD, 0, true},
	{"CKM_AES_KEY_WRAP_KWP", 0x210B, 0, true}, // PKCS #11 v3.0
	{"CKM_AES_KEY_WRAP_PKCS7", 0x210C, 0, true},
	{"CKM_AES_CBC_PAD", p11.CKM_AES_CBC_PAD, 16, true},
	{"CKM_AES_CBC", p11.CKM_AES_CBC, 16, false},
	{"CKM_AES_ECB", p11.CKM_AES_ECB, 0, false},
}

// wrapAttacks wrap a key under an AES key of known value. The length of a private key differs from key to key. A mechanism that
// does not pad would wrap only some of them, and the result of the self-test would vary.
func wrapAttacks(of string, onlyPadding bool) []attack {
	var all []attack
	for _, w := range wrapMechanisms {
		if onlyPadding && !w.pads {
			continue
		}
		all = append(all, attack{"C_WrapKey with " + w.name + of, func(t *selfTest, s *session, key p11.ObjectHandle) error {
			with, err := t.knownKey(s, p11.CKA_WRAP)
			if err != nil {
				return err
			}
			mechanism := token.Mechanism(w.mechanism)
			if w.iv > 0 {
				mechanism = []*p11.Mechanism{p11.NewMechanism(w.mechanism, make([]byte, w.iv))}
			}
			return checkLeaked(s.WrapKey(mechanism, with, key))
		}})
	}
	return all
}

// exportAttacks wrap a key under the RSA public key of a recipient, as data keys are exported.
func exportAttacks() []attack {
	var all []attack
	for _, e := range []struct {
		name      string
		mechanism []*p11.Mechanism
	}{
		{"CKM_RSA_PKCS_OAEP", oaep("RSAES_OAEP_SHA_1")},
		{"CKM_RSA_PKCS_OAEP and SHA-256", oaep("RSAES_OAEP_SHA_256")},
		{"CKM_RSA_PKCS", token.Mechanism(p11.CKM_RSA_PKCS)},
		{"CKM_RSA_X_509", token.Mechanism(p11.CKM_RSA_X_509)},
	} {
		all = append(all, attack{"C_WrapKey with " + e.name, func(_ *selfTest, s *session, key p11.ObjectHandle) error {
			recipient, err := selfTestRecipient()
			if err != nil {
				return err
			}
			with, err := s.CreateSessionObject(recipientTemplate(recipient.Public().RSA()))
			if err != nil {
				return err
			}
			return checkLeaked(s.WrapKey(e.mechanism, with, key))
		}})
	}
	return all
}

// deriveAttacks derive a key that is a part of the base key, or contains it.
func deriveAttacks() []attack {
	var all []attack
	for _, d := range []struct {
		name      string
		mechanism uint
	}{
		{"CKM_CONCATENATE_BASE_AND_DATA", p11.CKM_CONCATENATE_BASE_AND_DATA},
		{"CKM_CONCATENATE_DATA_AND_BASE", p11.CKM_CONCATENATE_DATA_AND_BASE},
		{"CKM_XOR_BASE_AND_DATA", p11.CKM_XOR_BASE_AND_DATA},
	} {
		all = append(all, attack{"C_DeriveKey with " + d.name, func(_ *selfTest, s *session, key p11.ObjectHandle) error {
			mechanism, free := token.StringDataMechanism(d.mechanism, make([]byte, 32))
			defer free()
			return s.deriveByte(mechanism, key)
		}})
	}
	return append(all,
		attack{"C_DeriveKey with CKM_EXTRACT_KEY_FROM_KEY", func(_ *selfTest, s *session, key p11.ObjectHandle) error {
			fromBit := p11.NewAttribute(0, uint(0)).Value
			return s.deriveByte([]*p11.Mechanism{p11.NewMechanism(p11.CKM_EXTRACT_KEY_FROM_KEY, fromBit)}, key)
		}},
		attack{"C_DeriveKey with CKM_CONCATENATE_BASE_AND_KEY", func(t *selfTest, s *session, key p11.ObjectHandle) error {
			other, err := t.knownKey(s, p11.CKA_DERIVE)
			if err != nil {
				return err
			}
			handle := p11.NewAttribute(0, uint(other)).Value
			return s.deriveByte([]*p11.Mechanism{p11.NewMechanism(p11.CKM_CONCATENATE_BASE_AND_KEY, handle)}, key)
		}})
}

// deriveByte derives a key of one byte with each template that a token might accept. The key is readable if the token allows it.
func (s *session) deriveByte(mechanism []*p11.Mechanism, base p11.ObjectHandle) error {
	var err error
	for _, template := range [][]*p11.Attribute{
		token.ReadableTemplate(1),
		append(secretKey(p11.CKK_GENERIC_SECRET, false), p11.NewAttribute(p11.CKA_VALUE_LEN, 1), p11.NewAttribute(p11.CKA_SIGN, true)),
		append(secretKey(p11.CKK_GENERIC_SECRET, false), p11.NewAttribute(p11.CKA_SIGN, true)),
	} {
		if _, err = s.DeriveSessionKey(mechanism, base, template); err == nil || token.ClassOf(err) == token.ConnectionLost {
			return err
		}
	}
	return err
}

// usageAttacks add usages to a key or to a copy of it.
func usageAttacks(d derivation) []attack {
	var all []attack
	further := slices.DeleteFunc(d.otherUsages(), func(usage uint) bool { return usage == p11.CKA_VERIFY })
	for _, change := range []struct {
		name string
		to   []*p11.Attribute
	}{
		{"for further usages", boolAttributes(true, further...)},
		{"for CKA_EXTRACTABLE", boolAttributes(true, p11.CKA_EXTRACTABLE)},
		{"for CKA_SENSITIVE", boolAttributes(false, p11.CKA_SENSITIVE)},
	} {
		all = append(all,
			attack{"C_CopyObject " + change.name, func(_ *selfTest, s *session, key p11.ObjectHandle) error {
				return anyOf(change.to, func(to *p11.Attribute) error {
					h, err := s.CopySessionObject(key, []*p11.Attribute{p11.NewAttribute(p11.CKA_TOKEN, false), to})
					if err != nil {
						return err
					}
					return s.checkChanged(h, to)
				})
			}},
			attack{"C_SetAttributeValue " + change.name, func(_ *selfTest, s *session, key p11.ObjectHandle) error {
				return anyOf(change.to, func(to *p11.Attribute) error {
					if err := s.SetAttribute(key, to); err != nil {
						return err
					}
					return s.checkChanged(key, to)
				})
			}})
	}
	return all
}

// anyOf calls try with each attribute until one call succeeds.
func anyOf(attributes []*p11.Attribute, try func(*p11.Attribute) error) (err error) {
	for _, a := range attributes {
		if err = try(a); err == nil || token.ClassOf(err) == token.ConnectionLost {
			return err
		}
	}
	return err
}

// checkChanged returns errNotDone if an attribute of a key does not have the new value. An attribute that the token does not
// reveal counts as changed.
func (s *session) checkChanged(h p11.ObjectHandle, to *p11.Attribute) error {
	values, err := s.GetAttributes(h, to.Type)
	if token.ClassOf(err) == token.ConnectionLost {
		return err
	}
	if err == nil && values[0] != nil && isTrue(values[0]) != isTrue(to.Value) {
		return errNotDone
	}
	return nil
}

// readAttack reads the value.
var readAttack = attack{"C_GetAttributeValue of CKA_VALUE", func(_ *selfTest, s *session, key p11.ObjectHandle) error {
	values, err := s.GetAttributes(key, p11.CKA_VALUE)
	if err != nil {
		return err
	}
	return checkLeaked(values[0], nil)
}}

// checkLeaked returns nil if an attack returned bytes, which it wipes.
func checkLeaked(out []byte, err error) error {
	defer redact.Bytes(out).Wipe()
	if err == nil && len(out) == 0 {
		return errNotDone
	}
	return err
}

// knownKey creates an AES key of known value with one usage.
func (t *selfTest) knownKey(s *session, usage uint) (p11.ObjectHandle, error) {
	h, err := t.store(s, hsm.AES256, append(secretKey(p11.CKK_AES, false), p11.NewAttribute(usage, true)))
	if err == nil {
		s.DestroyOnRelease(h)
	}
	return h, err
}

// masterKeyAttacks are the attacks on a master key for that derivation.
func masterKeyAttacks(d derivation) []attack {
	return slices.Concat(wrapAttacks("", false), exportAttacks(), deriveAttacks(), usageAttacks(d), []attack{readAttack})
}

// wrappingKeyAttacks are the attacks on the private half of a wrapping key pair. It decrypts imported material that someone kept
// in its wrapped form.
func wrappingKeyAttacks() []attack { return wrapAttacks(" of an import key", true) }

// testProtection runs all attacks on keys that are created like a master key and like a wrapping key pair.
func (t *selfTest) testProtection() error {
	t.can.protection = hsm.KeyProtection{State: hsm.Enforced}
	master := func(s *session) (p11.ObjectHandle, error) { return t.createMaster(s, hsm.AES256) }
	if err := t.runAttacks(masterKeyAttacks(t.can.derivation), "", master); err != nil {
		return err
	}
	if t.can.generates[hsm.AES256] {
		generated := func(s *session) (p11.ObjectHandle, error) { return t.generateMaster(s, hsm.AES256) }
		if err := t.runAttacks(masterKeyAttacks(t.can.derivation), " of a generated key", generated); err != nil {
			return err
		}
	}
	if t.public == nil {
		return nil
	}
	private := func(*session) (p11.ObjectHandle, error) { return t.private, nil }
	return t.runAttacks(wrappingKeyAttacks(), "", private)
}

// runAttacks runs attacks on keys that target creates. of tells their probes from those of the same attacks on other keys.
func (t *selfTest) runAttacks(attacks []attack, of string, target func(*session) (p11.ObjectHandle, error)) error {
	for _, a := range attacks {
		var createErr error
		allowed, err := t.tryProbe(hsm.Probe{Name: a.method + of, Attack: true}, func(s *session) error {
			var key p11.ObjectHandle
			if key, createErr = target(s); createErr != nil {
				return createErr
			}
			return a.run(t, s, key)
		})
		if err != nil {
			return err
		}
		if createErr != nil {
			return createErr // the attack did not run, so its result is unknown
		}
		if allowed || token.ClassOf(t.failure) == token.Exhausted { // a lack of memory is no rejection
			t.can.protection.State = hsm.NotEnforced
			if !slices.Contains(t.can.protection.Methods, a.method) {
				t.can.protection.Methods = append(t.can.protection.Methods, a.method)
			}
		}
	}
	return nil
}
