//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// GenerateDataKey implements hsm.Module. A data key of a length that the token generates and wraps never leaves it. For other
// lengths, the host encrypts random bytes of the token under a key that the token derived.
func (m *Module) GenerateDataKey(ctx context.Context, req hsm.GenerateRequest) (hsm.DataKey, error) {
	if err := req.Validate(); err != nil {
		return hsm.DataKey{}, err
	}
	inside := m.can.wrapsInside(req.Length)
	if !inside && !m.cfg.allows(hsm.CustodyHost) {
		return hsm.DataKey{}, hsm.Errorf(hsm.NotSupported,
			"the token cannot generate a data key of %d bytes inside, and custody ModuleOnly forbids doing so on the host; %s", req.Length, m.can.describeLengths())
	}
	return result(ctx, m, func(s *session) (hsm.DataKey, error) {
		master, err := s.master(req.KeyVersionID)
		if err != nil {
			return hsm.DataKey{}, err
		}
		if inside {
			return s.generateInside(master, req)
		}
		return s.generateOnHost(master, req)
	})
}

func (s *session) generateInside(master p11.ObjectHandle, req hsm.GenerateRequest) (hsm.DataKey, error) {
	kek, err := s.deriveKEK(master, req.Binding, wrappingKEK)
	if err != nil {
		return hsm.DataKey{}, err
	}
	dataKey, err := s.GenerateSessionKey(p11.CKM_GENERIC_SECRET_KEY_GEN,
		append(wrappable, p11.NewAttribute(p11.CKA_VALUE_LEN, req.Length)))
	if err != nil {
		return hsm.DataKey{}, err
	}
	return s.wrapInside(kek, dataKey, req)
}

// wrapInside wraps a data key in the token under the key-encryption key of a request.
func (s *session) wrapInside(kek, dataKey p11.ObjectHandle, req hsm.GenerateRequest) (hsm.DataKey, error) {
	wrapped, err := s.WrapKey(keyWrap(), kek, dataKey)
	if err != nil {
		return hsm.DataKey{}, err
	}
	scheme, _ := s.can.derivation.schemes()
	blob := ciphertext.Blob{KeyVersionID: req.KeyVersionID, Scheme: scheme, Payload: wrapped}
	if blob.DataKeyLen() != req.Length {
		return hsm.DataKey{}, hsm.Errorf(hsm.Internal, "the token wrapped a data key of another length than requested")
	}
	return hsm.DataKey{Blob: blob, Custody: hsm.CustodyModule}, nil
}

func (s *session) generateOnHost(master p11.ObjectHandle, req hsm.GenerateRequest) (hsm.DataKey, error) {
	dataKey, err := s.GenerateRandom(req.Length)
	if err != nil {
		return hsm.DataKey{}, err
	}
	defer dataKey.Wipe()
	if len(dataKey) != req.Length {
		return hsm.DataKey{}, hsm.Errorf(hsm.Internal, "the token returned fewer random bytes than requested")
	}
	return s.sealOnHost(master, req, dataKey)
}

// sealOnHost encrypts a data key in the operator's memory, under a key that the token derived.
func (s *session) sealOnHost(master p11.ObjectHandle, req hsm.GenerateRequest, dataKey redact.Bytes) (hsm.DataKey, error) {
	_, scheme := s.can.derivation.schemes()
	key, err := s.deriveOnHost(master, scheme, req.Binding)
	if err != nil {
		return hsm.DataKey{}, err
	}
	defer key.Wipe()
	blob, err := ciphertext.SealWithKey(rand.Reader, scheme, req.KeyVersionID, key, req.Binding, dataKey)
	if err != nil {
		return hsm.DataKey{}, hsm.Wrap(hsm.Internal, err, "")
	}
	return hsm.DataKey{Blob: blob, Custody: hsm.CustodyHost}, nil
}

// VerifyDataKey implements hsm.Module.
func (m *Module) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	req.Blob.Payload = bytes.Clone(req.Blob.Payload)
	if err := m.checkReadable(req.Blob); err != nil {
		return err
	}
	return m.do(ctx, func(s *session) error { return s.verify(req) })
}

