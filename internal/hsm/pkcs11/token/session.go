//go:build cgo

package token

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Session is a PKCS#11 session while one operation uses it. Its methods call the function of the same name. They name that
// function in errors, and close the session after a failure instead of returning it to the pool, because an
// operation may stay active in it (CKR_OPERATION_ACTIVE). A Session is not safe for concurrent use and
// must not be used after the operation.
//
// CreateObject, GenerateKey, GenerateKeyPair, UnwrapKey and DestroyObject are for token objects: one call at a time changes a token.
// If their template makes a session object nevertheless, DestroyOnRelease destroys it when the operation ends. Methods with
// SessionObject or SessionKey in their name are for session objects (CKA_TOKEN is false) and do that themselves.
type Session struct {
	token  *Token
	c      Cryptoki
	ctx    context.Context // of the operation
	conn   *connection
	epoch  uint64 // of the connection when the session was acquired
	handle p11.SessionHandle

	failed    bool
	temporary []p11.ObjectHandle // session objects to destroy when the operation ends
	used      []ObjectName       // objects whose handles came from the cache
}

// open opens a new session.
func (s *Session) open() (err error) {
	s.handle, err = s.c.OpenSession(s.conn.slotID, s.token.cfg.sessionFlags())
	return callError("C_OpenSession", err)
}

// InNewSession runs op in a new session, which is closed afterwards. It returns an error of C_OpenSession or of op.
func (s *Session) InNewSession(op func(*Session) error) error {
	fresh := &Session{token: s.token, c: s.c, ctx: s.ctx, conn: s.conn, epoch: s.epoch}
	if err := fresh.open(); err != nil {
		return err
	}
	defer func() {
		fresh.destroyTemporary()
		_ = fresh.c.CloseSession(fresh.handle)
	}()
	return op(fresh)
}

// check adds the name of a function to its error, and records that the session failed.
func (s *Session) check(function string, err error) error {
	if err != nil {
		s.failed = true
	}
	return callError(function, err)
}

// addTemporary is check for a call that makes a session object.
func (s *Session) addTemporary(function string, h p11.ObjectHandle, err error) (p11.ObjectHandle, error) {
	if err == nil {
		s.DestroyOnRelease(h)
	}
	return h, s.check(function, err)
}

// DestroyOnRelease has session objects destroyed when the operation ends.
func (s *Session) DestroyOnRelease(handles ...p11.ObjectHandle) {
	s.temporary = append(s.temporary, handles...)
}

// destroyTemporary destroys the session objects. C_CloseSession would, too, but sessions return to the pool.
func (s *Session) destroyTemporary() {
	for _, h := range s.temporary {
		// A library that returns a wrong handle must not make a key that is in use disappear.
		if s.isTokenObject(h) || s.c.DestroyObject(s.handle, h) != nil {
			s.failed = true
		}
	}
	s.temporary = nil
}

// change runs a call that adds or destroys a token object, while no other operation changes or searches the token.
func (s *Session) change(function string, call func() error) error {
	objects := s.token.lib.objects.get(s.conn.identity, newMutex)
	if err := objects.lock(s.ctx); err != nil {
		return timeoutError(err)
	}
	defer objects.unlock()
	return s.check(function, call())
}

// Now returns the time of the libraries' clock.
func (s *Session) Now() time.Time { return s.token.libraries.now() }

// LockID serializes, in this process, the callers that create or destroy the token's objects with that CKA_ID.
func (s *Session) LockID(id uuid.UUID) (unlock func(), err error) {
	unlock, err = s.token.lib.names.Lock(s.ctx, s.conn.serial+"\x00"+s.conn.label+"\x00"+string(id[:]))
	if err != nil {
		return nil, timeoutError(err)
	}
	return unlock, nil
}

// CreateObject adds an object to the token.
func (s *Session) CreateObject(template []*p11.Attribute) (h p11.ObjectHandle, err error) {
	err = s.change("C_CreateObject", func() (err error) {
		h, err = s.c.CreateObject(s.handle, template)
		return err
	})
	return h, err
}

