package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// With --exec there are two processes. The first one starts the second, forwards signals to it, and waits for it. The second
// one fetches the data key, writes it into a pipe that the first has made, and becomes the program. So no process that
// continues to run has had the private key or the data key in its memory.

const (
	// handOverFlag makes the command the second process.
	handOverFlag = "hand-over"
	// keyDescriptorVariable names the end of the pipe from which the program reads.
	keyDescriptorVariable = "KEYCONVOY_KEY_FD"
)

// The ends of the pipe in the second process: the first of its files after the standard ones.
const (
	keyReader = 3
	keyWriter = 4
)

// supervise starts the second process, forwards signals to it, and returns its exit code as an exitError.
func (o *fetchOptions) supervise(cmd *cobra.Command) error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	defer signal.Stop(signals)
	child, err := startSecond(cmd, o.command)
	if err != nil {
		return err
	}
	go func() {
		for s := range signals {
			if number, ok := s.(unix.Signal); ok && isForwarded(number) {
				_ = unix.Kill(child, number) // it may have ended
			}
		}
	}()
	status, err := reap(child)
	switch {
	case err != nil:
		return err
	case status.Signaled():
		return exitError(128 + int(status.Signal())) // as shells do
	case status.ExitStatus() != 0:
		return exitError(status.ExitStatus())
	}
	return nil
}

// startSecond starts this command again, with a pipe.
func startSecond(cmd *cobra.Command, program []string) (pid int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	defer w.Close()
	args := []string{os.Args[0], cmd.Name(), "--" + handOverFlag}
	cmd.Flags().Visit(func(f *pflag.Flag) { args = append(args, "--"+f.Name+"="+f.Value.String()) })
	second := &exec.Cmd{
		Path: process.SelfCommand, Args: append(append(args, "--"), program...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{r, w},
	}
	if err := second.Start(); err != nil {
		return 0, err
	}
	pid = second.Process.Pid
	return pid, second.Process.Release() // reap waits for it
}

// isForwarded reports whether a signal is for the program. Child processes are this process's own matter, and Go's runtime
// uses SIGURG to preempt goroutines.
func isForwarded(s unix.Signal) bool {
	return s != unix.SIGCHLD && s != unix.SIGURG && s != unix.SIGPIPE
}

// reap waits until a child has ended. As process 1 of a container, this one is also the parent of those whose parents have
// ended.
func reap(child int) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("waiting for the program: %w", err)
		case pid == child:
			return status, nil
		}
	}
}

// becomeProgram fetches the data key into the pipe, and then executes the program in this process.
func (o *fetchOptions) becomeProgram(ctx context.Context, client *fetch.Client) error {
	path, err := exec.LookPath(o.command[0])
	if err != nil {
		return err
	}
	unix.CloseOnExec(keyWriter)
	pipe := os.NewFile(keyWriter, "the pipe for the data key")
	if err := o.fetchTo(ctx, client, "", func(_ context.Context, text redact.Bytes) error { return fill(pipe, text) }); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := unix.SetNonblock(keyReader, false); err != nil { // Go's pipes do not block
		return err
	}
	environment := append(withoutVariable(os.Environ(), keyDescriptorVariable), fmt.Sprintf("%s=%d", keyDescriptorVariable, keyReader))
	return fmt.Errorf("executing %s: %w", path, unix.Exec(path, o.command, environment))
}

// fill writes the data key into the pipe, whose buffer is longer than any data key, and closes the end, so that the reader
// sees where the data key ends.
func fill(pipe *os.File, text redact.Bytes) error {
	_, err := pipe.Write(text)
	return errors.Join(err, pipe.Close())
}

func withoutVariable(environment []string, name string) []string {
	kept := make([]string, 0, len(environment)+1)
	for _, variable := range environment {
		if !strings.HasPrefix(variable, name+"=") {
			kept = append(kept, variable)
		}
	}
	return kept
}