// checkReadable rejects blobs that this module cannot open, valid or not.
func (m *Module) checkReadable(blob ciphertext.Blob) error {
	length, err := dataKeyLen(blob)
	inside, _ := m.can.derivation.schemes()
	switch {
	case !slices.Contains(ciphertext.Schemes(), blob.Scheme):
		return nil // invalid
	case !m.can.derivation.reads(blob.Scheme):
		return hsm.Errorf(hsm.NotSupported, "master keys in this token are for %s, which opens no blob of scheme %s", m.can.derivation, blob.Scheme)
	case m.cfg.allows(hsm.CustodyHost):
		return nil
	case blob.Scheme != inside, err == nil && !m.can.opensInside(blob, length):
		return hsm.Errorf(hsm.NotSupported, "this data key can be decrypted on the host only, which custody ModuleOnly forbids; %s", m.can.describeLengths())
	}
	return nil
}

// verify opens a blob, inside the token if possible.
func (s *session) verify(req hsm.OpenRequest) error {
	master, err := s.master(req.Blob.KeyVersionID)
	if err != nil {
		return err
	}
	length, err := dataKeyLen(req.Blob)
	if err != nil {
		return err
	}
	if s.can.opensInside(req.Blob, length) {
		_, err = s.openInside(master, req, length, opened)
		return err
	}
	dataKey, err := s.openOnHost(master, req, length)
	dataKey.Wipe()
	return err
}

// dataKeyLen returns the length of the data key in a blob without opening it. It rejects a length that no data key has: some
// tokens accept a payload of any length and pad the key with zeros.
func dataKeyLen(blob ciphertext.Blob) (int, error) {
	length := blob.DataKeyLen()
	if blob.Scheme == ciphertext.DirectGCM || length < 1 || length > hsm.MaxDataKeyLen {
		return 0, hsm.ErrInvalidBlob
	}
	return length, nil
}

// openInside unwraps the data key into a session object.
func (s *session) openInside(master p11.ObjectHandle, req hsm.OpenRequest, length int, template []*p11.Attribute) (p11.ObjectHandle, error) {
	kek, err := s.deriveKEK(master, req.Binding, unwrappingKEK)
	if err != nil {
		return 0, err
	}
	h, err := s.UnwrapSessionKey(keyWrap(), kek, req.Blob.Payload, s.can.withValueLen(template, length))
	return h, token.BlameInput(hsm.ErrInvalidBlob, err)
}

// openOnHost opens a blob into the operator's memory. The caller wipes the result.
func (s *session) openOnHost(master p11.ObjectHandle, req hsm.OpenRequest, length int) (redact.Bytes, error) {
	if s.can.opensInside(req.Blob, length) {
		// The token opens the blob, so that the host sees only this data key. Its key-encryption key would open all others of
		// the same EncryptionContext, too.
		h, err := s.openInside(master, req, length, readableUnwrapped())
		if err != nil {
			return nil, err
		}
		return s.GetValue(h, length)
	}
	key, err := s.deriveOnHost(master, req.Blob.Scheme, req.Binding)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	dataKey, err := ciphertext.OpenWithKey(req.Blob, key, req.Binding)
	if err != nil {
		return nil, hsm.ErrInvalidBlob
	}
	return dataKey, nil
}

// ReencryptDataKey implements hsm.Module. A data key that the token unwraps and wraps again never leaves it.
func (m *Module) ReencryptDataKey(ctx context.Context, req hsm.ReencryptRequest) (hsm.DataKey, error) {
	req.Blob.Payload = bytes.Clone(req.Blob.Payload)
	if err := m.checkReadable(req.Blob); err != nil {
		return hsm.DataKey{}, err
	}
	// An invalid blob is reported only after its master key was found.
	length, err := dataKeyLen(req.Blob)
	inside := err == nil && m.can.reencrypts && m.can.opensInside(req.Blob, length)
	if err == nil && !inside && !m.cfg.allows(hsm.CustodyHost) {
		return hsm.DataKey{}, hsm.Errorf(hsm.NotSupported,
			"the token can re-encrypt this data key only on the host, which custody ModuleOnly forbids")
	}
	return result(ctx, m, func(s *session) (hsm.DataKey, error) { return s.reencrypt(req, inside) })
}

