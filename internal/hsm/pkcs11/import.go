//go:build cgo

package pkcs11

import (
	"bytes"
	"context"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// ImportKey implements hsm.Module. If the token supports it, it unwraps the material inside: first into a session key, whose
// length and fingerprint are measured, then into the master key, which must have the same fingerprint.
func (m *Module) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	if err := req.Validate(); err != nil {
		return hsm.Key{}, err
	}
	custody, err := m.importCustody(req)
	if err != nil {
		return hsm.Key{}, err
	}
	req.EncryptedMaterial = bytes.Clone(req.EncryptedMaterial) // the call may outlast its caller
	return result(ctx, m, func(s *session) (hsm.Key, error) {
		unlock, err := s.LockID(req.KeyVersionID)
		if err != nil {
			return hsm.Key{}, err
		}
		defer unlock()
		return s.importKey(req, custody)
	})
}

// importCustody returns the custody of an import, or why the module cannot import.
func (m *Module) importCustody(req hsm.ImportRequest) (hsm.Custody, error) {
	switch {
	case req.Spec == hsm.SM4:
		return "", hsm.Errorf(hsm.NotSupported, errNoSM, "SM4")
	case req.Algorithm == wrapping.SM2PKE:
		return "", hsm.Errorf(hsm.NotSupported, errNoSM, "SM2")
	case !m.can.specs[req.Spec]:
		return "", hsm.Errorf(hsm.NotSupported, "the token does not support %s keys", req.Spec)
	case req.Algorithm == wrapping.RSAESPKCS1V15 && !m.cfg.AllowPKCS1v15Import:
		return "", hsm.ErrPKCS1v15Off
	}
	custody, ok := m.can.imports[req.Algorithm]
	switch {
	case !ok:
		return "", hsm.Errorf(hsm.NotSupported, "the token cannot unwrap %+.32q; %s", req.Algorithm, describeInside(m.can.imports))
	case !m.cfg.allows(custody):
		return "", hsm.Errorf(hsm.NotSupported,
			"the token supports %s only if the host removes the padding, which custody ModuleOnly forbids; %s", req.Algorithm, describeInside(m.can.imports))
	}
	return custody, nil
}

// importKey imports a key, or returns the existing key if it has the same material.
func (s *session) importKey(req hsm.ImportRequest, custody hsm.Custody) (hsm.Key, error) {
	private, err := s.private(req.WrappingKey)
	if err != nil {
		return hsm.Key{}, err
	}
	// No health check is needed if the key is missing: before importKey creates anything, this session unwraps under the pair,
	// which proves that it has its login and its device.
	existing, exists, err := s.LookUpUnconfirmed(masterName(req.KeyVersionID), s.checkMaster)
	if err != nil {
		return hsm.Key{}, err
	}
	if err := s.checkCiphertextLen(private, req.EncryptedMaterial); err != nil {
		return hsm.Key{}, err
	}
	in := incoming{request: req, private: private}
	defer clear(in.last[:])
	if custody == hsm.CustodyHost {
		if in.material, err = s.unwrapOnHost(req, private); err != nil {
			return hsm.Key{}, err
		}
		defer in.material.Wipe()
	}
	fingerprint, err := s.fingerprintIncoming(&in)
	if err != nil {
		return hsm.Key{}, err
	}
	if req.Fingerprint != nil && *req.Fingerprint != fingerprint {
		return hsm.Key{}, hsm.ErrOtherMaterial
	}
	owner := req.Owner
	if exists {
		owner, err = s.checkSame(in, existing, fingerprint)
	} else {
		err = s.createMaster(in, fingerprint)
	}
	if err != nil {
		return hsm.Key{}, err
	}
	return hsm.Key{KeyVersionID: req.KeyVersionID, Spec: req.Spec, Fingerprint: fingerprint, Owner: owner, Custody: custody}, nil
}

// incoming is the material of an import: still wrapped, or on the host.
type incoming struct {
	request  hsm.ImportRequest
	private  p11.ObjectHandle
	material redact.Bytes // nil if the material is inside the token only
	last     [16]byte     // the fingerprint is the encryption of this block; set by fingerprintIncoming
}

// checkCiphertextLen rejects a ciphertext of another length than the modulus (RFC 8017, section 7.1.2, step 1). Tokens differ in
// how they treat one.
func (s *session) checkCiphertextLen(private p11.ObjectHandle, ciphertext []byte) error {
	values, err := s.GetAttributes(private, p11.CKA_MODULUS)
	if err != nil {
		return err
	}
	if len(ciphertext) != len(bytes.TrimLeft(values[0], "\x00")) {
		return hsm.ErrInvalidMaterial
	}
	return nil
}

