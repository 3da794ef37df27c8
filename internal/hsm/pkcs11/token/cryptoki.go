//go:build cgo

package token

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

// bindLibrary loads a library, resolves all of its symbols and calls C_GetFunctionList. It never unloads the library. With
// lazy binding, the first call of a missing symbol would end the process, and so would a missing function list. It returns NULL
// or an error text, which the caller frees. dlerror is per thread, so one C call does it all and copies the text.
static char *bindLibrary(const char *path) {
	dlerror();
	void *library = dlopen(path, RTLD_NOW);
	if (library == NULL) {
		const char *why = dlerror();
		return strdup(why != NULL ? why : "the dynamic linker gives no reason");
	}
	unsigned long (*getFunctionList)(void **) = (unsigned long (*)(void **))dlsym(library, "C_GetFunctionList");
	if (getFunctionList == NULL) {
		return strdup("it exports no C_GetFunctionList, so it is not a PKCS#11 library");
	}
	void *functions = NULL;
	if (getFunctionList(&functions) != 0 || functions == NULL) {
		return strdup("its C_GetFunctionList fails");
	}
	return NULL;
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

// Cryptoki is the part of *p11.Ctx that this package uses. Tests implement it to inject faults that no software token has.
type Cryptoki interface {
	Initialize(opts ...p11.InitializeOption) error
	Finalize() error
	GetInfo() (p11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slot uint) (p11.TokenInfo, error)
	OpenSession(slot uint, flags uint) (p11.SessionHandle, error)
	CloseSession(s p11.SessionHandle) error
	GetSessionInfo(s p11.SessionHandle) (p11.SessionInfo, error)
	Login(s p11.SessionHandle, userType uint, pin string) error
	Logout(s p11.SessionHandle) error
	CreateObject(s p11.SessionHandle, template []*p11.Attribute) (p11.ObjectHandle, error)
	CopyObject(s p11.SessionHandle, o p11.ObjectHandle, template []*p11.Attribute) (p11.ObjectHandle, error)
	DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error
	GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle, a []*p11.Attribute) ([]*p11.Attribute, error)
	SetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle, a []*p11.Attribute) error
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

// LoadLibrary loads a shared library. It never unloads it: that crashes if the library started threads. The texts of its errors
// name files that the administrator configured and nothing else, so a user may see them.
func LoadLibrary(path string) (Cryptoki, error) {
	if err := checkLibrary(path); err != nil {
		return nil, err
	}
	cPath := C.CString(path)
	defer C.free(unsafe.Pointer(cPath))
	if why := C.bindLibrary(cPath); why != nil {
		defer C.free(unsafe.Pointer(why))
		return nil, errors.New(C.GoString(why))
	}
	ctx := p11.New(path)
	if ctx == nil {
		return nil, errors.New("the file was removed while the library was loaded")
	}
	return ctx, nil
}

// reservedOption returns the option for the reserved string of CK_C_INITIALIZE_ARGS, and a function that frees it after
// C_Initialize.
func reservedOption(parameters string) (options []p11.InitializeOption, free func()) {
	if parameters == "" {
		return nil, func() {}
	}
	s := unsafe.Pointer(C.CString(parameters))
	return []p11.InitializeOption{p11.InitializeWithReserved(s)}, func() { C.free(s) }
}

// StringDataMechanism returns a mechanism with the parameter CK_KEY_DERIVATION_STRING_DATA, and a function that frees the
// parameter after the call.
func StringDataMechanism(mechanism uint, data []byte) (m []*p11.Mechanism, free func()) {
	buf := C.CBytes(data)
	parameter := C.struct_stringData{data: (*C.uchar)(buf), len: C.ulong(len(data))}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&parameter)), unsafe.Sizeof(parameter))
	return []*p11.Mechanism{p11.NewMechanism(mechanism, append([]byte(nil), raw...))},
		func() { C.free(buf) }
}
