// A PKCS#11 library that forwards every call to the library in FAULTY_LIBRARY, and fails those that the file in
// FAULTY_CONTROL says. Package faulty writes that file.

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

// The platform-specific macros that the standard requires.
#define CK_PTR *
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

#include "control.h"

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST next; // real, with functions that count logins and sessions
static CK_FUNCTION_LIST ours;
static struct faulty_control *control;

#define LOAD(from) __atomic_load_n(&(from), __ATOMIC_SEQ_CST)
#define ADD(to, n) __atomic_add_fetch(&(to), (n), __ATOMIC_SEQ_CST)

// readFaults copies the current faults, and returns their version.
static uint64_t readFaults(struct faulty_fault *faults) {
	for (;;) {
		uint64_t version = LOAD(control->version);
		if (version % 2 == 0) {
			memcpy(faults, control->faults, sizeof control->faults);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			if (LOAD(control->version) == version)
				return version;
		}
	}
}

// output is what a function returns to its caller.
struct output {
	CK_BYTE *at;             // NULL for a function that returns a code only, and for a caller that asks for a length
	CK_ULONG size;           // in bytes, or of one element of a list
	CK_ULONG *length;        // the number of bytes or elements, if it varies
	CK_ATTRIBUTE *attributes; // that are read
	CK_ULONG n;
	int list;      // of handles or slots
	int query;     // the caller asks for a length only
	int random;    // random bytes
	// For functions that make a key:
	CK_SESSION_HANDLE session;
	CK_ATTRIBUTE *template;
	CK_OBJECT_HANDLE *key;
};

#define NOTHING {0}
#define VALUE(p) {.at = (CK_BYTE *)(p), .size = sizeof *(p)}
#define BYTES(p, l) {.at = (p), .size = 1, .length = (l), .query = (p) == NULL}
#define LIST(p, l) {.at = (CK_BYTE *)(p), .size = sizeof *(p), .length = (l), .list = 1, .query = (p) == NULL}
#define ATTRIBUTES(a, count) {.attributes = (a), .n = (count), .query = (count) > 0 && (a)[0].pValue == NULL}
#define RANDOM(p, count) {.at = (p), .size = (count), .random = 1}
#define KEY(s, a, count, p) {.at = (CK_BYTE *)(p), .size = sizeof *(p), .session = (s), .template = (a), .n = (count), .key = (p)}

// changeBytes flips a bit, or replaces all bytes by random ones.
static void changeBytes(CK_BYTE *at, CK_ULONG size, int all) {
	if (at == NULL || size == 0 || size == CK_UNAVAILABLE_INFORMATION)
		return;
	if (!all)
		at[0] ^= 1;
	else if (getrandom(at, size, 0) < 0)
		memset(at, 0x5a, size);
}

// changeOutput changes each result.
static void changeOutput(struct output out, int all) {
	if (out.attributes != NULL)
		for (CK_ULONG i = 0; i < out.n; i++)
			changeBytes(out.attributes[i].pValue, out.attributes[i].ulValueLen, all);
	else if (out.list)
		for (CK_ULONG i = 0; i < *out.length; i++)
			changeBytes(out.at + i * out.size, out.size, all);
	else
		changeBytes(out.at, out.length != NULL ? *out.length : out.size, all);
}

// attribute returns the value of an attribute in a template, or otherwise.
static CK_ULONG attribute(struct output out, CK_ATTRIBUTE_TYPE type, CK_ULONG otherwise) {
	for (CK_ULONG i = 0; i < out.n; i++)
		if (out.template[i].type == type && out.template[i].ulValueLen == sizeof(CK_ULONG))
			return *(CK_ULONG *)out.template[i].pValue;
	return otherwise;
}

