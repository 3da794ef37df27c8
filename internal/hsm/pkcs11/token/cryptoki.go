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

// The parameter of CKM_SP800_108_COUNTER_KDF (PKCS #11 v3.0 mechanisms, section 2.42) and what it refers to.
struct kdfParameter {
	struct {
		unsigned long prf, numData;
		struct kdfData *data;
		unsigned long numKeys;
		void *keys;
	} params; // CK_SP800_108_KDF_PARAMS
	struct kdfData {
		unsigned long type;
		void *value;
		unsigned long len;
	} data[2]; // CK_PRF_DATA_PARAM
	struct {
		unsigned char littleEndian;
		unsigned long bits;
	} counter; // CK_SP800_108_COUNTER_FORMAT
};

// newKDFParameter returns the parameter for AES-CMAC over a big-endian counter of 32 bits and the input. The caller frees it
// after the input.
static struct kdfParameter *newKDFParameter(void *input, unsigned long len) {
	struct kdfParameter *p = calloc(1, sizeof(struct kdfParameter));
	p->counter.bits = 32;
	p->data[0].type = 1; // CK_SP800_108_ITERATION_VARIABLE
	p->data[0].value = &p->counter;
	p->data[0].len = sizeof(p->counter);
	p->data[1].type = 4; // CK_SP800_108_BYTE_ARRAY
	p->data[1].value = input;
	p->data[1].len = len;
	p->params.prf = 0x108A; // CKM_AES_CMAC
	p->params.numData = 2;
	p->params.data = p->data;
	return p;
}
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
	EncryptInit(s p11.SessionHandle, m []*p11.Mechanism, key p11.ObjectHandle) error
	Encrypt(s p11.SessionHandle, plaintext []byte) ([]byte, error)
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

// KDFMechanism returns CKM_SP800_108_COUNTER_KDF with AES-CMAC over a counter of 32 bits and the input, and a function that frees
// the parameter after the call.
func KDFMechanism(input []byte) (m []*p11.Mechanism, free func()) {
	buf := C.CBytes(input)
	parameter := C.newKDFParameter(buf, C.ulong(len(input)))
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&parameter.params)), unsafe.Sizeof(parameter.params))
	return []*p11.Mechanism{p11.NewMechanism(CKMCounterKDF, append([]byte(nil), raw...))},
		func() { C.free(buf); C.free(unsafe.Pointer(parameter)) }
}

// CKMCounterKDF is CKM_SP800_108_COUNTER_KDF (PKCS #11 v3.0), which miekg/pkcs11 does not have.
const CKMCounterKDF = 0x3AC
