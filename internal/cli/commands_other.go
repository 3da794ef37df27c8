//go:build !linux

package cli

import "github.com/spf13/cobra"

// podCommands run in pods and on nodes, which are Linux.
func podCommands() []*cobra.Command { return nil }
