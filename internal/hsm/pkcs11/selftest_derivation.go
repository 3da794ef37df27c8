//go:build cgo

package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// findDerivation finds the first derivation that works with a session key of known value. It finds none if the token does not
// accept a key's value and there is no wrapping key pair so far.
func (t *selfTest) findDerivation() error {
	t.rejected = nil
	for _, d := range derivations {
		t.can.derivation = d
		passed, err := t.try("create a master key for "+d.String(), t.tryDerivation)
		if err != nil {
			return err
		}
		if passed {
			t.s.ProveHealthBy(d.proof())
			return nil
		}
		t.rejected = append(t.rejected, fmt.Errorf("%s: %w", d, t.failure))
	}
	t.can.derivation = 0
	return nil
}

// tryDerivation computes the fingerprint of a key, and derives a key that remains in the token if the derivation supports that.
func (t *selfTest) tryDerivation(s *session) error {
	h, err := t.store(s, hsm.AES256, t.can.derivation.masterTemplate(t.id, hsm.AES256, hsm.Owner{}, false, 0))
	if err != nil {
		return err
	}
	s.DestroyOnRelease(h)
	if err := t.checkFingerprint(s, h, hsm.AES256); err != nil {
		return err
	}
	if t.can.derivation == byKDF { // the fingerprint does not use the KDF
		_, err = s.deriveKEK(h, t.binding, wrappingKEK)
	}
	return err
}

// A requirement is what every token must support. One of its ways suffices.
type requirement []struct {
	name string
	run  func(t *selfTest, s *session) error
}

// requirements are what a master key and a health check need, whatever the derivation.
var requirements = []requirement{
	{
		{"AES keys of known value (C_CreateObject)", func(t *selfTest, s *session) error {
			_, err := s.CreateSessionObject(append(sessionKey(p11.CKK_AES, false), p11.NewAttribute(p11.CKA_VALUE, []byte(t.material[hsm.AES256]))))
			return err
		}},
		{"AES keys that it unwraps (C_UnwrapKey with CKM_RSA_PKCS_OAEP)", func(t *selfTest, s *session) error {
			if t.public == nil {
				return errNoPair
			}
			in, err := t.wrap(hsm.AES256, wrapping.RSAESOAEPSHA1, t.material[hsm.AES256])
			if err == nil {
				_, err = s.UnwrapSessionKey(unwrapMechanism(wrapping.RSAESOAEPSHA1), in.private, in.request.EncryptedMaterial, sessionKey(p11.CKK_AES, false))
			}
			return err
		}},
	},
	{{"AES keys that it generates (C_GenerateKey with CKM_AES_KEY_GEN)", func(_ *selfTest, s *session) error {
		_, err := s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, append(sessionKey(p11.CKK_AES, false), p11.NewAttribute(p11.CKA_VALUE_LEN, 32)))
		return err
	}}},
	{{"RSA key pairs that are session objects (C_GenerateKeyPair with CKM_RSA_PKCS_KEY_PAIR_GEN)", func(t *selfTest, _ *session) error {
		if t.public == nil {
			return errNoPair
		}
		return nil
	}}},
	{{"HMAC keys that it generates (C_GenerateKey with CKM_GENERIC_SECRET_KEY_GEN, C_Sign with CKM_SHA256_HMAC)", func(_ *selfTest, s *session) error {
		h, err := s.GenerateSessionKey(p11.CKM_GENERIC_SECRET_KEY_GEN, macTemplate(false))
		if err == nil {
			_, err = s.Sign(p11.CKM_SHA256_HMAC, h, []byte(selfTestLabel))
		}
		return err
	}}},
}

// errMissing returns an error that lists everything that the token lacks, so that an administrator need not find one after the
// other. It is the cause of a failure instead if the device may have failed.
func (t *selfTest) errMissing() error {
	var missing []string
	causes := t.rejected
	for i, required := range requirements {
		lacks, err := t.lacks(required, &causes)
		if err != nil {
			return err
		}
		if lacks != "" {
			missing = append(missing, lacks)
		}
		if i == 0 {
			missing = append(missing, t.describeDerivations(lacks != ""))
		}
	}
	if err := t.checkAlive(causes); err != nil {
		return err
	}
	return hsm.Wrap(hsm.NotSupported, errors.Join(causes...), fmt.Sprintf(
		"the token lacks what every key store requires: %s. Use another token or a software key store", strings.Join(missing, "; ")))
}

// lacks returns the names of a requirement's ways if the token supports none of them.
func (t *selfTest) lacks(required requirement, causes *[]error) (string, error) {
	var names []string
	for _, way := range required {
		passed, err := t.try(way.name, func(s *session) error { return way.run(t, s) })
		if passed || err != nil {
			return "", err
		}
		names = append(names, way.name)
		*causes = append(*causes, fmt.Errorf("%s: %w", way.name, t.failure))
	}
	return strings.Join(names, " or "), nil
}

// describeDerivations lists the derivations, of which the token supports none.
func (t *selfTest) describeDerivations(noKeys bool) string {
	var names []string
	for _, d := range derivations {
		names = append(names, d.String())
	}
	text := strings.Join(names, ", or ")
	if noKeys {
		text += " (which need AES keys)"
	}
	return text
}

// checkAlive returns the cause of a failure that may be that of the device, unless the device answers.
func (t *selfTest) checkAlive(causes []error) error {
	for _, cause := range causes {
		if token.ClassOf(cause) == token.Exhausted {
			return cause // random bytes need no memory for objects
		}
		if !mayBeDevice(cause) {
			continue
		}
		alive, err := t.try("generate random bytes", func(s *session) (err error) {
			var random [2]redact.Bytes
			for i := range random {
				if random[i], err = s.GenerateRandom(16); err != nil {
					return err
				}
			}
			if bytes.Equal(random[0], random[1]) {
				return errNotDone
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !alive {
			return cause
		}
	}
	return nil
}
