//go:build cgo

package pkcs11

import (
	"bytes"
	"context"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// macKeyName is the import token's MAC key.
var macKeyName = objectName{class: p11.CKO_SECRET_KEY, id: string(macKeyID[:])}

// Authenticate implements hsm.Module: HMAC-SHA-256 in the token.
func (m *Module) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	message = bytes.Clone(message) // the caller may be gone before the call is
	return result(ctx, m, func(s *session) ([]byte, error) {
		key, err := s.macKey()
		if err != nil {
			return nil, err
		}
		tag, err := s.sign(p11.CKM_SHA256_HMAC, key, message)
		if err == nil && len(tag) != 32 {
			err = hsm.Errorf(hsm.Internal, "the token's HMAC has a wrong length")
		}
		return tag, err
	})
}

// macKey finds the MAC key, or makes it on first use.
func (s *session) macKey() (p11.ObjectHandle, error) {
	h, ok, err := s.object(macKeyName, s.checkMAC)
	if ok || err != nil {
		return h, err
	}
	unlock, err := s.lockName(macKeyID)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if h, ok, err = s.object(macKeyName, s.checkMAC); ok || err != nil { // made while we waited
		return h, err
	}
	h, err = s.generate(p11.CKM_GENERIC_SECRET_KEY_GEN, macTemplate())
	if err != nil {
		return 0, err
	}
	if err := s.checkMAC(h); err != nil {
		_ = s.destroy(h)
		return 0, err
	}
	s.m.remember(s, macKeyName, h)
	return h, nil
}

// checkMAC refuses a key that can leave the token.
func (s *session) checkMAC(h p11.ObjectHandle) error {
	values, err := s.attributes(h, p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE)
	if err != nil {
		return err
	}
	if !isTrue(values[0]) || !isFalse(values[1]) {
		return hsm.Errorf(hsm.Internal, "the import token's key in the token is not protected as it must be (sensitive, not extractable), so it is not used")
	}
	return nil
}
