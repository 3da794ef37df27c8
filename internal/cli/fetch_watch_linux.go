package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/keyconvoy/keyconvoy/internal/fetch"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// maxFetchWait is the longest time between two attempts to replace the file.
const maxFetchWait = time.Minute

// keep writes the file, and replaces it whenever the DataKey is replaced, until ctx ends. Only the first attempt may fail:
// later, the pod has a data key and goes on with it.
func (o *fetchOptions) keep(cmd *cobra.Command, client *fetch.Client) error {
	ctx := cmd.Context()
	digest, err := o.firstDigest(ctx, client)
	changed := make(chan struct{}, 1) // has something while the program has to be told
	if err == nil {
		err = o.fetchTo(ctx, client, digest, func(ctx context.Context, text redact.Bytes) error {
			if o.replacesOther(text) { // it was replaced while this command did not run
				changed <- struct{}{}
			}
			return o.write(ctx, text)
		})
	}
	if err != nil {
		return err
	}
	var telling sync.WaitGroup
	telling.Go(func() { o.tellAll(ctx, cmd, changed) })
	defer telling.Wait()
	for backoff := newBackoff(); ctx.Err() == nil; {
		next, err := o.replace(ctx, cmd, client, digest)
		if err == nil {
			digest, backoff = next, newBackoff()
			select {
			case changed <- struct{}{}:
			default: // the program is told of both at once
			}
			continue
		}
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "error: %s\nThe file keeps the former data key. The command tries again.\n", err)
		select {
		case <-ctx.Done():
		case <-time.After(backoff.Step()):
		}
	}
	return nil // it was told to end
}

func newBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.5, Steps: math.MaxInt32, Cap: maxFetchWait}
}

// firstDigest returns the digest of the data key that the DataKey has now, or soon.
func (o *fetchOptions) firstDigest(ctx context.Context, client *fetch.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	digest, err := client.Next(ctx, o.reference(), "")
	return digest, withHint(err)
}

func (o *fetchOptions) reference() types.NamespacedName {
	return types.NamespacedName{Namespace: o.namespace, Name: o.dataKey}
}

// maxSpread is how long after a replacement the data key is fetched at the latest, so that not all pods ask at once.
const maxSpread = 2 * time.Second

// replace waits for another data key than that with the digest, and replaces the file.
func (o *fetchOptions) replace(ctx context.Context, cmd *cobra.Command, client *fetch.Client, digest string) (string, error) {
	next, err := client.Next(ctx, o.reference(), digest)
	if err != nil {
		return "", withHint(err)
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(rand.N(maxSpread)): //nolint:gosec // spreads load; not security-relevant
	}
	if err := o.fetchTo(ctx, client, next, o.write); err != nil {
		return "", err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "The DataKey %s was replaced: %s has the new data key.\n", o.dataKey, o.output)
	return next, nil
}

// replacesOther reports whether the file exists with another content.
func (o *fetchOptions) replacesOther(text redact.Bytes) bool {
	file, err := os.Open(o.output)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, int64(len(text))+1))
	defer redact.Bytes(content).Wipe()
	return err != nil || !bytes.Equal(content, text)
}

// tellAll tells the program of each change until ctx ends. What fails is tried again, so that the program does not continue
// with the former data key.
func (o *fetchOptions) tellAll(ctx context.Context, cmd *cobra.Command, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		for backoff := newBackoff(); ; {
			err := o.tell(ctx, cmd)
			if err == nil || ctx.Err() != nil {
				break
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "error: %s\nThe file has the new data key. The command tries again to tell the program.\n", err)
			select {
			case <-ctx.Done():
			case <-time.After(backoff.Step()):
			}
		}
	}
}

// tell runs the command, or sends the signal.
func (o *fetchOptions) tell(ctx context.Context, cmd *cobra.Command) error {
	switch {
	case o.then:
		ctx, cancel := context.WithTimeout(ctx, o.timeout)
		defer cancel()
		command := exec.CommandContext(ctx, o.command[0], o.command[1:]...)
		command.Stdout, command.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
		err := command.Run()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("not done after %s (--timeout)", o.timeout)
		}
		if err != nil {
			return fmt.Errorf("running %s: %w", o.command[0], err)
		}
	case o.signal != "":
		return signalProcesses(o.process, o.signal)
	}
	return nil
}

func signalNamed(name string) (unix.Signal, error) {
	number := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if number == 0 {
		return 0, usagef("--signal %s is not a signal\nhint: use a name such as HUP", name)
	}
	return number, nil
}

// signalProcesses sends a signal to the processes of a program, except to those that another process of the program has
// started: a server tells its workers itself.
func signalProcesses(program, name string) error {
	number, err := signalNamed(name)
	if err != nil {
		return err
	}
	parents, err := processesOf(program)
	if err != nil {
		return err
	}
	sent := 0
	for pid, parent := range parents {
		if _, isWorker := parents[parent]; isWorker {
			continue
		}
		switch err := unix.Kill(pid, number); {
		case errors.Is(err, unix.ESRCH): // it has ended
			continue
		case err != nil:
			return fmt.Errorf("sending SIG%s to process %d of %s: %w", strings.TrimPrefix(strings.ToUpper(name), "SIG"), pid, program, err)
		}
		sent++
	}
	if sent == 0 {
		return fmt.Errorf("no process of %s was found\nhint: set shareProcessNamespace: true in the pod, and --process to the name of the program", program)
	}
	return nil
}

// processesOf returns the processes of a program, and the parent of each. The name of the program is that of its file or, if
// that cannot be read, the first argument.
func processesOf(program string) (parents map[int]int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	parents = map[int]int{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() || programIn(dir) != program {
			continue
		}
		parents[pid] = parentIn(dir)
	}
	return parents, nil
}

func programIn(dir string) string {
	if file, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		return filepath.Base(strings.TrimSuffix(file, " (deleted)"))
	}
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "" // it has ended
	}
	first, _, _ := strings.Cut(string(line), "\x00")
	return filepath.Base(first)
}

// parentIn returns the parent of a process: the second field after the name, which is in parentheses (proc_pid_stat(5)).
func parentIn(dir string) int {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}
