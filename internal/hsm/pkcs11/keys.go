//go:build cgo

package pkcs11

import (
	"context"
	"encoding/binary"
	"slices"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// FindKey implements hsm.Module.
func (m *Module) FindKey(ctx context.Context, id uuid.UUID) (hsm.Key, error) {
	return result(ctx, m, func(s *session) (hsm.Key, error) {
		h, err := s.master(id)
		if err != nil {
			return hsm.Key{}, err
		}
		spec, owner, err := s.describe(h)
		if err != nil {
			return hsm.Key{}, err
		}
		fingerprint, err := s.fingerprint(h)
		return hsm.Key{KeyVersionID: id, Spec: spec, Fingerprint: fingerprint, Owner: owner}, err
	})
}

// ListKeys implements hsm.Module from the labels of the keys.
func (m *Module) ListKeys(ctx context.Context) ([]hsm.Key, error) {
	return result(ctx, m, func(s *session) (keys []hsm.Key, err error) {
		_, err = s.eachObject(p11.CKO_SECRET_KEY, func(id uuid.UUID, label string) {
			if spec, owner := parseKeyLabel(label); spec != "" {
				keys = append(keys, hsm.Key{KeyVersionID: id, Spec: spec, Owner: owner})
			}
		})
		if err == nil && len(keys) == 0 { // a token that lost its login shows only public objects
			err = s.HealthCheck()
		}
		return keys, err
	})
}

// DestroyKey implements hsm.Module.
func (m *Module) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return m.do(ctx, func(s *session) error {
		unlock, err := s.LockID(id)
		if err != nil {
			return err
		}
		defer unlock()
		return s.destroyAll(masterName(id))
	})
}

// destroyAll destroys all token objects of that name. If there is none, it checks that the token is healthy, because a token
// that lost its login hides its objects.
func (s *session) destroyAll(name token.ObjectName) error {
	s.Forget(name)
	handles, err := s.FindObjects(name.Template())
	if err != nil {
		return err
	}
	for _, h := range handles {
		if err := s.DestroyObject(h); err != nil {
			return err
		}
	}
	if len(handles) == 0 {
		return s.HealthCheck()
	}
	return nil
}

// master returns the master key with that identifier, or errNoKey.
func (s *session) master(id uuid.UUID) (p11.ObjectHandle, error) {
	h, ok, err := s.LookUp(masterName(id), s.checkMaster)
	if err == nil && !ok {
		err = errNoKey
	}
	return h, err
}

// checkMaster rejects a key that is less protected than masterTemplate requires: tokens may ignore a template. It also rejects a
// key for another derivation. Above all, a key that encrypts must not be used in a token that derives, where it would be less
// protected than its key store shows.
func (s *session) checkMaster(h p11.ObjectHandle) error {
	usages := []uint{p11.CKA_DERIVE, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_SIGN, p11.CKA_VERIFY}
	values, err := s.GetAttributes(h, append([]uint{p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE}, usages...)...)
	if err != nil {
		return err
	}
	if !isTrue(values[0]) || !isFalse(values[1]) {
		return errUnprotected
	}
	var has []uint
	for i, value := range values[2:] {
		switch {
		case isTrue(value):
			has = append(has, usages[i])
		case !isFalse(value) && value != nil: // nil if the token does not know this usage
			return errUnprotected
		}
	}
	if slices.Equal(has, s.can.derivation.usages()) {
		return nil
	}
	for _, other := range derivations {
		if slices.Equal(has, other.usages()) {
			return hsm.Errorf(hsm.NotSupported,
				"the key in the token is for %s, and keys in this token must be for %s, so Keyconvoy does not use it: use the library with which the key was created, or destroy the key and import its material again",
				other, s.can.derivation)
		}
	}
	return errUnprotected
}

// ulong returns the value of a CK_ULONG attribute, or 0 if the attribute is missing.
func ulong(value []byte) uint64 {
	switch len(value) {
	case 8:
		return binary.NativeEndian.Uint64(value)
	case 4:
		return uint64(binary.NativeEndian.Uint32(value))
	}
	return 0
}

func isTrue(b []byte) bool  { return len(b) == 1 && b[0] != 0 }
func isFalse(b []byte) bool { return len(b) == 1 && b[0] == 0 }

// describe returns the type and the owner of a master key. The type is that of its length, or, if the token does not know the
// length, that of its label.
func (s *session) describe(h p11.ObjectHandle) (hsm.KeySpec, hsm.Owner, error) {
	values, err := s.GetAttributes(h, p11.CKA_VALUE_LEN, p11.CKA_LABEL)
	if err != nil {
		return "", hsm.Owner{}, err
	}
	inLabel, owner := parseKeyLabel(string(values[1]))
	length := int(ulong(values[0])) //nolint:gosec // a key's length
	for _, spec := range aesSpecs {
		if length == spec.Len() || (length == 0 && inLabel == spec) {
			return spec, owner, nil
		}
	}
	return "", hsm.Owner{}, hsm.Errorf(hsm.Internal, "neither the length nor the label of the key in the token are those of an AES key")
}

// aesSpecs are the supported types of master keys. SM4 has no portable mechanism numbers.
var aesSpecs = []hsm.KeySpec{hsm.AES128, hsm.AES192, hsm.AES256}

// fingerprint computes the CMAC of hsm.FingerprintLabel with a master key. The label is one block M, so the CMAC is E(M ⊕ K1),
// where K1 is E(0) doubled (NIST SP 800-38B, sections 6.1 and 6.2), and CKM_AES_ECB_ENCRYPT_DATA over one block is E. Neither E(0)
// nor the result reveals anything about the key or about keys derived from it with other data.
func (s *session) fingerprint(h p11.ObjectHandle) (hsm.Fingerprint, error) {
	block, err := s.lastBlock(h)
	if err != nil {
		return hsm.Fingerprint{}, err
	}
	defer clear(block[:])
	return s.fingerprintOf(h, block)
}

// tryFingerprint returns why a key has no fingerprint.
func (s *session) tryFingerprint(h p11.ObjectHandle) error {
	_, err := s.fingerprint(h)
	return err
}

// lastBlock returns M ⊕ K1, for fingerprintOf. The caller wipes it.
func (s *session) lastBlock(h p11.ObjectHandle) ([16]byte, error) {
	var zeros [16]byte
	if s.can.derivation == byKDF {
		return zeros, nil // the token computes the whole CMAC
	}
	l, err := s.encryptData(h, zeros[:])
	if err != nil {
		return zeros, err
	}
	defer l.Wipe()
	return lastBlock(l), nil
}

// lastBlock returns M ⊕ K1 for l = E(0).
func lastBlock(l []byte) (block [16]byte) {
	copy(block[:], hsm.FingerprintLabel)
	carry := l[0] >> 7
	for i := range block {
		k1 := l[i] << 1
		if i < len(l)-1 {
			k1 |= l[i+1] >> 7
		} else {
			k1 ^= carry * 0x87
		}
		block[i] ^= k1
	}
	return block
}

// fingerprintOf returns the fingerprint of a key, for which last is the result of lastBlock.
func (s *session) fingerprintOf(h p11.ObjectHandle, last [16]byte) (hsm.Fingerprint, error) {
	defer clear(last[:])
	var tag []byte
	var err error
	if s.can.derivation == byKDF {
		tag, err = s.cmac(h, []byte(hsm.FingerprintLabel))
	} else {
		tag, err = s.encryptData(h, last[:])
	}
	if err != nil {
		return hsm.Fingerprint{}, err
	}
	return hsm.Fingerprint(tag), nil
}
