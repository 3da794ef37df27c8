// The functions of a PKCS#11 library that can fail: all that Keyconvoy calls. F(name, parameters, arguments, output) describes
// one; output is what the function returns to its caller, as a macro of faulty.c.

#define FAULTY_FUNCTIONS(F) \
	F(C_Initialize, (CK_VOID_PTR arguments), (arguments), NOTHING) \
	F(C_Finalize, (CK_VOID_PTR reserved), (reserved), NOTHING) \
	F(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR n), (present, slots, n), LIST(slots, n)) \
	F(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info), (slot, info), VALUE(info)) \
	F(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session), (slot, flags, application, notify, session), VALUE(session)) \
	F(C_CloseSession, (CK_SESSION_HANDLE session), (session), NOTHING) \
	F(C_GetSessionInfo, (CK_SESSION_HANDLE session, CK_SESSION_INFO_PTR info), (session, info), VALUE(info)) \
	F(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG n), (session, user, pin, n), NOTHING) \
	F(C_Logout, (CK_SESSION_HANDLE session), (session), NOTHING) \
	F(C_CreateObject, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR object), (session, template, n, object), KEY(session, template, n, object)) \
	F(C_CopyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE from, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR object), (session, from, template, n, object), VALUE(object)) \
	F(C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object), (session, object), NOTHING) \
	F(C_GetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG n), (session, object, template, n), ATTRIBUTES(template, n)) \
	F(C_SetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG n), (session, object, template, n), NOTHING) \
	F(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR template, CK_ULONG n), (session, template, n), NOTHING) \
	F(C_FindObjects, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR objects, CK_ULONG most, CK_ULONG_PTR n), (session, objects, most, n), LIST(objects, n)) \
	F(C_FindObjectsFinal, (CK_SESSION_HANDLE session), (session), NOTHING) \
	F(C_DecryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key), NOTHING) \
	F(C_Decrypt, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG inLength, CK_BYTE_PTR out, CK_ULONG_PTR length), (session, in, inLength, out, length), BYTES(out, length)) \
	F(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key), (session, mechanism, key), NOTHING) \
	F(C_Sign, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG inLength, CK_BYTE_PTR out, CK_ULONG_PTR length), (session, in, inLength, out, length), BYTES(out, length)) \
	F(C_GenerateKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR key), (session, mechanism, template, n, key), KEY(session, template, n, key)) \
	F(C_GenerateKeyPair, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR publicTemplate, CK_ULONG publicN, CK_ATTRIBUTE_PTR privateTemplate, CK_ULONG privateN, CK_OBJECT_HANDLE_PTR public, CK_OBJECT_HANDLE_PTR private), (session, mechanism, publicTemplate, publicN, privateTemplate, privateN, public, private), VALUE(private)) \
	F(C_WrapKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE wrapping, CK_OBJECT_HANDLE key, CK_BYTE_PTR out, CK_ULONG_PTR length), (session, mechanism, wrapping, key, out, length), BYTES(out, length)) \
	F(C_UnwrapKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE unwrapping, CK_BYTE_PTR in, CK_ULONG inLength, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR key), (session, mechanism, unwrapping, in, inLength, template, n, key), KEY(session, template, n, key)) \
	F(C_DeriveKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE base, CK_ATTRIBUTE_PTR template, CK_ULONG n, CK_OBJECT_HANDLE_PTR key), (session, mechanism, base, template, n, key), KEY(session, template, n, key)) \
	F(C_GenerateRandom, (CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG n), (session, out, n), RANDOM(out, n))
