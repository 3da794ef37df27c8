//go:build cgo && linux

package process

/*
#include <signal.h>

// dieOfFaults restores the default action of the signals that a fault in the library raises.
static void dieOfFaults(void) {
	const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
	for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++)
		signal(signals[i], SIG_DFL);
}
*/
import "C"

// dieOfFaults has the process end by the signal of a fault, so that its parent can name the signal. The handlers of the Go runtime
// would print stacks instead, with parts of the memory, and exit with status 2.
func dieOfFaults() { C.dieOfFaults() }