func (s *session) reencrypt(req hsm.ReencryptRequest, inside bool) (hsm.DataKey, error) {
	from, err := s.master(req.Blob.KeyVersionID)
	if err != nil {
		return hsm.DataKey{}, err
	}
	to, err := s.master(req.NewKeyVersionID)
	if err != nil {
		return hsm.DataKey{}, err
	}
	length, err := dataKeyLen(req.Blob)
	if err != nil {
		return hsm.DataKey{}, err
	}
	under := hsm.GenerateRequest{KeyVersionID: req.NewKeyVersionID, Length: length, Binding: req.NewBinding}
	if inside {
		return s.reencryptInside(from, to, req.OpenRequest, under)
	}
	dataKey, err := s.openOnHost(from, req.OpenRequest, length)
	if err != nil {
		return hsm.DataKey{}, err
	}
	defer dataKey.Wipe()
	return s.sealOnHost(to, under, dataKey)
}

// reencryptInside unwraps a data key and wraps it under the key-encryption key of another master key, inside the token.
func (s *session) reencryptInside(from, to p11.ObjectHandle, open hsm.OpenRequest, under hsm.GenerateRequest) (hsm.DataKey, error) {
	dataKey, err := s.openInside(from, open, under.Length, wrappable)
	if err != nil {
		return hsm.DataKey{}, err
	}
	kek, err := s.deriveKEK(to, under.Binding, wrappingKEK)
	if err != nil {
		return hsm.DataKey{}, err
	}
	return s.wrapInside(kek, dataKey, under)
}

// ExportDataKey implements hsm.Module.
func (m *Module) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	recipient, err := req.Validate()
	if err != nil {
		return hsm.ExportedDataKey{}, err
	}
	req.Blob.Payload = bytes.Clone(req.Blob.Payload)
	// An invalid blob is reported only after its master key was found.
	length, _ := dataKeyLen(req.Blob)
	custody := m.exportCustody(req, length)
	if err := m.checkReadable(req.Blob); err != nil {
		return hsm.ExportedDataKey{}, err
	}
	if !m.cfg.allows(custody) {
		return hsm.ExportedDataKey{}, hsm.Errorf(hsm.NotSupported,
			"the token supports %s only if the host encrypts the data key, which custody ModuleOnly forbids; %s",
			req.Algorithm, describeInside(m.can.exports))
	}
	return result(ctx, m, func(s *session) (hsm.ExportedDataKey, error) {
		out, err := s.export(req, recipient, custody)
		return hsm.ExportedDataKey{Ciphertext: out, Custody: custody}, err
	})
}

// exportCustody returns the custody of an export. A length of 0 means an invalid blob.
func (m *Module) exportCustody(req hsm.ExportRequest, length int) hsm.Custody {
	if length > 0 && !m.can.opensInside(req.Blob, length) {
		return hsm.CustodyHost
	}
	if custody, ok := m.can.exports[req.Algorithm]; ok {
		return custody
	}
	return hsm.CustodyHost
}

func (s *session) export(req hsm.ExportRequest, recipient *wrapping.PublicKey, custody hsm.Custody) ([]byte, error) {
	master, err := s.master(req.Blob.KeyVersionID)
	if err != nil {
		return nil, err
	}
	length, err := dataKeyLen(req.Blob)
	if err != nil {
		return nil, err
	}
	if spec := recipient.Spec(); length > wrapping.MaxLen(spec, req.Algorithm) {
		if err := s.verify(req.OpenRequest); err != nil {
			return nil, err // the blob is invalid, so its length means nothing
		}
		return nil, hsm.TooLongFor(spec, req.Algorithm, length)
	}
	if custody == hsm.CustodyModule {
		return s.exportInside(master, req, recipient, length)
	}
	dataKey, err := s.openOnHost(master, req.OpenRequest, length)
	if err != nil {
		return nil, err
	}
	defer dataKey.Wipe()
	out, err := wrapping.Wrap(rand.Reader, recipient, req.Algorithm, req.SM2Format, dataKey)
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	return out, nil
}

// exportInside unwraps the data key and wraps it for the recipient inside the token.
func (s *session) exportInside(master p11.ObjectHandle, req hsm.ExportRequest, recipient *wrapping.PublicKey, length int) ([]byte, error) {
	dataKey, err := s.openInside(master, req.OpenRequest, length, wrappable)
	if err != nil {
		return nil, err
	}
	key := recipient.RSA()
	recipientKey, err := s.CreateSessionObject(recipientTemplate(key))
	if err != nil {
		return nil, err
	}
	out, err := s.WrapKey(oaep(req.Algorithm), recipientKey, dataKey)
	if err != nil {
		return nil, err
	}
	if len(out) != key.Size() {
		return nil, errors.New("the wrapped data key has another length than the modulus")
	}
	return out, nil
}
