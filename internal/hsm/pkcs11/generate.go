//go:build cgo

package pkcs11

import (
	"context"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// errTwoKeys means that two processes generated a key at the same time, and that one of them ended before it destroyed its own.
// Which one made data keys cannot be found out here.
var errTwoKeys = hsm.Errorf(hsm.Internal,
	"the token has several master keys with the same identifier: find out which one opens the data keys, and destroy the others")

// GenerateKey implements hsm.Module with C_GenerateKey.
func (m *Module) GenerateKey(ctx context.Context, req hsm.GenerateKeyRequest) (hsm.Key, error) {
	if err := req.Validate(); err != nil {
		return hsm.Key{}, err
	}
	switch {
	case req.Spec == hsm.SM4:
		return hsm.Key{}, hsm.Errorf(hsm.NotSupported, errNoSM, "SM4")
	case !m.can.generates[req.Spec]:
		return hsm.Key{}, hsm.Errorf(hsm.NotSupported, "the token cannot generate %s master keys", req.Spec)
	}
	return result(ctx, m, func(s *session) (hsm.Key, error) {
		unlock, err := s.LockID(req.KeyVersionID)
		if err != nil {
			return hsm.Key{}, err
		}
		defer unlock()
		return s.findOrGenerate(req)
	})
}

// findOrGenerate returns the master key of a request, which it generates if the token has none.
func (s *session) findOrGenerate(req hsm.GenerateKeyRequest) (hsm.Key, error) {
	handles, err := s.FindObjects(masterName(req.KeyVersionID).Template())
	if err != nil {
		return hsm.Key{}, err
	}
	var h p11.ObjectHandle
	switch len(handles) {
	case 0:
		if err = s.HealthCheck(); err == nil { // a token that lost its login hides its keys
			h, err = s.generateMaster(req)
		}
	case 1:
		h = handles[0]
		err = s.checkSameRequest(h, req)
	default:
		err = errTwoKeys
	}
	if err != nil {
		return hsm.Key{}, err
	}
	fingerprint, err := s.fingerprint(h)
	if err != nil {
		return hsm.Key{}, s.destroyUnfinished(suspect{
			name: masterName(req.KeyVersionID), use: s.tryFingerprint, generated: true,
			likeIt: func() (p11.ObjectHandle, error) {
				return s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, s.generatedMaster(req, false))
			},
		}, err)
	}
	return hsm.Key{KeyVersionID: req.KeyVersionID, Spec: req.Spec, Fingerprint: fingerprint, Owner: req.Owner, Custody: hsm.CustodyModule}, nil
}

// checkSameRequest rejects a key that was not generated for the request: anyone may have imported it.
func (s *session) checkSameRequest(h p11.ObjectHandle, req hsm.GenerateKeyRequest) error {
	if err := s.checkMaster(h); err != nil {
		return err
	}
	spec, owner, err := s.describe(h)
	if err == nil && (spec != req.Spec || owner != req.Owner) {
		err = hsm.ErrOtherKey
	}
	return err
}

// generateMaster generates a master key in the token. It destroys the key again if its protection is not as requested.
func (s *session) generateMaster(req hsm.GenerateKeyRequest) (p11.ObjectHandle, error) {
	h, err := s.GenerateKey(p11.CKM_AES_KEY_GEN, s.generatedMaster(req, true))
	if err != nil {
		return 0, err
	}
	if err = s.checkGenerated(h); err == nil {
		err = s.checkLabel(h, req)
	}
	if err == nil {
		err = s.checkAlone(h, req)
	}
	if err != nil {
		_ = s.DestroyObject(h)
		return 0, err
	}
	return h, nil
}

// checkLabel rejects a new key whose label the token cut off: the next call would take it for another key.
func (s *session) checkLabel(h p11.ObjectHandle, req hsm.GenerateKeyRequest) error {
	_, owner, err := s.describe(h)
	if err == nil && owner != req.Owner {
		err = hsm.Errorf(hsm.NotSupported, "the token does not keep the label of a key, without which Keyconvoy would not find a generated key again")
	}
	return err
}

// generatedMaster is the template of the master key of a request.
func (s *session) generatedMaster(req hsm.GenerateKeyRequest, tokenObject bool) []*p11.Attribute {
	return generatedTemplate(req.Spec, s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, req.Owner, tokenObject, s.can.hardenedGenerated))
}

// generatedTemplate is the template of a master key that the token generates. The hardening must be last in it.
func generatedTemplate(spec hsm.KeySpec, master []*p11.Attribute) []*p11.Attribute {
	return append([]*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE_LEN, spec.Len())}, master...)
}

// checkGenerated rejects a new key that is less protected than requested.
func (s *session) checkGenerated(h p11.ObjectHandle) error {
	if err := s.checkMaster(h); err != nil {
		return err
	}
	return s.checkHardened(h, s.can.hardenedGenerated, s.can.derivation.mechanisms())
}

// checkAlone rejects a new key if another process generated one at the same time. LockID is for this process only, and unlike
// imported keys the two are different. Each process searches after its own key is in the token. So of two processes at least
// one sees both keys and destroys its own, and no process returns a key that does not remain.
func (s *session) checkAlone(h p11.ObjectHandle, req hsm.GenerateKeyRequest) error {
	handles, err := s.FindObjects(masterName(req.KeyVersionID).Template())
	if err == nil && (len(handles) != 1 || handles[0] != h) {
		err = hsm.Errorf(hsm.Unavailable, "another process generated the same key at the same time")
	}
	return err
}
