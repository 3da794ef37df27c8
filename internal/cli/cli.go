// Package cli is Keyconvoy's command line: the operator (manager), the gateway, wrap, unwrap and fetch for those who import and
// receive keys, and module check for those who have an HSM. Cryptography is in internal/wrapping.
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

	"github.com/keyconvoy/keyconvoy/internal/coredump"
)

// version is set by the linker (make build).
var version = "dev"

// exitError ends this process with the exit code of a program that it has run, and that has printed what there is to say.
type exitError int

// Error implements error.
func (e exitError) Error() string { return fmt.Sprintf("the program exited with %d", int(e)) }

// The exit codes. They are documented in the root command's help.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const rootLong = `Keyconvoy moves keys from one HSM to another, or to a pod, always encrypted.

  manager       runs the operator, which reconciles the objects of keyconvoy.io in a cluster.
  gateway       serves the documented key management API to its official clients.
  wrap          encrypts your key material for an ImportedKey.
  unwrap        decrypts a data key that an ExportedDataKey exported for you.
  fetch         gets a data key for the pod in which it runs (Linux).
  csi           runs the CSI node plugin, which gives pods volumes with a data key (Linux).
  module check  checks whether a token of a PKCS#11 module can be a key store.

To use it as the kubectl plugin "kubectl keyconvoy", put the binary, or a link to it, on the PATH as
kubectl-keyconvoy. A second link, kubectl_complete-keyconvoy, adds shell completion.

Exit codes: 0 success, 1 failure, 2 usage error. Errors are printed to standard error.`

// Main runs the command line of this process and returns its exit code.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal requests an orderly shutdown; the second ends the process.
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
}

// run runs one command line; args[0] is the name under which the binary was called.
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
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
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
		Short:         "Move keys between HSMs, always encrypted",
		Long:          rootLong,
		Version:       version,
		SilenceErrors: true, // run prints them
		SilenceUsage:  true,
		// Before any command reads a key or a PIN.
		PersistentPreRunE: func(*cobra.Command, []string) error { return coredump.Disable() },
	}
	root.AddCommand(newManagerCommand(), newGatewayCommand(), newWrapCommand(), newUnwrapCommand(), newModuleCommand(), newLibraryCommand(), newReadSecretCommand())
	root.AddCommand(podCommands()...)
	if calledAs(program, pluginName) {
		asPlugin(root)
	}
	return root
}

// asPlugin makes the help use the name "kubectl keyconvoy".
func asPlugin(root *cobra.Command) {
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl keyconvoy"}
	// A completion script would complete "keyconvoy", but the user types "kubectl keyconvoy".
	root.CompletionOptions.HiddenDefaultCmd = true
	for _, command := range below(root) {
		command.Example = strings.ReplaceAll(command.Example, "keyconvoy ", "kubectl keyconvoy ")
	}
}

// below returns all commands below a command.
func below(parent *cobra.Command) (all []*cobra.Command) {
	for _, command := range parent.Commands() {
		all = append(append(all, command), below(command)...)
	}
	return all
}

// usageError is an error in the command line that cobra does not detect.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// watchStart reports whether a command began to run. An error before that is a usage error, for which cobra has no
// type.
func watchStart(root *cobra.Command) *bool {
	started := new(bool)
	for _, command := range below(root) {
		if work := command.RunE; work != nil {
			command.RunE = func(cmd *cobra.Command, args []string) error {
				*started = true
				return work(cmd, args)
			}
		}
	}
	return started
}
