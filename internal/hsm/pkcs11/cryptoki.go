//go:build cgo

package pkcs11

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

// loadError says why a library does not load. dlerror is per thread, hence one call and a copy.
static char *loadError(const char *path) {
	dlerror();
	if (dlopen(path, RTLD_LAZY) != NULL) {
		return strdup("it has no C_GetFunctionList");
	}
	const char *why = dlerror();
	return strdup(why != NULL ? why : "no reason given");
}

// CK_KEY_DERIVATION_STRING_DATA (PKCS #11 v2.40 mechanisms, section 2.14.1).
struct stringData {
	unsigned char *data;
	unsigned long len;
};
*/
import "C"

import (
	"errors"
	"unsafe"

	p11 "github.com/miekg/pkcs11"
)

// cryptoki is what this package uses of *p11.Ctx: the seam where tests inject the faults that no
// software token has.
type cryptoki interface {
	Initialize(opts ...p11.InitializeOption) error
	Finalize() error
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slot uint) (p11.TokenInfo, error)
	OpenSession(slot uint, flags uint) (p11.SessionHandle, error)
	CloseSession(s p11.SessionHandle) error
	GetSessionInfo(s p11.SessionHandle) (p11.SessionInfo, error)
	Login(s p11.SessionHandle, userType uint, pin string) error
	Logout(s p11.SessionHandle) error
	CreateObject(s p11.SessionHandle, template []*p11.Attribute) (p11.ObjectHandle, error)
	DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error
	GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle, a []*p11.Attribute) ([]*p11.Attribute, error)
	FindObjectsInit(s p11.SessionHandle, template []*p11.Attribute) error
	FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error)
	FindObjectsFinal(s p11.SessionHandle) error
	DecryptInit(s p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error
	Decrypt(s p11.SessionHandle, ciphertext []byte) ([]byte, error)
	SignInit(s p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error
	Sign(s p11.SessionHandle, message []byte) ([]byte, error)
	GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, template []*p11.Attribute) (p11.ObjectHandle, error)
	GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism, public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error)
	WrapKey(s p11.SessionHandle, m []*p11.Mechanism, wrapping, key p11.ObjectHandle) ([]byte, error)
	UnwrapKey(s p11.SessionHandle, m []*p11.Mechanism, unwrapping p11.ObjectHandle, wrapped []byte, template []*p11.Attribute) (p11.ObjectHandle, error)
	DeriveKey(s p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error)
	GenerateRandom(s p11.SessionHandle, length int) ([]byte, error)
}

// loadLibrary loads a shared library, for good: unloading one that started threads crashes.
func loadLibrary(path string) (cryptoki, error) {
	if ctx := p11.New(path); ctx != nil {
		return ctx, nil
	}
	cPath := C.CString(path)
	defer C.free(unsafe.Pointer(cPath))
	why := C.loadError(cPath)
	defer C.free(unsafe.Pointer(why))
	return nil, errors.New(C.GoString(why))
}

// reserved makes the option for the reserved string, and what frees it after C_Initialize.
func reserved(parameters string) (options []p11.InitializeOption, free func()) {
	if parameters == "" {
		return nil, func() {}
	}
	s := unsafe.Pointer(C.CString(parameters))
	return []p11.InitializeOption{p11.InitializeWithReserved(s)}, func() { C.free(s) }
}

// encryptData is CKM_AES_ECB_ENCRYPT_DATA over data, and what frees its parameter after the call.
func encryptData(data []byte) (mechanism []*p11.Mechanism, free func()) {
	buf := C.CBytes(data)
	parameter := C.struct_stringData{data: (*C.uchar)(buf), len: C.ulong(len(data))}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&parameter)), unsafe.Sizeof(parameter))
	return []*p11.Mechanism{p11.NewMechanism(p11.CKM_AES_ECB_ENCRYPT_DATA, append([]byte(nil), raw...))},
		func() { C.free(buf) }
}
