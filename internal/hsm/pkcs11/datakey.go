//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// GenerateDataKey implements hsm.Module. What the token can make and wrap never leaves it; other
// lengths are random bytes of the token, encrypted on the host under a key that it derived.
func (m *Module) GenerateDataKey(ctx context.Context, req hsm.GenerateRequest) (hsm.DataKey, error) {
	if req.Length < 1 || req.Length > hsm.MaxDataKeyLen {
		return hsm.DataKey{}, hsm.Errorf(hsm.NotSupported, "a data key has 1 to %d bytes", hsm.MaxDataKeyLen)
	}
	inside := m.can.wraps(req.Length)
	if !inside && !m.allows(hsm.CustodyHost) {
		return hsm.DataKey{}, hsm.Errorf(hsm.NotSupported,
			"a data key of %d bytes cannot be made inside the token, and custody ModuleOnly forbids to make it on the host; %s", req.Length, m.can.lengthsInside())
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
	dataKey, err := s.generateTemp(p11.CKM_GENERIC_SECRET_KEY_GEN,
		append(wrappable, p11.NewAttribute(p11.CKA_VALUE_LEN, req.Length)))
	if err != nil {
		return hsm.DataKey{}, err
	}
	wrapped, err := s.wrap(keyWrap(), kek, dataKey)
	if err != nil {
		return hsm.DataKey{}, err
	}
	blob := ciphertext.Blob{KeyVersionID: req.KeyVersionID, Scheme: ciphertext.DerivedKeyWrap, Payload: wrapped}
	if blob.DataKeyLen() != req.Length {
		return hsm.DataKey{}, hsm.Errorf(hsm.Internal, "the token made a data key of another length than asked")
	}
	return hsm.DataKey{Blob: blob, Custody: hsm.CustodyModule}, nil
}

func (s *session) generateOnHost(master p11.ObjectHandle, req hsm.GenerateRequest) (hsm.DataKey, error) {
	dataKey, err := s.random(req.Length)
	if err != nil {
		return hsm.DataKey{}, err
	}
	defer dataKey.Wipe()
	if len(dataKey) != req.Length {
		return hsm.DataKey{}, hsm.Errorf(hsm.Internal, "the token gave fewer random bytes than asked")
	}
	key, err := s.deriveOnHost(master, ciphertext.DerivedGCM, req.Binding)
	if err != nil {
		return hsm.DataKey{}, err
	}
	defer key.Wipe()
	blob, err := ciphertext.SealWithKey(rand.Reader, ciphertext.DerivedGCM, req.KeyVersionID, key, req.Binding, dataKey)
	if err != nil {
		return hsm.DataKey{}, hsm.Wrap(hsm.Internal, err, "")
	}
	return hsm.DataKey{Blob: blob, Custody: hsm.CustodyHost}, nil
}

// deriveKEK derives the key-encryption key of a binding inside the token: wrappingKEK or unwrappingKEK.
func (s *session) deriveKEK(master p11.ObjectHandle, binding ciphertext.Binding, template []*p11.Attribute) (p11.ObjectHandle, error) {
	data := binding.Derivation(ciphertext.DerivedKeyWrap)
	return s.derive(master, data[:], template)
}

// deriveOnHost derives a scheme's key and reads it. The caller wipes it.
func (s *session) deriveOnHost(master p11.ObjectHandle, scheme ciphertext.Scheme, binding ciphertext.Binding) (redact.Bytes, error) {
	data := binding.Derivation(scheme)
	return s.deriveValue(master, data[:])
}

// VerifyDataKey implements hsm.Module.
func (m *Module) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	req.Blob.Payload = bytes.Clone(req.Blob.Payload)
	if err := m.reads(req.Blob); err != nil {
		return err
	}
	return m.operate(ctx, func(s *session) error { return s.verify(req) })
}

// reads refuses blobs that cannot be opened here, in good order or not.
func (m *Module) reads(blob ciphertext.Blob) error {
	length, err := dataKeyLen(blob)
	switch {
	case blob.Scheme == ciphertext.DirectGCM:
		return hsm.Errorf(hsm.NotSupported, "a blob of scheme %s needs a master key that encrypts, and those in a token only derive", blob.Scheme)
	case m.allows(hsm.CustodyHost):
		return nil
	case blob.Scheme == ciphertext.DerivedGCM, err == nil && !m.opensInside(blob, length):
		return hsm.Errorf(hsm.NotSupported, "this data key opens on the host only, which custody ModuleOnly forbids; %s", m.can.lengthsInside())
	}
	return nil
}

// verify opens a blob, inside where that can be.
func (s *session) verify(req hsm.OpenRequest) error {
	master, err := s.master(req.Blob.KeyVersionID)
	if err != nil {
		return err
	}
	length, err := dataKeyLen(req.Blob)
	if err != nil {
		return err
	}
	if s.m.opensInside(req.Blob, length) {
		_, err = s.openInside(master, req, length, opened)
		return err
	}
	dataKey, err := s.openOnHost(master, req, length)
	dataKey.Wipe()
	return err
}

// dataKeyLen is the length of the data key in a blob, which shows without opening it. It refuses
// what no data key gives: some tokens take a payload of any length and pad it with zeros.
func dataKeyLen(blob ciphertext.Blob) (int, error) {
	length := blob.DataKeyLen()
	if blob.Scheme == ciphertext.DirectGCM || length < 1 || length > hsm.MaxDataKeyLen {
		return 0, errInvalidBlob
	}
	return length, nil
}

// opensInside says whether a blob opens without the data key's leaving the token.
func (m *Module) opensInside(blob ciphertext.Blob, length int) bool {
	return blob.Scheme == ciphertext.DerivedKeyWrap && m.can.wraps(length)
}