// fingerprintIncoming returns the fingerprint of the material, if its length fits the key type.
func (s *session) fingerprintIncoming(in *incoming) (hsm.Fingerprint, error) {
	if in.material == nil {
		return s.inspect(in)
	}
	block, err := hsm.NewCipher(in.request.Spec, in.material)
	if err != nil {
		return hsm.Fingerprint{}, err
	}
	var l [16]byte
	defer clear(l[:])
	block.Encrypt(l[:], l[:])
	in.last = lastBlock(l[:])
	return hsm.FingerprintOf(in.request.Spec, in.material)
}

// inspect is fingerprintIncoming inside the token: it unwraps the material into a session key.
func (s *session) inspect(in *incoming) (hsm.Fingerprint, error) {
	req, private := in.request, in.private
	template := s.can.withValueLen(s.can.materialTemplate(), req.Spec.Len())
	h, err := s.UnwrapSessionKey(unwrapMechanism(req.Algorithm), private, req.EncryptedMaterial, template)
	if err != nil {
		return hsm.Fingerprint{}, s.unwrapError(req, private, err)
	}
	wrongLength := wrongLengthError(req)
	// A token that accepts any length for an AES key, such as SoftHSM, fails here.
	if in.last, err = s.lastBlock(h); err != nil {
		return hsm.Fingerprint{}, token.BlameInput(wrongLength, err)
	}
	fingerprint, err := s.fingerprintOf(h, in.last)
	if err != nil {
		return hsm.Fingerprint{}, token.BlameInput(wrongLength, err)
	}
	length, err := s.keyLen(h)
	if err != nil {
		return hsm.Fingerprint{}, token.BlameInput(wrongLength, err)
	}
	if length != req.Spec.Len() {
		return hsm.Fingerprint{}, wrongLength
	}
	return fingerprint, nil
}

// wrongLengthError returns the error for material of a wrong length. With PKCS #1 v1.5 it is the same as for any other failure,
// because an error that distinguishes valid from invalid padding is an oracle.
func wrongLengthError(req hsm.ImportRequest) *hsm.Error {
	if req.Algorithm == wrapping.RSAESPKCS1V15 {
		return hsm.ErrInvalidMaterial
	}
	return hsm.Errorf(hsm.MaterialLength, "the material must be %d bytes long for %s", req.Spec.Len(), req.Spec)
}

// unwrapError distinguishes material of a wrong length from material that does not unwrap, if the token rejects both alike: as
// a generic secret, material of any length unwraps.
func (s *session) unwrapError(req hsm.ImportRequest, private p11.ObjectHandle, cause error) error {
	if token.ClassOf(cause) == token.InvalidInput && req.Algorithm != wrapping.RSAESPKCS1V15 {
		_, err := s.UnwrapSessionKey(unwrapMechanism(req.Algorithm), private, req.EncryptedMaterial, s.can.anyMaterialTemplate())
		if err == nil {
			return token.BlameInput(wrongLengthError(req), cause)
		}
	}
	return token.BlameInput(hsm.ErrInvalidMaterial, cause)
}

// keyLen returns the length of a key in bytes by wrapping it: RFC 3394 adds 8 bytes. Some tokens pad a key to a multiple of 8
// bytes, so the result is exact only for a key that works as an AES key. If the token does not wrap, it returns CKA_VALUE_LEN.
func (s *session) keyLen(h p11.ObjectHandle) (int, error) {
	if !s.can.measuresByWrapping {
		values, err := s.GetAttributes(h, p11.CKA_VALUE_LEN)
		if err != nil {
			return 0, err
		}
		return int(ulong(values[0])), nil //nolint:gosec // a key's length
	}
	with, err := s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, append(sessionKey(p11.CKK_AES, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_WRAP, true)))
	if err != nil {
		return 0, err
	}
	wrapped, err := s.WrapKey(keyWrap(), with, h)
	return len(wrapped) - 8, err
}