// CreateSessionObject creates an object that is destroyed when the operation ends.
func (s *Session) CreateSessionObject(template []*p11.Attribute) (p11.ObjectHandle, error) {
	h, err := s.c.CreateObject(s.handle, template)
	return s.addTemporary("C_CreateObject", h, err)
}

// CopySessionObject copies an object to one that is destroyed when the operation ends.
func (s *Session) CopySessionObject(from p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	h, err := s.c.CopyObject(s.handle, from, template)
	return s.addTemporary("C_CopyObject", h, err)
}

// DestroyObject destroys an object in the token.
func (s *Session) DestroyObject(h p11.ObjectHandle) error {
	return s.change("C_DestroyObject", func() error { return s.c.DestroyObject(s.handle, h) })
}

// GenerateKey adds a secret key to the token.
func (s *Session) GenerateKey(mechanism uint, template []*p11.Attribute) (h p11.ObjectHandle, err error) {
	err = s.change("C_GenerateKey", func() (err error) {
		h, err = s.c.GenerateKey(s.handle, Mechanism(mechanism), template)
		return err
	})
	return h, err
}

// GenerateSessionKey generates a secret key that is destroyed when the operation ends.
func (s *Session) GenerateSessionKey(mechanism uint, template []*p11.Attribute) (p11.ObjectHandle, error) {
	h, err := s.c.GenerateKey(s.handle, Mechanism(mechanism), template)
	return s.addTemporary("C_GenerateKey", h, err)
}

// GenerateKeyPair adds an RSA key pair to the token.
func (s *Session) GenerateKeyPair(publicTemplate, privateTemplate []*p11.Attribute) (public, private p11.ObjectHandle, err error) {
	err = s.change("C_GenerateKeyPair", func() (err error) {
		public, private, err = s.c.GenerateKeyPair(s.handle, Mechanism(p11.CKM_RSA_PKCS_KEY_PAIR_GEN), publicTemplate, privateTemplate)
		return err
	})
	return public, private, err
}

// UnwrapKey adds an unwrapped key to the token.
func (s *Session) UnwrapKey(mechanism []*p11.Mechanism, unwrapping p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (h p11.ObjectHandle, err error) {
	err = s.change("C_UnwrapKey", func() (err error) {
		h, err = s.c.UnwrapKey(s.handle, mechanism, unwrapping, wrapped, template)
		return err
	})
	return h, err
}

// UnwrapSessionKey unwraps a key that is destroyed when the operation ends.
func (s *Session) UnwrapSessionKey(mechanism []*p11.Mechanism, unwrapping p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	if len(wrapped) == 0 {
		return 0, p11.Error(p11.CKR_WRAPPED_KEY_LEN_RANGE) // miekg/pkcs11 reads the first byte
	}
	h, err := s.c.UnwrapKey(s.handle, mechanism, unwrapping, wrapped, template)
	return s.addTemporary("C_UnwrapKey", h, err)
}

// WrapKey wraps a key.
func (s *Session) WrapKey(mechanism []*p11.Mechanism, wrapping, key p11.ObjectHandle) ([]byte, error) {
	wrapped, err := s.c.WrapKey(s.handle, mechanism, wrapping, key)
	return wrapped, s.check("C_WrapKey", err)
}

// DeriveSessionKey derives a key that is destroyed when the operation ends.
func (s *Session) DeriveSessionKey(mechanism []*p11.Mechanism, base p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	h, err := s.c.DeriveKey(s.handle, mechanism, base, template)
	return s.addTemporary("C_DeriveKey", h, err)
}

// DeriveEncrypted derives a session key by CKM_AES_ECB_ENCRYPT_DATA: its value is the encryption of data under base.
func (s *Session) DeriveEncrypted(base p11.ObjectHandle, data []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	mechanism, free := StringDataMechanism(p11.CKM_AES_ECB_ENCRYPT_DATA, data)
	defer free()
	return s.DeriveSessionKey(mechanism, base, template)
}

// DeriveByKDF derives a session key by CKM_SP800_108_COUNTER_KDF (see KDFMechanism).
func (s *Session) DeriveByKDF(base p11.ObjectHandle, input []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	mechanism, free := KDFMechanism(input)
	defer free()
	return s.DeriveSessionKey(mechanism, base, template)
}

// DeriveEncryptedValue is DeriveEncrypted for 16 or 32 bytes of data. It returns the value, which the caller wipes.
func (s *Session) DeriveEncryptedValue(base p11.ObjectHandle, data []byte) (redact.Bytes, error) {
	h, err := s.DeriveEncrypted(base, data, readableTemplates[len(data)])
	if err != nil {
		return nil, err
	}
	return s.GetValue(h, len(data))
}

// readableTemplates are the templates of derived session keys whose value can be read, by length. They are made once, because
// a template takes two allocations per attribute. Libraries do not change templates.
var readableTemplates = map[int][]*p11.Attribute{16: ReadableTemplate(16), 32: ReadableTemplate(32)}

// ReadableTemplate is the template of a derived session key whose value can be read.
func ReadableTemplate(length int) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_GENERIC_SECRET),
		p11.NewAttribute(p11.CKA_TOKEN, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, length),
		p11.NewAttribute(p11.CKA_SENSITIVE, false),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, true),
	}
}