// openInside unwraps the data key into a session object.
func (s *session) openInside(master p11.ObjectHandle, req hsm.OpenRequest, length int, template []*p11.Attribute) (p11.ObjectHandle, error) {
	kek, err := s.deriveKEK(master, req.Binding, unwrappingKEK)
	if err != nil {
		return 0, err
	}
	h, err := s.unwrapTemp(keyWrap(), kek, req.Blob.Payload, s.m.can.sized(template, length))
	return h, blameInput(errInvalidBlob, err)
}

// openOnHost opens a blob into the operator's memory. The caller wipes the result.
func (s *session) openOnHost(master p11.ObjectHandle, req hsm.OpenRequest, length int) (redact.Bytes, error) {
	if s.m.opensInside(req.Blob, length) {
		// The token opens it, so that no more than this one data key shows: its key-encryption
		// key opens every other one of this context, too.
		h, err := s.openInside(master, req, length, readableUnwrapped())
		if err != nil {
			return nil, err
		}
		return s.value(h, length)
	}
	key, err := s.deriveOnHost(master, req.Blob.Scheme, req.Binding)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	dataKey, err := ciphertext.OpenWithKey(req.Blob, key, req.Binding)
	if err != nil {
		return nil, errInvalidBlob
	}
	return dataKey, nil
}

// ExportDataKey implements hsm.Module.
func (m *Module) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	if err := checkExport(req); err != nil {
		return hsm.ExportedDataKey{}, err
	}
	req.Blob.Payload = bytes.Clone(req.Blob.Payload)
	// A blob that is none is told so only once its master key is found.
	length, _ := dataKeyLen(req.Blob)
	custody := m.exportCustody(req, length)
	if err := m.reads(req.Blob); err != nil {
		return hsm.ExportedDataKey{}, err
	}
	if !m.allows(custody) {
		return hsm.ExportedDataKey{}, hsm.Errorf(hsm.NotSupported,
			"the token offers %s only with the data key encrypted on the host, which custody ModuleOnly forbids; %s",
			req.Algorithm, m.can.inside(m.can.exports))
	}
	return result(ctx, m, func(s *session) (hsm.ExportedDataKey, error) {
		out, err := s.export(req, custody)
		return hsm.ExportedDataKey{Ciphertext: out, Custody: custody}, err
	})
}

// checkExport refuses what no data key could be exported with.
func checkExport(req hsm.ExportRequest) error {
	switch {
	case req.Recipient == nil:
		return hsm.Errorf(hsm.NotSupported, "there is no recipient's public key")
	case req.Algorithm == wrapping.RSAESPKCS1V15:
		return hsm.Errorf(hsm.NotSupported, "%s is for import only: use %s", wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA256)
	case req.Algorithm == wrapping.SM2PKE && req.SM2Format != "" && !req.SM2Format.Valid():
		return hsm.Errorf(hsm.NotSupported, "there is no SM2 ciphertext format %q", printable(string(req.SM2Format)))
	}
	if err := wrapping.CheckFit(req.Recipient.Spec(), req.Algorithm); err != nil {
		return hsm.Errorf(hsm.NotSupported, "%v", err)
	}
	return nil
}

// exportCustody says where the data key will be. A length of 0 stands for a blob that is none.
func (m *Module) exportCustody(req hsm.ExportRequest, length int) hsm.Custody {
	if length > 0 && !m.opensInside(req.Blob, length) {
		return hsm.CustodyHost
	}
	if custody, ok := m.can.exports[req.Algorithm]; ok {
		return custody
	}
	return hsm.CustodyHost
}

func (s *session) export(req hsm.ExportRequest, custody hsm.Custody) ([]byte, error) {
	master, err := s.master(req.Blob.KeyVersionID)
	if err != nil {
		return nil, err
	}
	length, err := dataKeyLen(req.Blob)
	if err != nil {
		return nil, err
	}
	if spec := req.Recipient.Spec(); length > wrapping.MaxLen(spec, req.Algorithm) {
		if err := s.verify(req.OpenRequest); err != nil {
			return nil, err // its length means nothing, then
		}
		return nil, hsm.Errorf(hsm.DataKeyTooLong,
			"the data key has %d bytes, and %s under %s takes %d at the most: make it shorter, or use a longer RSA key or SM2",
			length, req.Algorithm, spec, wrapping.MaxLen(spec, req.Algorithm))
	}
	if custody == hsm.CustodyModule {
		return s.exportInside(master, req, length)
	}
	dataKey, err := s.openOnHost(master, req.OpenRequest, length)
	if err != nil {
		return nil, err
	}
	defer dataKey.Wipe()
	out, err := wrapping.Wrap(rand.Reader, req.Recipient, req.Algorithm, req.SM2Format, dataKey)
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	return out, nil
}

// exportInside unwraps the data key and wraps it for the recipient, both in the token.
func (s *session) exportInside(master p11.ObjectHandle, req hsm.ExportRequest, length int) ([]byte, error) {
	dataKey, err := s.openInside(master, req.OpenRequest, length, wrappable)
	if err != nil {
		return nil, err
	}
	key := req.Recipient.RSA()
	recipient, err := s.createTemp(recipientTemplate(key))
	if err != nil {
		return nil, err
	}
	out, err := s.wrap(oaep(req.Algorithm), recipient, dataKey)
	if err != nil {
		return nil, err
	}
	if len(out) != key.Size() {
		return nil, errors.New("the wrapped data key is not as long as the modulus")
	}
	return out, nil
}

// allows says whether the configured custody permits one that is needed.
func (m *Module) allows(custody hsm.Custody) bool {
	return custody == hsm.CustodyModule || m.cfg.Custody == hsm.CustodyHost
}