// otherKey replaces a new secret key by a random one with the same attributes.
static CK_RV otherKey(struct output out) {
	if (attribute(out, CKA_CLASS, CKO_SECRET_KEY) != CKO_SECRET_KEY)
		return CKR_OK;
	CK_ULONG length = attribute(out, CKA_VALUE_LEN, 0);
	CK_ATTRIBUTE template[out.n + 1];
	CK_ULONG n = 0;
	for (CK_ULONG i = 0; i < out.n; i++) {
		if (out.template[i].type == CKA_VALUE)
			length = out.template[i].ulValueLen;
		else if (out.template[i].type != CKA_VALUE_LEN)
			template[n++] = out.template[i];
	}
	if (length == 0)
		length = 32;
	template[n++] = (CK_ATTRIBUTE){CKA_VALUE_LEN, &length, sizeof length};
	CK_ULONG type = attribute(out, CKA_KEY_TYPE, CKK_GENERIC_SECRET);
	CK_MECHANISM mechanism = {type == CKK_AES ? CKM_AES_KEY_GEN : CKM_GENERIC_SECRET_KEY_GEN, NULL, 0};
	CK_RV rv = real->C_DestroyObject(out.session, *out.key);
	if (rv == CKR_OK)
		rv = real->C_GenerateKey(out.session, &mechanism, template, n, out.key);
	return rv;
}

// isDue returns whether this call fails by fault i, and counts it.
static int isDue(const struct faulty_fault *fault, int i, enum faulty_function function, struct output out) {
	int garbage = fault->kind == FAULTY_GARBAGE || fault->kind == FAULTY_OTHER;
	if (fault->kind == FAULTY_NONE || (garbage && out.query))
		return 0;
	uint64_t number = LOAD(control->numbered[i]);
	if (fault->counted >> function & 1)
		number = ADD(control->numbered[i], 1);
	if (!(fault->functions >> function & 1) || number < fault->first)
		return 0;
	if (fault->every > 0 && (number - fault->first) % fault->every != 0)
		return 0;
	uint64_t fired = LOAD(control->fired[i]);
	do {
		if (fault->times > 0 && fired >= fault->times)
			return 0;
	} while (!__atomic_compare_exchange_n(&control->fired[i], &fired, fired + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
	return 1;
}

// call is one call of a function. fault is NULL if it does not fail.
struct call {
	struct faulty_fault faults[FAULTY_FAULTS];
	uint64_t version;
	const struct faulty_fault *fault;
};

// begin counts a call and decides whether it fails.
static void begin(struct call *call, enum faulty_function function, struct output out) {
	call->version = readFaults(call->faults);
	call->fault = NULL;
	if (!out.query)
		ADD(control->calls[function], 1);
	for (int i = 0; i < FAULTY_FAULTS; i++)
		if (isDue(&call->faults[i], i, function, out) && call->fault == NULL)
			call->fault = &call->faults[i];
}

static void hang(uint64_t version) {
	struct timespec pause = {0, 1000000};
	while (LOAD(control->version) == version)
		nanosleep(&pause, NULL);
}

static int *volatile nowhere;

// happen lets a fault happen that is no garbage. It returns the code of the function, if the process goes on.
static CK_RV happen(const struct call *call, CK_RV rv) {
	switch (call->fault->kind) {
	case FAULTY_SEGV:
		*nowhere = 0;
		break;
	case FAULTY_KILL:
		kill(getpid(), SIGKILL);
		for (;;)
			pause();
	case FAULTY_EXIT:
		exit(3);
	case FAULTY_HANG:
		hang(call->version);
		break;
	case FAULTY_CODE:
		return call->fault->parameter;
	}
	return rv;
}

// before lets a fault happen before the real call. It returns whether the real call is left out, and sets rv then.
static int before(const struct call *call, struct output out, CK_RV *rv) {
	*rv = CKR_OK;
	if (call->fault == NULL || call->fault->inside)
		return 0;
	switch (call->fault->kind) {
	case FAULTY_GARBAGE:
		if (out.list)
			*out.length = 0;
		else if (out.random)
			memset(out.at, 0, out.size);
		else if (out.length != NULL || out.attributes != NULL)
			return 0; // the real call knows the length of the result
		else
			changeOutput(out, 1);
		return 1;
	case FAULTY_LEAK:
		return 1;
	case FAULTY_OTHER:
		return 0;
	}
	*rv = happen(call, CKR_OK);
	return call->fault->kind != FAULTY_HANG;
}

// after lets a fault happen after the real call, and returns the code of the function.
static CK_RV after(const struct call *call, struct output out, CK_RV rv) {
	if (call->fault == NULL)
		return rv;
	if (rv == CKR_OK && call->fault->kind == FAULTY_OTHER && out.key != NULL)
		return otherKey(out);
	if (rv == CKR_OK && call->fault->kind == FAULTY_GARBAGE)
		changeOutput(out, !call->fault->inside);
	return call->fault->inside ? happen(call, rv) : rv;
}

#define FORWARD(function, parameters, arguments, outputs) \
	static CK_RV function##_ours parameters { \
		struct output results = outputs; \
		struct call call; \
		CK_RV rv; \
		begin(&call, FAULTY_##function, results); \
		return before(&call, results, &rv) ? rv : after(&call, results, next.function arguments); \
	}

FAULTY_FUNCTIONS(FORWARD)

// login counts which PINs reach the token.
static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG n) {
	int right = n == control->pinLength && memcmp(pin, control->pin, n) == 0;
	ADD(*(right ? &control->rightPINs : &control->wrongPINs), 1);
	CK_RV rv = real->C_Login(session, user, pin, n);
	if (rv == CKR_PIN_INCORRECT || rv == CKR_PIN_INVALID || rv == CKR_PIN_LEN_RANGE || rv == CKR_PIN_EXPIRED || rv == CKR_PIN_LOCKED)
		ADD(control->refusedPINs, 1);
	return rv;
}

static uint64_t sessions; // that are open in this process

// isFull returns whether a fault forbids that many sessions, and counts that.
static int isFull(uint64_t n) {
	struct faulty_fault faults[FAULTY_FAULTS];
	readFaults(faults);
	for (int i = 0; i < FAULTY_FAULTS; i++) {
		int limited = faults[i].kind == FAULTY_LIMIT || (faults[i].kind == FAULTY_LEAK && faults[i].parameter > 0);
		if (limited && n > faults[i].parameter) {
			ADD(control->fired[i], 1);
			return 1;
		}
	}
	return 0;
}

static CK_RV openSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR session) {
	CK_RV rv = isFull(ADD(sessions, 1)) ? CKR_SESSION_COUNT : real->C_OpenSession(slot, flags, application, notify, session);
	if (rv != CKR_OK)
		ADD(sessions, -1);
	return rv;
}

