// Node runs a command on a Kubernetes node of its own: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
// kubelet and containerd, in namespaces that end with the command.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

const usage = `Run a command on a Kubernetes node that exists as long as the command.

Usage:
  node --binaries DIR --logs DIR COMMAND [ARGUMENT…]

The node has its own network, mounts, processes and IPC. Of the machine it uses the kernel, the files,
which it does not change, and a cgroup. When the command ends, or this program is killed, all processes
of the node end and its data is lost. Only the logs remain.

The command runs in these namespaces, as root, with KUBECONFIG set to the credentials of an administrator
and with kubectl and ctr on its PATH.

kube-apiserver, etcd and kubectl come from $KUBEBUILDER_ASSETS.

Flags:
  --binaries DIR   the directory of kube-controller-manager, kube-scheduler, kubelet, containerd,
                   containerd-shim-runc-v2, ctr and pause
  --logs DIR       where the logs of the processes are written
`

// The commands that this program starts itself with. They are not documented for users.
const (
	initCommand  = "init"  // process 1 of the node
	serveCommand = "serve" // starts the node, and the command on it
)

// options are what the node is started with.
type options struct {
	binaries string
	logs     string
	cgroup   string // the name of the cgroup of all containers
	command  []string
}

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "node:", err)
		}
		code = 1
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	stage := ""
	if len(args) > 0 && (args[0] == initCommand || args[0] == serveCommand) {
		stage, args = args[0], args[1:]
	}
	o, err := parse(args)
	if err != nil {
		return 1, err
	}
	switch stage {
	case initCommand:
		return reap(o)
	case serveCommand:
		return serve(o)
	default:
		return isolate(o)
	}
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("node", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.StringVar(&o.binaries, "binaries", "", "")
	flags.StringVar(&o.logs, "logs", "", "")
	flags.StringVar(&o.cgroup, "cgroup", "", "")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.command = flags.Args()
	if o.binaries == "" || o.logs == "" || len(o.command) == 0 {
		flags.Usage()
		return o, errors.New("--binaries, --logs and a command are required")
	}
	var err error
	if o.binaries, err = filepath.Abs(o.binaries); err != nil {
		return o, err
	}
	o.logs, err = filepath.Abs(o.logs)
	return o, err
}

// isolate runs the init stage in new namespaces, and removes the cgroup afterwards.
func isolate(o options) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("a node needs root, for namespaces, mounts and cgroups")
	}
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return 1, errors.New("KUBEBUILDER_ASSETS, the directory of kube-apiserver, etcd and kubectl, is not set; make e2e sets it")
	}
	if err := removeStaleCgroups(); err != nil {
		return 1, err
	}
	o.cgroup = cgroupName(os.Getpid())
	if err := createCgroup(o.cgroup); err != nil {
		return 1, err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	cmd, err := o.stage(ctx, initCommand)
	if err != nil {
		return 1, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		// When process 1 of a PID namespace ends, the kernel kills all others.
		Pdeathsig: syscall.SIGKILL,
	}
	// The kernel sends Pdeathsig when the thread ends that started the process.
	runtime.LockOSThread()
	code, err := exitCode(cmd.Run())
	return code, errors.Join(err, removeCgroup(o.cgroup))
}

// stage returns this program as another stage.
func (o options) stage(ctx context.Context, name string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{name, "--binaries=" + o.binaries, "--logs=" + o.logs, "--cgroup=" + o.cgroup, "--"}
	cmd := exec.CommandContext(ctx, self, append(args, o.command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd, nil
}

// exitCode tells a command that failed from one that could not be run.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	default:
		return 1, err
	}
}

// reap starts the serve stage and collects the processes whose parents have ended, which is the duty of process 1.
func reap(o options) (int, error) {
	cmd, err := o.stage(context.Background(), serveCommand)
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("waiting for processes: %w", err)
		case pid == cmd.Process.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == cmd.Process.Pid:
			return 1, fmt.Errorf("the node was ended by the signal %s", status.Signal())
		}
	}
}
