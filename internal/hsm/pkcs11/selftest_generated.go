//go:build cgo

package pkcs11

import (
	"bytes"
	"crypto/rand"
	"fmt"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// testReencryption finds out whether the token wraps a data key that it unwrapped.
func (t *selfTest) testReencryption() (err error) {
	if t.can.maxDataKeyLen == 0 {
		return nil
	}
	t.can.reencrypts, err = t.try("re-encrypt a data key", func(s *session) error {
		dataKey := make(redact.Bytes, 16)
		defer dataKey.Wipe()
		_, _ = rand.Read(dataKey) // it never fails (Go 1.24)
		inside, _ := t.can.derivation.schemes()
		blob, err := ciphertext.Seal(rand.Reader, inside, t.id, t.block, t.binding, dataKey)
		if err != nil {
			return err
		}
		other := ciphertext.Bind(t.id, map[string]string{"self": "re-encryption"})
		moved, err := s.reencryptInside(t.master, t.master, hsm.OpenRequest{Blob: blob, Binding: t.binding},
			hsm.GenerateRequest{KeyVersionID: t.id, Length: len(dataKey), Binding: other})
		if err != nil {
			return err
		}
		got, err := ciphertext.Open(moved.Blob, t.block, other)
		defer clear(got)
		if err != nil || !bytes.Equal(got, dataKey) {
			return errWrongResult
		}
		return nil
	})
	return err
}

// testGenerated finds out which master keys the token generates, and with which hardening.
func (t *selfTest) testGenerated() error {
	t.can.hardenedGenerated = t.can.hardened
	if err := t.tryGenerated(); err != nil || len(t.can.generates) > 0 || t.can.hardened == 0 {
		return err
	}
	t.can.hardenedGenerated = 0
	return t.tryGenerated()
}

func (t *selfTest) tryGenerated() error {
	for _, spec := range aesSpecs {
		name := "generate a master key " + string(spec) + t.can.hardenedGenerated.suffix()
		passed, err := t.try(name, func(s *session) error { return t.checkGenerated(s, spec) })
		if err != nil {
			return err
		}
		if passed {
			t.can.generates[spec] = true
		}
	}
	return nil
}

// generateMaster generates a session key like a master key.
func (t *selfTest) generateMaster(s *session, spec hsm.KeySpec) (p11.ObjectHandle, error) {
	template := t.can.derivation.masterTemplate(t.id, spec, hsm.Owner{}, false, t.can.hardenedGenerated)
	return s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, generatedTemplate(spec, template))
}

// checkGenerated generates two keys and checks that each has the requested type, protection and usages, and that they differ. What
// they derive cannot be compared with independent code, because their values are not known. For keys of known value, findDerivation
// and testMasterKeys do that.
func (t *selfTest) checkGenerated(s *session, spec hsm.KeySpec) error {
	var fingerprints [2]hsm.Fingerprint
	for i := range fingerprints {
		h, err := t.generateMaster(s, spec)
		if err != nil {
			return err
		}
		if err := s.checkGenerated(h); err != nil {
			return err
		}
		values, err := s.GetAttributes(h, p11.CKA_VALUE_LEN)
		if err != nil {
			return err
		}
		if int(ulong(values[0])) != spec.Len() { //nolint:gosec // a key's length
			return errWrongResult
		}
		if fingerprints[i], err = s.fingerprint(h); err != nil {
			return err
		}
		again, err := s.fingerprint(h)
		if err != nil {
			return err
		}
		if again != fingerprints[i] {
			return errWrongResult
		}
		if err := t.checkGeneratedWraps(s, h); err != nil {
			return err
		}
	}
	if fingerprints[0] == fingerprints[1] {
		return fmt.Errorf("two generated keys are the same: %w", errWrongResult)
	}
	return nil
}

// checkGeneratedWraps generates a data key under a generated key, and opens it on the host.
func (t *selfTest) checkGeneratedWraps(s *session, master p11.ObjectHandle) error {
	if t.can.maxDataKeyLen == 0 {
		return nil
	}
	made, err := s.generateInside(master, hsm.GenerateRequest{KeyVersionID: t.id, Length: 16, Binding: t.binding})
	if err != nil {
		return err
	}
	key, err := s.deriveOnHost(master, made.Blob.Scheme, t.binding)
	if err != nil {
		return err
	}
	defer key.Wipe()
	dataKey, err := ciphertext.OpenWithKey(made.Blob, key, t.binding)
	clear(dataKey)
	if err != nil {
		return errWrongResult
	}
	return nil
}
