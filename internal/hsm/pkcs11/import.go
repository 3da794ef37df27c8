//go:build cgo

package pkcs11

import (
	"bytes"
	"context"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// ImportKey implements hsm.Module. Where the token can do it, material is unwrapped inside: first into
// a copy that lives as long as the call, on which length and fingerprint are taken, then into the
// master key, which must show the same.
func (m *Module) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	custody, err := m.importCustody(req)
	if err != nil {
		return hsm.Key{}, err
	}
	req.EncryptedMaterial = bytes.Clone(req.EncryptedMaterial) // the caller may be gone before the call is
	return result(ctx, m, func(s *session) (hsm.Key, error) {
		unlock, err := s.lockName(req.KeyVersionID)
		if err != nil {
			return hsm.Key{}, err
		}
		defer unlock()
		return s.importKey(req, custody)
	})
}

// importCustody says where the material will be, or why it cannot be brought in.
func (m *Module) importCustody(req hsm.ImportRequest) (hsm.Custody, error) {
	if err := hsm.CheckOwner(req.Owner); err != nil {
		return "", err
	}
	switch {
	case req.Spec == hsm.SM4:
		return "", hsm.Errorf(hsm.NotSupported, errNoSM, "SM4")
	case req.Algorithm == wrapping.SM2PKE:
		return "", hsm.Errorf(hsm.NotSupported, errNoSM, "SM2")
	case req.Spec.Len() == 0:
		return "", hsm.CheckMaterialLen(req.Spec, 0)
	case !m.can.specs[req.Spec]:
		return "", hsm.Errorf(hsm.NotSupported, "the token cannot work with %s keys", req.Spec)
	case req.Algorithm == wrapping.RSAESPKCS1V15 && !m.cfg.AllowPKCS1v15Import:
		return "", hsm.Errorf(hsm.NotSupported,
			"%s is off because it invites padding-oracle attacks: use %s, or let the administrator of the key store allow it",
			wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA256)
	}
	custody, ok := m.can.imports[req.Algorithm]
	switch {
	case !ok:
		return "", hsm.Errorf(hsm.NotSupported, "the token cannot unwrap %s; %s", printable(string(req.Algorithm)), m.can.inside(m.can.imports))
	case !m.allows(custody):
		return "", hsm.Errorf(hsm.NotSupported,
			"the token offers %s only with the padding removed on the host, which custody ModuleOnly forbids; %s", req.Algorithm, m.can.inside(m.can.imports))
	}
	return custody, nil
}

// importKey imports, or finds the key there with the same material.
func (s *session) importKey(req hsm.ImportRequest, custody hsm.Custody) (hsm.Key, error) {
	private, err := s.private(req.WrappingKey)
	if err != nil {
		return hsm.Key{}, err
	}
	// Where it shows none, nothing is made before this session has unwrapped under the pair: that is the
	// proof that it has its login and its device.
	existing, exists, err := s.lookUp(masterName(req.KeyVersionID), s.checkMaster)
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
		return hsm.Key{}, errOtherMaterial
	}
	owner := req.Owner
	if exists {
		owner, err = s.checkSame(existing, fingerprint)
	} else {
		err = s.makeMaster(in, fingerprint)
	}
	if err != nil {
		return hsm.Key{}, err
	}
	return hsm.Key{KeyVersionID: req.KeyVersionID, Spec: req.Spec, Fingerprint: fingerprint, Owner: owner, Custody: custody}, nil
}

// incoming is material on its way in: wrapped still, or on the host.
type incoming struct {
	request  hsm.ImportRequest
	private  p11.ObjectHandle
	material redact.Bytes // nil while it is inside
	last     [16]byte     // the block whose encryption the fingerprint is; fingerprintIncoming sets it
}

// checkCiphertextLen refuses what is not as long as the modulus (RFC 8017, section 7.1.2, step 1):
// what a token makes of it would be its own affair.
func (s *session) checkCiphertextLen(private p11.ObjectHandle, ciphertext []byte) error {
	values, err := s.attributes(private, p11.CKA_MODULUS)
	if err != nil {
		return err
	}
	if len(ciphertext) != len(bytes.TrimLeft(values[0], "\x00")) {
		return errInvalidMaterial
	}
	return nil
}

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

// inspect unwraps a short-lived copy inside the token and returns its fingerprint, if the material is
// as long as the key type asks.
func (s *session) inspect(in *incoming) (hsm.Fingerprint, error) {
	req, private := in.request, in.private
	template := s.m.can.sized(materialTemplate(p11.CKK_AES), req.Spec.Len())
	h, err := s.unwrapTemp(unwrapMechanism(req.Algorithm), private, req.EncryptedMaterial, template)
	if err != nil {
		return hsm.Fingerprint{}, s.whyNotUnwrapped(req, private, err)
	}
	wrongLength := wrongLengthOf(req)
	// A token that takes any length for an AES key, as SoftHSM does, finds out here.
	if in.last, err = s.lastBlock(h); err != nil {
		return hsm.Fingerprint{}, blameInput(wrongLength, err)
	}
	fingerprint, err := s.encryption(h, in.last)
	if err != nil {
		return hsm.Fingerprint{}, blameInput(wrongLength, err)
	}
	length, err := s.measure(h)
	if err != nil {
		return hsm.Fingerprint{}, blameInput(wrongLength, err)
	}
	if length != req.Spec.Len() {
		return hsm.Fingerprint{}, wrongLength
	}
	return fingerprint, nil
}