// Decrypt decrypts with a mechanism without parameters. The caller wipes the result. miekg/pkcs11 makes another copy of it in
// C memory, which it frees without wiping; the same is true for GetValue.
func (s *Session) Decrypt(mechanism uint, key p11.ObjectHandle, ciphertext []byte) (redact.Bytes, error) {
	if err := s.c.DecryptInit(s.handle, Mechanism(mechanism), key); err != nil {
		return nil, s.check("C_DecryptInit", err)
	}
	plaintext, err := s.c.Decrypt(s.handle, ciphertext)
	return plaintext, s.check("C_Decrypt", err)
}

// Encrypt encrypts with a mechanism without parameters. The caller wipes the result, of which miekg/pkcs11 makes another copy in
// C memory, as of that of Decrypt.
func (s *Session) Encrypt(mechanism uint, key p11.ObjectHandle, plaintext []byte) (redact.Bytes, error) {
	if err := s.c.EncryptInit(s.handle, Mechanism(mechanism), key); err != nil {
		return nil, s.check("C_EncryptInit", err)
	}
	ciphertext, err := s.c.Encrypt(s.handle, plaintext)
	return ciphertext, s.check("C_Encrypt", err)
}

// Sign signs with a mechanism without parameters.
func (s *Session) Sign(mechanism uint, key p11.ObjectHandle, message []byte) ([]byte, error) {
	if err := s.c.SignInit(s.handle, Mechanism(mechanism), key); err != nil {
		return nil, s.check("C_SignInit", err)
	}
	signature, err := s.c.Sign(s.handle, message)
	return signature, s.check("C_Sign", err)
}

// GenerateRandom returns n random bytes, which the caller wipes.
func (s *Session) GenerateRandom(n int) (redact.Bytes, error) {
	random, err := s.c.GenerateRandom(s.handle, n)
	return random, s.check("C_GenerateRandom", err)
}

// GetValue reads CKA_VALUE of a key, which the caller wipes. It fails if the value has another length.
func (s *Session) GetValue(h p11.ObjectHandle, length int) (redact.Bytes, error) {
	a, err := s.c.GetAttributeValue(s.handle, h, []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, nil)})
	if err != nil {
		return nil, s.check("C_GetAttributeValue", err)
	}
	value := redact.Bytes(a[0].Value)
	if len(value) != length {
		value.Wipe()
		return nil, errors.New("CKA_VALUE has another length than the key")
	}
	return value, nil
}