// unwrapOnHost unwraps with an algorithm whose padding the token cannot remove: the token runs the RSA operation, the host
// removes the padding. The caller wipes the result.
func (s *session) unwrapOnHost(req hsm.ImportRequest, private p11.ObjectHandle) (redact.Bytes, error) {
	encoded, err := s.decryptRSA(private, req.EncryptedMaterial)
	if err != nil {
		return nil, token.BlameInput(hsm.ErrInvalidMaterial, err)
	}
	defer encoded.Wipe()
	var material redact.Bytes
	material, err = wrapping.RemoveOAEP(req.Algorithm, encoded)
	if err != nil {
		return nil, hsm.ErrInvalidMaterial
	}
	if err := hsm.CheckMaterialLen(req.Spec, len(material)); err != nil {
		material.Wipe()
		return nil, err
	}
	return material, nil
}

// checkSame rejects material that differs from that of the existing key, and returns that key's owner.
func (s *session) checkSame(in incoming, existing p11.ObjectHandle, fingerprint hsm.Fingerprint) (owner hsm.Owner, err error) {
	_, owner, err = s.describe(existing)
	if err != nil {
		return hsm.Owner{}, err
	}
	err = s.checkMaterial(existing, fingerprint)
	if err != nil && owner == in.request.Owner {
		err = s.destroyUnfinished(suspect{
			name:   masterName(in.request.KeyVersionID),
			use:    func(h p11.ObjectHandle) error { return s.checkMaterial(h, fingerprint) },
			likeIt: func() (p11.ObjectHandle, error) { return s.storeSessionMaster(in) },
		}, err)
	}
	return owner, err
}

// checkMaterial rejects a key with another fingerprint.
func (s *session) checkMaterial(h p11.ObjectHandle, fingerprint hsm.Fingerprint) error {
	have, err := s.fingerprint(h)
	if err == nil && have != fingerprint {
		err = hsm.ErrOtherMaterial
	}
	return err
}

// createMaster creates the master key in the token. It destroys the key again if its material or protection is not as
// requested.
func (s *session) createMaster(in incoming, fingerprint hsm.Fingerprint) error {
	h, err := s.storeMaster(in, true)
	if err != nil {
		return err
	}
	err = s.checkCreated(h, in.last, fingerprint)
	if err == nil {
		err = s.checkHardened(h, s.can.hardened, s.can.derivation.mechanisms())
	}
	if err != nil {
		_ = s.DestroyObject(h)
		return err
	}
	s.Remember(masterName(in.request.KeyVersionID), h)
	return nil
}

func (s *session) storeMaster(in incoming, token bool) (p11.ObjectHandle, error) {
	req := in.request
	return s.storeKey(in, s.can.derivation.masterTemplate(req.KeyVersionID, req.Spec, req.Owner, token, s.can.hardened))
}

// storeSessionMaster is storeMaster for a session object, which shows that the key can be created again.
func (s *session) storeSessionMaster(in incoming) (p11.ObjectHandle, error) {
	h, err := s.storeMaster(in, false)
	if err == nil {
		s.DestroyOnRelease(h)
		err = s.checkMaster(h)
	}
	return h, err
}

// storeKey creates a key from material: by its value if that is on the host, otherwise by unwrapping it.
func (s *session) storeKey(in incoming, template []*p11.Attribute) (p11.ObjectHandle, error) {
	req := in.request
	if in.material != nil {
		return s.CreateObject(append(template, p11.NewAttribute(p11.CKA_VALUE, []byte(in.material))))
	}
	return s.UnwrapKey(unwrapMechanism(req.Algorithm), in.private, req.EncryptedMaterial, s.can.withValueLen(template, req.Spec.Len()))
}

// checkCreated rejects a new key that is not protected, or whose fingerprint differs from that of the inspected material.
func (s *session) checkCreated(h p11.ObjectHandle, last [16]byte, fingerprint hsm.Fingerprint) error {
	if err := s.checkMaster(h); err != nil {
		return err
	}
	made, err := s.fingerprintOf(h, last)
	if err == nil && made != fingerprint {
		err = hsm.Errorf(hsm.Internal, "the token created a key whose fingerprint differs from that of the material")
	}
	return err
}

// decryptRSA runs the RSA operation without padding (CKM_RSA_X_509). The result always has the length of the modulus; some
// modules drop leading zeros. The caller wipes it.
func (s *session) decryptRSA(private p11.ObjectHandle, ciphertext []byte) (redact.Bytes, error) {
	out, err := s.Decrypt(p11.CKM_RSA_X_509, private, ciphertext)
	if err != nil || len(out) >= len(ciphertext) {
		return out, err
	}
	defer out.Wipe()
	padded := make(redact.Bytes, len(ciphertext))
	copy(padded[len(ciphertext)-len(out):], out)
	return padded, nil
}
