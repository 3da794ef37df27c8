package cli

import "github.com/spf13/cobra"

// podCommands run in pods and on nodes.
func podCommands() []*cobra.Command { return []*cobra.Command{newFetchCommand(), newCSICommand()} }