static CK_RV closeSession(CK_SESSION_HANDLE session) {
	CK_RV rv = real->C_CloseSession(session);
	if (rv == CKR_OK)
		ADD(sessions, -1);
	return rv;
}

static CK_RV finalize(CK_VOID_PTR reserved) {
	CK_RV rv = real->C_Finalize(reserved);
	if (rv == CKR_OK)
		__atomic_store_n(&sessions, 0, __ATOMIC_SEQ_CST);
	return rv;
}

static int mapControl(void) {
	int file = open(getenv("FAULTY_CONTROL"), O_RDWR | O_CLOEXEC);
	if (file < 0)
		return 0;
	control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	return control != MAP_FAILED;
}

#define REPLACE(function, parameters, arguments, outputs) ours.function = function##_ours;

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	if (real == NULL) {
		void *library = dlopen(getenv("FAULTY_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
		if (library == NULL || !mapControl())
			return CKR_GENERAL_ERROR;
		CK_C_GetFunctionList get = (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
		if (get == NULL || get(&real) != CKR_OK)
			return CKR_GENERAL_ERROR;
		next = ours = *real;
		next.C_Login = login;
		next.C_OpenSession = openSession;
		next.C_CloseSession = closeSession;
		next.C_Finalize = finalize;
		FAULTY_FUNCTIONS(REPLACE)
		__atomic_store_n(&control->process, getpid(), __ATOMIC_SEQ_CST);
	}
	*list = &ours;
	return CKR_OK;
}