// wrongLengthOf is what material of another length fails with. With PKCS #1 v1.5 it says no more than
// any other failure: to tell right padding from wrong is the oracle.
func wrongLengthOf(req hsm.ImportRequest) *hsm.Error {
	if req.Algorithm == wrapping.RSAESPKCS1V15 {
		return errInvalidMaterial
	}
	return hsm.Errorf(hsm.MaterialLength, "the material must be %d bytes long for %s", req.Spec.Len(), req.Spec)
}

// whyNotUnwrapped tells material of a wrong length from material that does not unwrap, where the token
// refuses both at once: as a generic secret, any length will do.
func (s *session) whyNotUnwrapped(req hsm.ImportRequest, private p11.ObjectHandle, cause error) error {
	if classOf(cause) == badInput && req.Algorithm != wrapping.RSAESPKCS1V15 {
		_, err := s.unwrapTemp(unwrapMechanism(req.Algorithm), private, req.EncryptedMaterial, materialTemplate(p11.CKK_GENERIC_SECRET))
		if err == nil {
			return blameInput(wrongLengthOf(req), cause)
		}
	}
	return blameInput(errInvalidMaterial, cause)
}

// measure returns how long a key is: RFC 3394 adds 8 bytes. A length that is no multiple of 8 comes out
// rounded up where a token pads with zeros, so it counts only for a key that works as AES.
func (s *session) measure(h p11.ObjectHandle) (int, error) {
	with, err := s.generateTemp(p11.CKM_AES_KEY_GEN, append(sessionKey(p11.CKK_AES, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_WRAP, true)))
	if err != nil {
		return 0, err
	}
	wrapped, err := s.wrap(keyWrap(), with, h)
	return len(wrapped) - 8, err
}

// unwrapOnHost is for algorithms whose padding the token cannot remove: the token does the RSA
// operation, the host the rest. The caller wipes the result.
func (s *session) unwrapOnHost(req hsm.ImportRequest, private p11.ObjectHandle) (redact.Bytes, error) {
	encoded, err := s.decryptRaw(private, req.EncryptedMaterial)
	if err != nil {
		return nil, blameInput(errInvalidMaterial, err)
	}
	defer encoded.Wipe()
	var material redact.Bytes
	material, err = wrapping.RemoveOAEP(req.Algorithm, encoded)
	if err != nil {
		return nil, errInvalidMaterial
	}
	if err := hsm.CheckMaterialLen(req.Spec, len(material)); err != nil {
		material.Wipe()
		return nil, err
	}
	return material, nil
}

// checkSame refuses material other than that of the key that is there, and returns in whose name that
// was made.
func (s *session) checkSame(existing p11.ObjectHandle, fingerprint hsm.Fingerprint) (owner string, err error) {
	there, err := s.fingerprint(existing)
	if err != nil {
		return "", err
	}
	if there != fingerprint {
		return "", errOtherMaterial
	}
	_, owner, err = s.describe(existing)
	return owner, err
}

// makeMaster makes the master key in the token and destroys it again unless it is as asked.
func (s *session) makeMaster(in incoming, fingerprint hsm.Fingerprint) error {
	h, err := s.putMaster(in, true)
	if err != nil {
		return err
	}
	if err := s.checkMade(h, in.last, fingerprint); err != nil {
		_ = s.destroy(h)
		return err
	}
	s.m.remember(s, masterName(in.request.KeyVersionID), h)
	return nil
}

func (s *session) putMaster(in incoming, token bool) (p11.ObjectHandle, error) {
	req := in.request
	template := masterTemplate(req.KeyVersionID, req.Spec, req.Owner, token)
	if in.material != nil {
		return s.create(append(template, p11.NewAttribute(p11.CKA_VALUE, []byte(in.material))))
	}
	return s.unwrap(unwrapMechanism(req.Algorithm), in.private, req.EncryptedMaterial, s.m.can.sized(template, req.Spec.Len()))
}

// checkMade says whether the new key is protected as asked, and is the material that was looked at: one
// block that it encrypts to the fingerprint, too, tells.
func (s *session) checkMade(h p11.ObjectHandle, last [16]byte, fingerprint hsm.Fingerprint) error {
	if err := s.checkMaster(h); err != nil {
		return err
	}
	made, err := s.encryption(h, last)
	if err == nil && made != fingerprint {
		err = hsm.Errorf(hsm.Internal, "the token made another key of the material than it showed before")
	}
	return err
}
