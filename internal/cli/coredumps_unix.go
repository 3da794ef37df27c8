//go:build unix && !linux

package cli

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// disableCoreDumps keeps keys and PINs out of core dumps, until the process ends.
func disableCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("disabling core dumps (RLIMIT_CORE): %w", err)
	}
	return nil
}
