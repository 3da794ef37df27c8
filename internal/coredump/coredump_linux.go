// Package coredump prevents core dumps.
package coredump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Disable keeps keys and PINs out of core dumps until the process ends. RLIMIT_CORE also applies to child
// processes, but not if the kernel pipes dumps into a program (core(5)). PR_SET_DUMPABLE prevents all dumps, and
// prevents other processes of the same user from attaching or reading memory.
func Disable() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("disabling core dumps (RLIMIT_CORE): %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("disabling core dumps (PR_SET_DUMPABLE): %w", err)
	}
	return nil
}
