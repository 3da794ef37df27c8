//go:build cgo

package tokens

// #include <stdlib.h>
import "C"

import (
	"cmp"
	"slices"
	"sync"
	"testing"
	"unsafe"

	p11 "github.com/miekg/pkcs11" //nolint:depguard // the spy stands between the product and a library
)

// Spy counts the calls into a library and injects faults. It is one for all tests that use the library.
type Spy struct {
	*p11.Ctx // calls its methods directly, so that they are neither counted nor failed

	mu        sync.Mutex
	calls     map[string]int
	slot      uint              // of the last C_OpenSession
	login     p11.SessionHandle // of the last C_Login
	fault     func(function string) error
	flags     uint
	unplugged bool
	forbidden []uint
	lenient   string
	rejected  []uint
	secrets   [][]byte
}

// spies are the spies of this process, by the path of their library.
var spies sync.Map

// NewSpy returns a spy on a library that is loaded. SpyOn finds it by the path.
func NewSpy(path string, library *p11.Ctx) *Spy {
	s := &Spy{Ctx: library, calls: map[string]int{}}
	spies.Store(path, s)
	return s
}

// SpyOn returns the spy on a token's library and resets it, now and after the test. The library must be loaded.
func SpyOn(t testing.TB, token Token) *Spy {
	t.Helper()
	value, ok := spies.Load(token.Path)
	if !ok {
		t.Fatal("the library was not loaded with a spy")
	}
	s := value.(*Spy)
	s.Reset()
	t.Cleanup(s.Reset)
	return s
}

// Reset sets the counts to zero and ends all faults.
func (s *Spy) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.calls)
	s.fault, s.flags, s.unplugged, s.forbidden, s.lenient, s.rejected, s.secrets = nil, 0, false, nil, "", nil, nil
}

// Inject calls fault before each call of a function, which fails if fault returns an error. fault may block. nil ends it.
func (s *Spy) Inject(fault func(function string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// Always is the number of failures of Failing for a fault that does not end.
const Always = 1 << 30

// Failing returns a fault for Inject: the first n calls of these functions fail with that code.
func Failing(code p11.Error, n int, functions ...string) func(function string) error {
	var mu sync.Mutex
	return func(function string) error {
		mu.Lock()
		defer mu.Unlock()
		if n == 0 || !slices.Contains(functions, function) {
			return nil
		}
		n--
		return code
	}
}

// AddFlags adds flags to those that every token reports.
func (s *Spy) AddFlags(flags uint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flags = flags
}

// Unplug hides every token, or shows them again.
func (s *Spy) Unplug(unplugged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unplugged = unplugged
}

// Forbid rejects templates with these attributes. Count("forbidden") is the number of rejected templates.
func (s *Spy) Forbid(attributes ...uint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forbidden = attributes
}

// Reject has C_DeriveKey, C_EncryptInit, C_SignInit and C_WrapKey fail with CKR_MECHANISM_INVALID for these mechanisms.
func (s *Spy) Reject(mechanisms ...uint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rejected = mechanisms
}

// rejects returns the error for a mechanism of Reject.
func (s *Spy) rejects(m []*p11.Mechanism) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.rejected, m[0].Mechanism) {
		return p11.Error(p11.CKR_MECHANISM_INVALID)
	}
	return nil
}

// Forgive has the function return CKR_OK if the library rejects the call.
func (s *Spy) Forgive(function string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lenient = function
}

// Count returns the number of calls of these functions since the last Reset.
func (s *Spy) Count(functions ...string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, function := range functions {
		n += s.calls[function]
	}
	return n
}

// Secrets returns the slices that the library returned since the last Reset and that may hold key material. There is at least
// one.
func (s *Spy) Secrets(t testing.TB) [][]byte {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.secrets) == 0 {
		t.Fatal("the library returned no secrets")
	}
	return slices.Clone(s.secrets)
}

// InitializeDirectly calls C_Initialize as another part of the process would.
func (s *Spy) InitializeDirectly(token Token) error {
	if token.Parameters == "" {
		return s.Ctx.Initialize()
	}
	parameters := unsafe.Pointer(C.CString(token.Parameters))
	defer C.free(parameters)
	return s.Ctx.Initialize(p11.InitializeWithReserved(parameters))
}

