// What the tests and the library share: a file that both map. It has the faults, and what was counted. So a fault
// takes effect at once, and a process that crashed leaves what the next one must know.

#include <stdint.h>

#include "functions.h"

#define FAULTY_INDEX(name, parameters, arguments, output) FAULTY_##name,
enum faulty_function { FAULTY_FUNCTIONS(FAULTY_INDEX) FAULTY_COUNT };

enum faulty_kind {
	FAULTY_NONE,
	FAULTY_SEGV,    // SIGSEGV
	FAULTY_KILL,    // SIGKILL
	FAULTY_EXIT,    // exit(3)
	FAULTY_HANG,    // until the fault ends
	FAULTY_CODE,    // return the code in parameter
	FAULTY_GARBAGE, // return CKR_OK: before the call, without an effect; inside, with a bit of the output changed
	FAULTY_OTHER,   // return CKR_OK and a key with another value
	FAULTY_LEAK,    // close no session, and open no more than parameter; 0 means no limit
	FAULTY_LIMIT,   // open no more than parameter sessions
};

// A fault. The calls of the functions in counted are numbered from 1. The functions in functions fail from number first on,
// every so many calls, and the given number of times; 0 means always.
struct faulty_fault {
	uint64_t kind;
	uint64_t inside; // after the real call has taken effect
	uint64_t functions, counted;
	uint64_t first, every, times;
	uint64_t parameter;
};

// A fault is the first of those that apply to a call.
#define FAULTY_FAULTS 2

struct faulty_control {
	// Odd while the tests write the faults; another number for each change.
	uint64_t version;
	struct faulty_fault faults[FAULTY_FAULTS];
	uint64_t numbered[FAULTY_FAULTS]; // the calls of the functions in counted, since the last change
	uint64_t fired[FAULTY_FAULTS];    // how often the fault happened

	// Counts of all calls, except those that only ask for the length of a result.
	uint64_t calls[FAULTY_COUNT];
	// Calls of C_Login with the PIN below, with another one, and those that the real library rejected.
	uint64_t rightPINs, wrongPINs, refusedPINs;
	uint64_t process; // that loaded the library last
	uint64_t pinLength;
	uint8_t pin[64];
};