// GetAttributes reads attributes. The value of an attribute that the object does not have or does not reveal is nil, unless
// it is the only one, in which case GetAttributes fails.
func (s *Session) GetAttributes(h p11.ObjectHandle, types ...uint) ([][]byte, error) {
	template := make([]*p11.Attribute, len(types))
	for i, t := range types {
		template[i] = p11.NewAttribute(t, nil)
	}
	values := make([][]byte, len(types))
	got, err := s.c.GetAttributeValue(s.handle, h, template)
	if err == nil {
		for i, a := range got {
			values[i] = a.Value
		}
		return values, nil
	}
	if !HasCode(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE) || len(types) == 1 {
		return nil, s.check("C_GetAttributeValue", err)
	}
	for i, t := range types {
		one, err := s.GetAttributes(h, t)
		if err != nil && !HasCode(err, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_ATTRIBUTE_SENSITIVE) {
			return nil, err
		}
		if err == nil {
			values[i] = one[0]
		}
	}
	return values, nil
}

// SetAttribute sets an attribute of an object.
func (s *Session) SetAttribute(h p11.ObjectHandle, a *p11.Attribute) error {
	return s.check("C_SetAttributeValue", s.c.SetAttributeValue(s.handle, h, []*p11.Attribute{a}))
}

// FindObjects returns all objects that match a template.
func (s *Session) FindObjects(template []*p11.Attribute) (handles []p11.ObjectHandle, err error) {
	const limit = 64 // per call
	objects := s.token.lib.objects.get(s.conn.identity, newMutex)
	if err := objects.rLock(s.ctx); err != nil {
		return nil, timeoutError(err)
	}
	defer objects.rUnlock()
	if err := s.c.FindObjectsInit(s.handle, template); err != nil {
		return nil, s.check("C_FindObjectsInit", err)
	}
	defer func() { // also after a failure: otherwise the session would stay in the search
		if finalErr := s.c.FindObjectsFinal(s.handle); err == nil {
			err = s.check("C_FindObjectsFinal", finalErr)
		}
	}()
	for {
		some, _, err := s.c.FindObjects(s.handle, limit)
		if err != nil {
			return nil, s.check("C_FindObjects", err)
		}
		handles = append(handles, some...)
		if len(some) == 0 {
			return handles, nil
		}
	}
}

// ObjectName identifies a token object.
type ObjectName struct {
	Class uint   // CKA_CLASS
	ID    string // CKA_ID
}

// Template returns the template of a search for the object.
func (n ObjectName) Template() []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, n.Class),
		p11.NewAttribute(p11.CKA_ID, []byte(n.ID)),
		p11.NewAttribute(p11.CKA_TOKEN, true),
	}
}

// LookUp returns the handle of a token object, from the cache or by a search. check decides whether a handle that was found
// may be used. If the object is missing, ok is false, and the token has passed a health check: a token that lost its login or
// its device shows no private objects either. If a call with a cached handle fails, Token.Do repeats the operation with a new
// search.
func (s *Session) LookUp(name ObjectName, check func(p11.ObjectHandle) error) (h p11.ObjectHandle, ok bool, err error) {
	h, ok, err = s.LookUpUnconfirmed(name, check)
	if err == nil && !ok {
		err = s.HealthCheck()
	}
	return h, ok, err
}

// LookUpUnconfirmed is LookUp without the health check: a missing object may mean that the login is lost.
func (s *Session) LookUpUnconfirmed(name ObjectName, check func(p11.ObjectHandle) error) (h p11.ObjectHandle, ok bool, err error) {
	if h, ok := s.cached(name); ok {
		s.used = append(s.used, name)
		return h, true, nil
	}
	handles, err := s.FindObjects(name.Template())
	if err != nil || len(handles) == 0 {
		return 0, false, err
	}
	if err := check(handles[0]); err != nil {
		return 0, false, err
	}
	s.Remember(name, handles[0])
	s.used = append(s.used, name)
	return handles[0], true, nil
}

// Mechanism returns a mechanism without parameters.
func Mechanism(mechanism uint) []*p11.Mechanism {
	return []*p11.Mechanism{p11.NewMechanism(mechanism, nil)}
}
