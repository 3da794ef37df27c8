//go:build cgo

package pkcs11

import (
	"context"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
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

// DestroyKey implements hsm.Module.
func (m *Module) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return m.operate(ctx, func(s *session) error {
		unlock, err := s.lockName(id)
		if err != nil {
			return err
		}
		defer unlock()
		return s.destroyAll(masterName(id))
	})
}

// destroyAll destroys every token object of that name; none is no error, once the token has proved
// that it shows its objects.
func (s *session) destroyAll(name objectName) error {
	s.m.forget(s.at, []objectName{name})
	handles, err := s.find(name.template())
	if err != nil {
		return err
	}
	for _, h := range handles {
		if err := s.destroy(h); err != nil {
			return err
		}
	}
	if len(handles) == 0 {
		return s.health()
	}
	return nil
}

// lockName serialises, in this process, those who make or destroy the token's objects of one
// identifier, through whichever Module.
func (s *session) lockName(id uuid.UUID) (unlock func(), err error) {
	unlock, err = s.m.lib.names.lock(s.ctx, s.at.id.serial+"\x00"+s.at.id.label+"\x00"+string(id[:]))
	if err != nil {
		return nil, errWaiting(err)
	}
	return unlock, nil
}

// master returns the master key with that identifier, or errNoKey.
func (s *session) master(id uuid.UUID) (p11.ObjectHandle, error) {
	h, ok, err := s.object(masterName(id), s.checkMaster)
	if err == nil && !ok {
		err = errNoKey
	}
	return h, err
}

// checkMaster refuses a key that protects less than masterTemplate asks: templates are wishes.
func (s *session) checkMaster(h p11.ObjectHandle) error {
	values, err := s.attributes(h, p11.CKA_SENSITIVE, p11.CKA_DERIVE, // these must be set
		p11.CKA_EXTRACTABLE, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_SIGN, p11.CKA_VERIFY)
	if err != nil {
		return err
	}
	const set = 2
	for i, value := range values {
		switch {
		case i < set && isTrue(value):
		case i >= set && isFalse(value):
		case i > set && value == nil: // a usage that the token does not know cannot be misused
		default:
			return hsm.Errorf(hsm.Internal,
				"the key in the token is not protected as it must be (sensitive, not extractable, for derivation only), so it is not used")
		}
	}
	return nil
}

func isTrue(b []byte) bool  { return len(b) == 1 && b[0] != 0 }
func isFalse(b []byte) bool { return len(b) == 1 && b[0] == 0 }

// describe returns a master key's owner and type: the latter from its length, or where the token does
// not know that, from the label that it was made with.
func (s *session) describe(h p11.ObjectHandle) (hsm.KeySpec, string, error) {
	values, err := s.attributes(h, p11.CKA_VALUE_LEN, p11.CKA_LABEL)
	if err != nil {
		return "", "", err
	}
	inLabel, owner := parseKeyLabel(string(values[1]))
	length := int(ulong(values[0])) //nolint:gosec // a key's length
	for _, spec := range aesSpecs {
		if length == spec.Len() || (length == 0 && inLabel == spec) {
			return spec, owner, nil
		}
	}
	return "", "", hsm.Errorf(hsm.Internal, "neither length nor label of the key in the token say that it is an AES key")
}

// aesSpecs are the master key types here; SM4 has no portable mechanism numbers.
var aesSpecs = []hsm.KeySpec{hsm.AES128, hsm.AES192, hsm.AES256}

// fingerprint computes the CMAC of hsm.FingerprintLabel with a key that only derives. The label is one
// whole block M, so the CMAC is E(M ⊕ K1), where K1 is E(0) doubled (NIST SP 800-38B, sections 6.1 and
// 6.2), and CKM_AES_ECB_ENCRYPT_DATA over one block is E. Neither E(0) nor the result tells anything
// about the key, nor about what is derived from it over other data.
func (s *session) fingerprint(h p11.ObjectHandle) (hsm.Fingerprint, error) {
	block, err := s.lastBlock(h)
	if err != nil {
		return hsm.Fingerprint{}, err
	}
	defer clear(block[:])
	return s.encryption(h, block)
}

// lastBlock returns M ⊕ K1. The caller wipes it.
func (s *session) lastBlock(h p11.ObjectHandle) ([16]byte, error) {
	var zeros [16]byte
	l, err := s.deriveValue(h, zeros[:])
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

// encryption is E of one block.
func (s *session) encryption(h p11.ObjectHandle, block [16]byte) (hsm.Fingerprint, error) {
	defer clear(block[:])
	tag, err := s.deriveValue(h, block[:])
	if err != nil {
		return hsm.Fingerprint{}, err
	}
	return hsm.Fingerprint(tag), nil
}
