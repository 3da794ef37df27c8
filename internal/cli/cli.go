// Package cli is Keyconvoy's command line: the operator (manager), and wrap and unwrap for the two
// ends of a key's journey. It knows people and Kubernetes and leaves cryptography to internal/wrapping.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker (make build).
var version = "dev"

// The exit codes. They are documented in the root command's help.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const rootLong = `Keyconvoy carries keys between cryptographic modules without letting them out in the clear.

  manager   is the operator: it runs in a cluster and serves the objects of keyconvoy.io.
  wrap      encrypts key material of yours for an ImportedKey.
  unwrap    opens a data key that an ExportedDataKey wrote for you.

As a kubectl plugin: put the binary, or a link to it, on the PATH as kubectl-keyconvoy; it is then
"kubectl keyconvoy". A second link, kubectl_complete-keyconvoy, gives it shell completion.

Exit codes: 0 done; 1 failed; 2 used wrongly (unknown or missing flags and arguments). What went wrong
is said on standard error.`

// Main runs the command line of this process and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks for an orderly end; the next one is the system's to handle.
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
}

// run runs one command line; args[0] is the name that the binary was called by.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot(args[0])
	root.SetArgs(arguments(args))
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	started := watchStart(root)

	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	fmt.Fprintf(errOut, "error: %s\n", err)
	var usage usageError
	if *started && !errors.As(err, &usage) {
		return exitFailed
	}
	fmt.Fprintf(errOut, "See %s --help\n", command.CommandPath())
	return exitUsage
}

// The names under which kubectl finds a plugin and the program that completes its arguments.
const (
	pluginName           = "kubectl-keyconvoy"
	pluginCompletionName = "kubectl_complete-keyconvoy"
)

func arguments(args []string) []string {
	if calledAs(args[0], pluginCompletionName) {
		return append([]string{cobra.ShellCompRequestCmd}, args[1:]...)
	}
	return args[1:]
}

func calledAs(program, name string) bool {
	return strings.TrimSuffix(filepath.Base(program), ".exe") == name
}

func newRoot(program string) *cobra.Command {
	root := &cobra.Command{
		Use:           "keyconvoy",
		Short:         "Carry keys between cryptographic modules",
		Long:          rootLong,
		Version:       version,
		SilenceErrors: true, // run prints them
		SilenceUsage:  true,
	}
	root.AddCommand(newManagerCommand(), newWrapCommand(), newUnwrapCommand())
	if calledAs(program, pluginName) {
		asPlugin(root)
	}
	return root
}

// asPlugin makes the help speak of "kubectl keyconvoy".
func asPlugin(root *cobra.Command) {
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl keyconvoy"}
	// A script for the shell would complete "keyconvoy", which is not what is typed.
	root.CompletionOptions.HiddenDefaultCmd = true
	for _, command := range root.Commands() {
		command.Example = strings.ReplaceAll(command.Example, "keyconvoy ", "kubectl keyconvoy ")
	}
}

// usageError is an error of whoever called the command that cobra did not find.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// watchStart tells whether a command began to work: an error before that is one of usage, since
// cobra has no type for those.
func watchStart(root *cobra.Command) *bool {
	started := new(bool)
	for _, command := range root.Commands() {
		if work := command.RunE; work != nil {
			command.RunE = func(cmd *cobra.Command, args []string) error {
				*started = true
				return work(cmd, args)
			}
		}
	}
	return started
}
