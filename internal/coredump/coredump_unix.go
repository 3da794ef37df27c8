//go:build unix && !linux

package coredump

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Disable keeps keys and PINs out of core dumps, until the process ends.
func Disable() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("disabling core dumps (RLIMIT_CORE): %w", err)
	}
	return nil
}
