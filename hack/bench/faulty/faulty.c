// A PKCS#11 library that forwards every call to the library in FAULTY_LIBRARY. While the file in FAULTY_WHILE exists, it
// allows the number of unwrapped keys that the file contains, and then returns CKR_DEVICE_ERROR for every call.

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

// The platform-specific macros that the standard requires.
#define CK_PTR *
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST ours;

static atomic_int unwrapped; // since the file exists

static int broken(void) {
	int most = 0;
	FILE *file = fopen(getenv("FAULTY_WHILE"), "r");
	if (file == NULL) {
		unwrapped = 0;
		return 0;
	}
	int read = fscanf(file, "%d", &most);
	fclose(file);
	return read != 1 || unwrapped >= most;
}

#define MAY_FAIL(function, parameters, arguments) \
	static CK_RV function##_ours parameters { return broken() ? CKR_DEVICE_ERROR : real->function arguments; }

// The calls with which the operator uses keys and checks the module.
MAY_FAIL(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session), (slot, flags, application, notify, session))
MAY_FAIL(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG length), (session, user, pin, length))
MAY_FAIL(C_GetSessionInfo, (CK_SESSION_HANDLE session, CK_SESSION_INFO_PTR info), (session, info))
MAY_FAIL(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info), (slot, info))
MAY_FAIL(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG n), (session, template, n))
MAY_FAIL(C_GetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG n), (session, object, template, n))
MAY_FAIL(C_CreateObject, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR object), (session, template, n, object))
MAY_FAIL(C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object), (session, object))
MAY_FAIL(C_EncryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key))
MAY_FAIL(C_DecryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key))
MAY_FAIL(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key))
MAY_FAIL(C_GenerateKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR key), (session, mechanism, template, n, key))
MAY_FAIL(C_DeriveKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE base, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR key), (session, mechanism, base, template, n, key))
MAY_FAIL(C_WrapKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key, CK_BYTE_PTR wrapped, CK_ULONG_PTR length), (session, mechanism, wrapping, key, wrapped, length))
MAY_FAIL(C_GenerateRandom, (CK_SESSION_HANDLE session, CK_BYTE_PTR random, CK_ULONG length), (session, random, length))

static CK_RV C_UnwrapKey_ours(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE unwrapping, CK_BYTE_PTR wrapped, CK_ULONG length, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR key) {
	if (broken())
		return CKR_DEVICE_ERROR;
	unwrapped++;
	return real->C_UnwrapKey(session, mechanism, unwrapping, wrapped, length, template, n, key);
}

#define REPLACE(function) ours.function = function##_ours

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	void *library = dlopen(getenv("FAULTY_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
	if (library == NULL)
		return CKR_GENERAL_ERROR;
	CK_C_GetFunctionList get = (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
	if (get == NULL)
		return CKR_GENERAL_ERROR;
	CK_RV rv = get(&real);
	if (rv != CKR_OK)
		return rv;
	ours = *real;
	REPLACE(C_OpenSession);
	REPLACE(C_Login);
	REPLACE(C_GetSessionInfo);
	REPLACE(C_GetTokenInfo);
	REPLACE(C_FindObjectsInit);
	REPLACE(C_GetAttributeValue);
	REPLACE(C_CreateObject);
	REPLACE(C_DestroyObject);
	REPLACE(C_EncryptInit);
	REPLACE(C_DecryptInit);
	REPLACE(C_SignInit);
	REPLACE(C_GenerateKey);
	REPLACE(C_DeriveKey);
	REPLACE(C_WrapKey);
	REPLACE(C_UnwrapKey);
	REPLACE(C_GenerateRandom);
	*list = &ours;
	return CKR_OK;
}