// CloseAllSessionsDirectly closes the sessions of the slot that was used last, as another part of the process would.
func (s *Spy) CloseAllSessionsDirectly() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Ctx.CloseAllSessions(s.slot)
}

// LogoutDirectly logs the last session out that logged in, as another part of the process would.
func (s *Spy) LogoutDirectly() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Ctx.Logout(s.login)
}

// before counts a call and returns the error with which it must fail.
func (s *Spy) before(function string, templates ...[]*p11.Attribute) error {
	s.mu.Lock()
	s.calls[function]++
	fault := s.fault
	s.mu.Unlock()
	if fault != nil {
		if err := fault(function); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range slices.Concat(templates...) {
		if slices.Contains(s.forbidden, a.Type) {
			s.calls["forbidden"]++
			return p11.Error(p11.CKR_ATTRIBUTE_TYPE_INVALID)
		}
	}
	return nil
}

// forgives returns whether a function must hide an error.
func (s *Spy) forgives(function string, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return err != nil && s.lenient == function
}

func (s *Spy) keep(secret []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secrets = append(s.secrets, secret)
}

// Initialize implements C_Initialize.
func (s *Spy) Initialize(o ...p11.InitializeOption) error {
	if err := s.before("C_Initialize"); err != nil {
		return err
	}
	return s.Ctx.Initialize(o...)
}

// Finalize implements C_Finalize.
func (s *Spy) Finalize() error {
	if err := s.before("C_Finalize"); err != nil {
		return err
	}
	return s.Ctx.Finalize()
}

// GetSlotList implements C_GetSlotList.
func (s *Spy) GetSlotList(tokenPresent bool) ([]uint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unplugged {
		return nil, nil
	}
	return s.Ctx.GetSlotList(tokenPresent)
}

// GetTokenInfo implements C_GetTokenInfo.
func (s *Spy) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	info, err := s.Ctx.GetTokenInfo(slot)
	s.mu.Lock()
	defer s.mu.Unlock()
	info.Flags |= s.flags
	return info, err
}

// GetSessionInfo implements C_GetSessionInfo.
func (s *Spy) GetSessionInfo(h p11.SessionHandle) (p11.SessionInfo, error) {
	if err := s.before("C_GetSessionInfo"); err != nil {
		return p11.SessionInfo{}, err
	}
	return s.Ctx.GetSessionInfo(h)
}

// OpenSession implements C_OpenSession.
func (s *Spy) OpenSession(slot, flags uint) (p11.SessionHandle, error) {
	if err := s.before("C_OpenSession"); err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.slot = slot
	s.mu.Unlock()
	return s.Ctx.OpenSession(slot, flags)
}

// Login implements C_Login.
func (s *Spy) Login(h p11.SessionHandle, user uint, pin string) error {
	if err := s.before("C_Login"); err != nil {
		return err
	}
	s.mu.Lock()
	s.login = h
	s.mu.Unlock()
	return s.Ctx.Login(h, user, pin)
}

// CreateObject implements C_CreateObject.
func (s *Spy) CreateObject(h p11.SessionHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := s.before("C_CreateObject", template); err != nil {
		return 0, err
	}
	return s.Ctx.CreateObject(h, template)
}

// SetAttributeValue implements C_SetAttributeValue.
func (s *Spy) SetAttributeValue(h p11.SessionHandle, o p11.ObjectHandle, template []*p11.Attribute) error {
	err := s.Ctx.SetAttributeValue(h, o, template)
	if s.forgives("C_SetAttributeValue", err) {
		return nil
	}
	return err
}

// GetAttributeValue implements C_GetAttributeValue.
func (s *Spy) GetAttributeValue(h p11.SessionHandle, o p11.ObjectHandle, template []*p11.Attribute) ([]*p11.Attribute, error) {
	got, err := s.Ctx.GetAttributeValue(h, o, template)
	if len(template) == 1 && template[0].Type == p11.CKA_VALUE && s.forgives("C_GetAttributeValue", err) {
		return []*p11.Attribute{p11.NewAttribute(p11.CKA_VALUE, []byte{1})}, nil
	}
	for _, a := range got {
		if a.Type == p11.CKA_VALUE {
			s.keep(a.Value)
		}
	}
	return got, err
}

