//go:build cgo

package pkcs11

import (
	"context"
	"encoding/binary"
	"errors"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// session is a session while one operation has it. Its methods are the calls into the library, with
// what is the same for every use: which function failed, that the session is not used again after a
// failure (one may be latched in CKR_OPERATION_ACTIVE), and which objects must go at the end.
type session struct {
	m     *Module
	c     cryptoki
	ctx   context.Context
	at    *attachment
	epoch uint64
	h     p11.SessionHandle

	broken bool
	temps  []p11.ObjectHandle // session objects to destroy when the operation ends
	used   []objectName       // whose handles came from the cache
}

// did notes a failure.
func (s *session) did(function string, err error) error {
	if err != nil {
		s.broken = true
	}
	return called(function, err)
}

// temp notes a session object, which goes at the end of the operation.
func (s *session) temp(function string, h p11.ObjectHandle, err error) (p11.ObjectHandle, error) {
	if err == nil {
		s.temps = append(s.temps, h)
	}
	return h, s.did(function, err)
}

// cleanUp destroys the temporary objects. Closing the session would do it too, but sessions live on.
func (s *session) cleanUp() {
	for _, h := range s.temps {
		if s.c.DestroyObject(s.h, h) != nil {
			s.broken = true
		}
	}
	s.temps = nil
}

// change runs a call that adds or destroys an object in the token, while nobody else does or searches.
func (s *session) change(function string, call func() error) error {
	catalogue := s.m.lib.tokens.of(s.at.id)
	if err := catalogue.enterAlone(s.ctx); err != nil {
		return errWaiting(err)
	}
	defer catalogue.leaveAlone()
	return s.did(function, call())
}

// create adds an object to the token.
func (s *session) create(template []*p11.Attribute) (h p11.ObjectHandle, err error) {
	err = s.change("C_CreateObject", func() (err error) {
		h, err = s.c.CreateObject(s.h, template)
		return err
	})
	return h, err
}

func (s *session) createTemp(template []*p11.Attribute) (p11.ObjectHandle, error) {
	h, err := s.c.CreateObject(s.h, template)
	return s.temp("C_CreateObject", h, err)
}

func (s *session) generateTemp(mechanism uint, template []*p11.Attribute) (p11.ObjectHandle, error) {
	h, err := s.c.GenerateKey(s.h, plain(mechanism), template)
	return s.temp("C_GenerateKey", h, err)
}

// generate adds a secret key to the token.
func (s *session) generate(mechanism uint, template []*p11.Attribute) (h p11.ObjectHandle, err error) {
	err = s.change("C_GenerateKey", func() (err error) {
		h, err = s.c.GenerateKey(s.h, plain(mechanism), template)
		return err
	})
	return h, err
}

// generatePair adds a pair to the token.
func (s *session) generatePair(publicTemplate, privateTemplate []*p11.Attribute) (public, private p11.ObjectHandle, err error) {
	err = s.change("C_GenerateKeyPair", func() (err error) {
		public, private, err = s.c.GenerateKeyPair(s.h, plain(p11.CKM_RSA_PKCS_KEY_PAIR_GEN), publicTemplate, privateTemplate)
		return err
	})
	return public, private, err
}

// unwrap adds an unwrapped key to the token.
func (s *session) unwrap(mechanism []*p11.Mechanism, with p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (h p11.ObjectHandle, err error) {
	err = s.change("C_UnwrapKey", func() (err error) {
		h, err = s.c.UnwrapKey(s.h, mechanism, with, wrapped, template)
		return err
	})
	return h, err
}

func (s *session) unwrapTemp(mechanism []*p11.Mechanism, with p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	if len(wrapped) == 0 {
		return 0, p11.Error(p11.CKR_WRAPPED_KEY_LEN_RANGE) // miekg/pkcs11 takes its first byte's address
	}
	h, err := s.c.UnwrapKey(s.h, mechanism, with, wrapped, template)
	return s.temp("C_UnwrapKey", h, err)
}

func (s *session) wrap(mechanism []*p11.Mechanism, with, key p11.ObjectHandle) ([]byte, error) {
	wrapped, err := s.c.WrapKey(s.h, mechanism, with, key)
	return wrapped, s.did("C_WrapKey", err)
}

// derive derives a temporary key by CKM_AES_ECB_ENCRYPT_DATA: its value is the encryption of data.
func (s *session) derive(base p11.ObjectHandle, data []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	mechanism, free := encryptData(data)
	defer free()
	h, err := s.c.DeriveKey(s.h, mechanism, base, template)
	return s.temp("C_DeriveKey", h, err)
}

// deriveValue derives from 16 or 32 bytes and reads the value, which the caller wipes.
func (s *session) deriveValue(base p11.ObjectHandle, data []byte) (redact.Bytes, error) {
	h, err := s.derive(base, data, readable[len(data)])
	if err != nil {
		return nil, err
	}
	return s.value(h, len(data))
}

// value reads a key's value, which the caller wipes, and checks how long it is. miekg/pkcs11 copies it
// once more in C memory, which it frees and does not wipe; the same goes for decryptRaw.
func (s *session) value(h p11.ObjectHandle, length int) (redact.Bytes, error) {
	a, err := s.c.GetAttributeValue(s.h, h, []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, nil)})
	if err != nil {
		return nil, s.did("C_GetAttributeValue", err)
	}
	value := redact.Bytes(a[0].Value)
	if len(value) != length {
		value.Wipe()
		return nil, errors.New("the value read has another length than the key")
	}
	return value, nil
}

