//go:build cgo

package token

import p11 "github.com/miekg/pkcs11"

// Around returns a library that calls begin before each call into c, with the name of the function, and what begin returned after
// it.
func Around(c Cryptoki, begin func(function string) (end func())) Cryptoki { return around{c, begin} }

// around does not embed its library, so that a new method of Cryptoki does not bypass begin.
type around struct {
	c     Cryptoki
	begin func(function string) (end func())
}

// Initialize implements Cryptoki.
func (w around) Initialize(opts ...p11.InitializeOption) error {
	defer w.begin("C_Initialize")()
	return w.c.Initialize(opts...)
}

// Finalize implements Cryptoki.
func (w around) Finalize() error {
	defer w.begin("C_Finalize")()
	return w.c.Finalize()
}

// GetInfo implements Cryptoki.
func (w around) GetInfo() (p11.Info, error) {
	defer w.begin("C_GetInfo")()
	return w.c.GetInfo()
}

// GetSlotList implements Cryptoki.
func (w around) GetSlotList(tokenPresent bool) ([]uint, error) {
	defer w.begin("C_GetSlotList")()
	return w.c.GetSlotList(tokenPresent)
}

// GetTokenInfo implements Cryptoki.
func (w around) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	defer w.begin("C_GetTokenInfo")()
	return w.c.GetTokenInfo(slot)
}

// OpenSession implements Cryptoki.
func (w around) OpenSession(slot uint, flags uint) (p11.SessionHandle, error) {
	defer w.begin("C_OpenSession")()
	return w.c.OpenSession(slot, flags)
}

// CloseSession implements Cryptoki.
func (w around) CloseSession(s p11.SessionHandle) error {
	defer w.begin("C_CloseSession")()
	return w.c.CloseSession(s)
}

// GetSessionInfo implements Cryptoki.
func (w around) GetSessionInfo(s p11.SessionHandle) (p11.SessionInfo, error) {
	defer w.begin("C_GetSessionInfo")()
	return w.c.GetSessionInfo(s)
}

// Login implements Cryptoki.
func (w around) Login(s p11.SessionHandle, userType uint, pin string) error {
	defer w.begin("C_Login")()
	return w.c.Login(s, userType, pin)
}

// Logout implements Cryptoki.
func (w around) Logout(s p11.SessionHandle) error {
	defer w.begin("C_Logout")()
	return w.c.Logout(s)
}

// CreateObject implements Cryptoki.
func (w around) CreateObject(s p11.SessionHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	defer w.begin("C_CreateObject")()
	return w.c.CreateObject(s, template)
}

// CopyObject implements Cryptoki.
func (w around) CopyObject(s p11.SessionHandle, o p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	defer w.begin("C_CopyObject")()
	return w.c.CopyObject(s, o, template)
}

// DestroyObject implements Cryptoki.
func (w around) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	defer w.begin("C_DestroyObject")()
	return w.c.DestroyObject(s, o)
}

// GetAttributeValue implements Cryptoki.
func (w around) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle, a []*p11.Attribute) ([]*p11.Attribute, error) {
	defer w.begin("C_GetAttributeValue")()
	return w.c.GetAttributeValue(s, o, a)
}

// SetAttributeValue implements Cryptoki.
func (w around) SetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle, a []*p11.Attribute) error {
	defer w.begin("C_SetAttributeValue")()
	return w.c.SetAttributeValue(s, o, a)
}

// FindObjectsInit implements Cryptoki.
func (w around) FindObjectsInit(s p11.SessionHandle, template []*p11.Attribute) error {
	defer w.begin("C_FindObjectsInit")()
	return w.c.FindObjectsInit(s, template)
}

// FindObjects implements Cryptoki.
func (w around) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	defer w.begin("C_FindObjects")()
	return w.c.FindObjects(s, limit)
}

// FindObjectsFinal implements Cryptoki.
func (w around) FindObjectsFinal(s p11.SessionHandle) error {
	defer w.begin("C_FindObjectsFinal")()
	return w.c.FindObjectsFinal(s)
}

// DecryptInit implements Cryptoki.
func (w around) DecryptInit(s p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error {
	defer w.begin("C_DecryptInit")()
	return w.c.DecryptInit(s, m, key)
}

// Decrypt implements Cryptoki.
func (w around) Decrypt(s p11.SessionHandle, ciphertext []byte) ([]byte, error) {
	defer w.begin("C_Decrypt")()
	return w.c.Decrypt(s, ciphertext)
}

// SignInit implements Cryptoki.
func (w around) SignInit(s p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error {
	defer w.begin("C_SignInit")()
	return w.c.SignInit(s, m, key)
}

// Sign implements Cryptoki.
func (w around) Sign(s p11.SessionHandle, message []byte) ([]byte, error) {
	defer w.begin("C_Sign")()
	return w.c.Sign(s, message)
}

// GenerateKey implements Cryptoki.
func (w around) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, template []*p11.Attribute) (p11.ObjectHandle, error) {
	defer w.begin("C_GenerateKey")()
	return w.c.GenerateKey(s, m, template)
}

// GenerateKeyPair implements Cryptoki.
func (w around) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism, public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	defer w.begin("C_GenerateKeyPair")()
	return w.c.GenerateKeyPair(s, m, public, private)
}

// WrapKey implements Cryptoki.
func (w around) WrapKey(s p11.SessionHandle, m []*p11.Mechanism, wrapping, key p11.ObjectHandle) ([]byte, error) {
	defer w.begin("C_WrapKey")()
	return w.c.WrapKey(s, m, wrapping, key)
}

// UnwrapKey implements Cryptoki.
func (w around) UnwrapKey(s p11.SessionHandle, m []*p11.Mechanism, unwrapping p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (p11.ObjectHandle, error) {
	defer w.begin("C_UnwrapKey")()
	return w.c.UnwrapKey(s, m, unwrapping, wrapped, template)
}

// DeriveKey implements Cryptoki.
func (w around) DeriveKey(s p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error) {
	defer w.begin("C_DeriveKey")()
	return w.c.DeriveKey(s, m, base, template)
}

// GenerateRandom implements Cryptoki.
func (w around) GenerateRandom(s p11.SessionHandle, length int) ([]byte, error) {
	defer w.begin("C_GenerateRandom")()
	return w.c.GenerateRandom(s, length)
}