// FindObjectsInit implements C_FindObjectsInit.
func (s *Spy) FindObjectsInit(h p11.SessionHandle, template []*p11.Attribute) error {
	if err := s.before("C_FindObjectsInit"); err != nil {
		return err
	}
	return s.Ctx.FindObjectsInit(h, template)
}

// FindObjects implements C_FindObjects.
func (s *Spy) FindObjects(h p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	if err := s.before("C_FindObjects"); err != nil {
		return nil, false, err
	}
	return s.Ctx.FindObjects(h, limit)
}

// EncryptInit implements C_EncryptInit.
func (s *Spy) EncryptInit(h p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error {
	if err := cmp.Or(s.before("C_EncryptInit"), s.rejects(m)); err != nil {
		return err
	}
	return s.Ctx.EncryptInit(h, m, key)
}

// Encrypt implements C_Encrypt.
func (s *Spy) Encrypt(h p11.SessionHandle, plaintext []byte) ([]byte, error) {
	if err := s.before("C_Encrypt"); err != nil {
		return nil, err
	}
	ciphertext, err := s.Ctx.Encrypt(h, plaintext)
	s.keep(ciphertext)
	return ciphertext, err
}

// SignInit implements C_SignInit.
func (s *Spy) SignInit(h p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error {
	if err := cmp.Or(s.before("C_SignInit"), s.rejects(m)); err != nil {
		return err
	}
	return s.Ctx.SignInit(h, m, key)
}

// Sign implements C_Sign.
func (s *Spy) Sign(h p11.SessionHandle, message []byte) ([]byte, error) {
	signature, err := s.Ctx.Sign(h, message)
	s.keep(signature)
	return signature, err
}

// Decrypt implements C_Decrypt.
func (s *Spy) Decrypt(h p11.SessionHandle, ciphertext []byte) ([]byte, error) {
	plaintext, err := s.Ctx.Decrypt(h, ciphertext)
	s.keep(plaintext)
	return plaintext, err
}

// GenerateKey implements C_GenerateKey.
func (s *Spy) GenerateKey(h p11.SessionHandle, m []*p11.Mechanism, template []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := s.before("C_GenerateKey", template); err != nil {
		return 0, err
	}
	return s.Ctx.GenerateKey(h, m, template)
}

// GenerateKeyPair implements C_GenerateKeyPair.
func (s *Spy) GenerateKeyPair(h p11.SessionHandle, m []*p11.Mechanism, public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	if err := s.before("C_GenerateKeyPair", private); err != nil {
		return 0, 0, err
	}
	return s.Ctx.GenerateKeyPair(h, m, public, private)
}

// WrapKey implements C_WrapKey.
func (s *Spy) WrapKey(h p11.SessionHandle, m []*p11.Mechanism, wrapping, key p11.ObjectHandle) ([]byte, error) {
	if err := cmp.Or(s.before("C_WrapKey"), s.rejects(m)); err != nil {
		return nil, err
	}
	wrapped, err := s.Ctx.WrapKey(h, m, wrapping, key)
	if s.forgives("C_WrapKey", err) {
		return []byte{1}, nil
	}
	return wrapped, err
}

// UnwrapKey implements C_UnwrapKey.
func (s *Spy) UnwrapKey(h p11.SessionHandle, m []*p11.Mechanism, unwrapping p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := s.before("C_UnwrapKey", template); err != nil {
		return 0, err
	}
	return s.Ctx.UnwrapKey(h, m, unwrapping, wrapped, template)
}

// DeriveKey implements C_DeriveKey.
func (s *Spy) DeriveKey(h p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	if err := cmp.Or(s.before("C_DeriveKey"), s.rejects(m)); err != nil {
		return 0, err
	}
	return s.Ctx.DeriveKey(h, m, base, template)
}

// GenerateRandom implements C_GenerateRandom.
func (s *Spy) GenerateRandom(h p11.SessionHandle, n int) ([]byte, error) {
	random, err := s.Ctx.GenerateRandom(h, n)
	s.keep(random)
	return random, err
}