// decryptRaw is CKM_RSA_X_509: the plain RSA operation. The result has the modulus's length again
// where the module dropped leading zeros; the caller wipes it.
func (s *session) decryptRaw(private p11.ObjectHandle, ciphertext []byte) (redact.Bytes, error) {
	if err := s.c.DecryptInit(s.h, plain(p11.CKM_RSA_X_509), private); err != nil {
		return nil, s.did("C_DecryptInit", err)
	}
	out, err := s.c.Decrypt(s.h, ciphertext)
	if err != nil {
		return nil, s.did("C_Decrypt", err)
	}
	if len(out) >= len(ciphertext) {
		return out, nil
	}
	defer clear(out)
	padded := make(redact.Bytes, len(ciphertext))
	copy(padded[len(ciphertext)-len(out):], out)
	return padded, nil
}

func (s *session) sign(mechanism uint, key p11.ObjectHandle, message []byte) ([]byte, error) {
	if err := s.c.SignInit(s.h, plain(mechanism), key); err != nil {
		return nil, s.did("C_SignInit", err)
	}
	tag, err := s.c.Sign(s.h, message)
	return tag, s.did("C_Sign", err)
}

func (s *session) random(n int) (redact.Bytes, error) {
	b, err := s.c.GenerateRandom(s.h, n)
	return b, s.did("C_GenerateRandom", err)
}

// destroy destroys an object in the token.
func (s *session) destroy(h p11.ObjectHandle) error {
	return s.change("C_DestroyObject", func() error { return s.c.DestroyObject(s.h, h) })
}

// find returns every object that matches.
func (s *session) find(template []*p11.Attribute) (handles []p11.ObjectHandle, err error) {
	const atOnce = 64
	catalogue := s.m.lib.tokens.of(s.at.id)
	if err := catalogue.enter(s.ctx); err != nil {
		return nil, errWaiting(err)
	}
	defer catalogue.leave()
	if err := s.c.FindObjectsInit(s.h, template); err != nil {
		return nil, s.did("C_FindObjectsInit", err)
	}
	defer func() { // also after a failure: the session would stay in the search
		if finalErr := s.c.FindObjectsFinal(s.h); err == nil {
			err = s.did("C_FindObjectsFinal", finalErr)
		}
	}()
	for {
		some, _, err := s.c.FindObjects(s.h, atOnce)
		if err != nil {
			return nil, s.did("C_FindObjects", err)
		}
		handles = append(handles, some...)
		if len(some) == 0 {
			return handles, nil
		}
	}
}

// object returns the handle of a token object, from the cache or by a search, and then only if it
// passes the check. Whoever gets a failure with a cached handle tries again with a fresh search.
func (s *session) object(name objectName, check func(p11.ObjectHandle) error) (h p11.ObjectHandle, ok bool, err error) {
	h, ok, err = s.lookUp(name, check)
	if err == nil && !ok {
		// A token that lost its login or its device shows no private objects either, and a key that
		// is missing is a grave thing to say.
		err = s.health()
	}
	return h, ok, err
}

// lookUp is object without the proof that what the token does not show is missing.
func (s *session) lookUp(name objectName, check func(p11.ObjectHandle) error) (h p11.ObjectHandle, ok bool, err error) {
	if h, ok := s.m.handle(s, name); ok {
		s.used = append(s.used, name)
		return h, true, nil
	}
	handles, err := s.find(name.template())
	if err != nil || len(handles) == 0 {
		return 0, false, err
	}
	if err := check(handles[0]); err != nil {
		return 0, false, err
	}
	s.m.remember(s, name, handles[0])
	s.used = append(s.used, name)
	return handles[0], true, nil
}

// attributes reads attributes, nil for those that the object does not have.
func (s *session) attributes(h p11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*p11.Attribute, len(types))
	for i, t := range types {
		template[i] = p11.NewAttribute(t, nil)
	}
	values := make([][]byte, len(types))
	got, err := s.c.GetAttributeValue(s.h, h, template)
	if err == nil {
		for i, a := range got {
			values[i] = a.Value
		}
		return values, nil
	}
	if !isCode(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE) || len(types) == 1 {
		return nil, s.did("C_GetAttributeValue", err)
	}
	for i, t := range types {
		one, err := s.attributes(h, t)
		if err != nil && !isCode(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE) {
			return nil, err
		}
		if err == nil {
			values[i] = one[0]
		}
	}
	return values, nil
}

// health proves by a real operation that token, login and session work: it makes a private key and
// derives from it twice. Neither C_GetSessionInfo nor C_GenerateRandom would do: tpm2-pkcs11 answers
// the one long after the device is gone, NSS the other in a session that is closed.
func (s *session) health() error {
	key, err := s.generateTemp(p11.CKM_AES_KEY_GEN, append(sessionKey(p11.CKK_AES, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32), p11.NewAttribute(p11.CKA_DERIVE, true)))
	if err != nil {
		return err
	}
	values := make([]redact.Bytes, 2)
	for i := range values {
		block := make([]byte, 16)
		block[0] = byte(i)
		if values[i], err = s.deriveValue(key, block); err != nil {
			return err
		}
	}
	if string(values[0]) == string(values[1]) {
		return p11.Error(p11.CKR_DEVICE_ERROR) // it answers, but not with what was asked
	}
	return nil
}

// ulong reads a CK_ULONG, or 0 where there is none.
func ulong(value []byte) uint64 {
	switch len(value) {
	case 8:
		return binary.NativeEndian.Uint64(value)
	case 4:
		return uint64(binary.NativeEndian.Uint32(value))
	}
	return 0
}
