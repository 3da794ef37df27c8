//go:build cgo

package pkcs11

import (
	"errors"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// SoftHSM stores the attributes of a new key before its value. A process that ends in between leaves a key without a value in the
// token, under the identifier of the key that was to be created. Every operation with it fails, so the next attempt replaces it.

// unfinished returns whether the generation of a key did not end, or the cause if it did: the error of an operation with the key. It
// did not end if the operation succeeds with a fresh key of the same kind, and if the token says that it generated the fresh key but
// not the other one (CKA_LOCAL).
func (s *session) unfinished(h p11.ObjectHandle, cause error, generate func() (p11.ObjectHandle, error), operate func(p11.ObjectHandle) error) error {
	if !rejected(cause) {
		return cause
	}
	fresh, err := generate()
	if err != nil || operate(fresh) != nil {
		return cause
	}
	for key, generated := range map[p11.ObjectHandle]bool{h: false, fresh: true} {
		values, err := s.GetAttributes(key, p11.CKA_LOCAL)
		if err != nil {
			return err
		}
		if generated && !isTrue(values[0]) || !generated && !isFalse(values[0]) {
			return cause
		}
	}
	return nil
}

// rejected returns whether the token understood a call and refused it.
func rejected(err error) bool {
	var code p11.Error
	class := token.ClassOf(err)
	return errors.As(err, &code) && (class == token.Rejected || class == token.InvalidInput)
}

// replaceUnfinishedMaster replaces a master key whose generation did not end, and returns the fingerprint of the new one. Otherwise it
// returns the cause.
func (s *session) replaceUnfinishedMaster(h p11.ObjectHandle, req hsm.GenerateKeyRequest, cause error) (hsm.Fingerprint, error) {
	generate := func() (p11.ObjectHandle, error) {
		template := s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, req.Owner, false, s.can.hardenedGenerated)
		return s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, generatedTemplate(req.Spec, template))
	}
	operate := func(key p11.ObjectHandle) error { _, err := s.fingerprint(key); return err }
	if err := s.unfinished(h, cause, generate, operate); err != nil {
		return hsm.Fingerprint{}, err
	}
	if err := s.DestroyObject(h); err != nil {
		return hsm.Fingerprint{}, err
	}
	made, err := s.generateMaster(req)
	if err != nil {
		return hsm.Fingerprint{}, err
	}
	return s.fingerprint(made)
}

// replaceUnfinishedMAC is replaceUnfinishedMaster for the MAC key, whose replacement it returns.
func (s *session) replaceUnfinishedMAC(h p11.ObjectHandle, cause error) (p11.ObjectHandle, error) {
	generate := func() (p11.ObjectHandle, error) {
		return s.GenerateSessionKey(p11.CKM_GENERIC_SECRET_KEY_GEN, append(macTemplate(false), s.can.hardenedMAC.attributes(macMechanisms)...))
	}
	operate := func(key p11.ObjectHandle) error { _, err := s.hmac(key, []byte("test")); return err }
	if err := s.unfinished(h, cause, generate, operate); err != nil {
		return 0, err
	}
	unlock, err := s.LockID(macKeyID)
	if err != nil {
		return 0, err
	}
	defer unlock()
	s.Forget(macKeyName)
	if err := s.DestroyObject(h); err != nil && !token.HasCode(err, p11.CKR_OBJECT_HANDLE_INVALID) { // another caller has replaced it
		return 0, err
	}
	return s.findOrGenerateMAC()
}

// replaceUnfinishedImport replaces a master key whose import did not end, where the existing key fails although the same operation
// succeeded with the incoming material. The key is of the same owner. So nothing is lost: either no import of this version ended, or
// the material has the fingerprint of the one that did, which the caller checked.
func (s *session) replaceUnfinishedImport(in incoming, existing p11.ObjectHandle, fingerprint hsm.Fingerprint, cause error) (hsm.Owner, error) {
	if !rejected(cause) {
		return hsm.Owner{}, cause
	}
	if _, owner, err := s.describe(existing); err != nil || owner != in.request.Owner {
		return hsm.Owner{}, cause
	}
	if err := s.destroyAll(masterName(in.request.KeyVersionID)); err != nil {
		return hsm.Owner{}, err
	}
	return in.request.Owner, s.createMaster(in, fingerprint)
}
