//go:build cgo

package pkcs11

import (
	"bytes"
	"context"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// macKeyName is the name of the MAC key of import tokens.
var macKeyName = token.ObjectName{Class: p11.CKO_SECRET_KEY, ID: string(macKeyID[:])}

// Authenticate implements hsm.Module with HMAC-SHA-256 in the token.
func (m *Module) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	message = bytes.Clone(message) // the call may outlast its caller
	return result(ctx, m, func(s *session) ([]byte, error) {
		key, err := s.macKey()
		if err != nil {
			return nil, err
		}
		tag, err := s.hmac(key, message)
		if err != nil {
			err = s.destroyUnfinishedMAC(message, err)
		}
		return tag, err
	})
}

// destroyUnfinishedMAC is destroyUnfinished for the MAC key, with a message that it did not authenticate.
func (s *session) destroyUnfinishedMAC(message []byte, cause error) error {
	unlock, err := s.LockID(macKeyID)
	if err != nil {
		return err
	}
	defer unlock()
	return s.destroyUnfinished(suspect{
		name: macKeyName, use: func(h p11.ObjectHandle) error { _, err := s.hmac(h, message); return err }, generated: true,
		likeIt: func() (p11.ObjectHandle, error) {
			return s.GenerateSessionKey(p11.CKM_GENERIC_SECRET_KEY_GEN, s.macKeyTemplate(false))
		},
	}, cause)
}

func (s *session) hmac(key p11.ObjectHandle, message []byte) ([]byte, error) {
	tag, err := s.Sign(p11.CKM_SHA256_HMAC, key, message)
	if err == nil && len(tag) != 32 {
		err = hsm.Errorf(hsm.Internal, "the token returned an HMAC of a wrong length")
	}
	return tag, err
}

// macKey returns the MAC key. The first use generates it.
func (s *session) macKey() (p11.ObjectHandle, error) {
	h, ok, err := s.LookUp(macKeyName, s.checkMAC)
	if ok || err != nil {
		return h, err
	}
	unlock, err := s.LockID(macKeyID)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if h, ok, err = s.LookUp(macKeyName, s.checkMAC); ok || err != nil { // another caller may have generated it
		return h, err
	}
	h, err = s.GenerateKey(p11.CKM_GENERIC_SECRET_KEY_GEN, s.macKeyTemplate(true))
	if err != nil {
		return 0, err
	}
	err = s.checkMAC(h)
	if err == nil {
		err = s.checkHardened(h, s.can.hardenedMAC, macMechanisms)
	}
	if err != nil {
		_ = s.DestroyObject(h)
		return 0, err
	}
	s.Remember(macKeyName, h)
	return h, nil
}

func (s *session) macKeyTemplate(tokenObject bool) []*p11.Attribute {
	return append(macTemplate(tokenObject), s.can.hardenedMAC.attributes(macMechanisms)...)
}

// checkMAC rejects a key that can leave the token.
func (s *session) checkMAC(h p11.ObjectHandle) error {
	values, err := s.GetAttributes(h, p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE)
	if err != nil {
		return err
	}
	if !isTrue(values[0]) || !isFalse(values[1]) {
		return hsm.Errorf(hsm.Internal, "the token's MAC key for import tokens is not sensitive and non-extractable, so Keyconvoy does not use it: find out who replaced it, and delete it")
	}
	return nil
}
