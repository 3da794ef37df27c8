package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Places in the node. They are in memory and end with it.
const (
	stateDir   = "/run/keyconvoy-e2e" // configurations, certificates, etcd's data
	kubeconfig = stateDir + "/admin.kubeconfig"
)

// serve starts the node and runs the command on it.
func serve(o options) (int, error) {
	if err := setUp(); err != nil {
		return 1, err
	}
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	n := &node{options: o, end: end}
	if err := n.start(ctx); err != nil {
		return 1, fmt.Errorf("the node did not start; see the logs in %s: %w", o.logs, err)
	}

	cmd := exec.CommandContext(ctx, o.command[0], o.command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "NODE_LOGS="+o.logs,
		"PATH="+os.Getenv("KUBEBUILDER_ASSETS")+":"+o.binaries+":"+os.Getenv("PATH"))
	err := cmd.Run()
	if ctx.Err() != nil {
		return 1, context.Cause(ctx)
	}
	return exitCode(err)
}

// node is the processes of a node.
type node struct {
	options
	end context.CancelCauseFunc // ends the node with an error
}

// start starts the processes in the order in which they need each other, and returns when the node is ready for pods.
func (n *node) start(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "Starting a node …")
	if err := os.MkdirAll(n.logs, 0o750); err != nil {
		return err
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	plane, err := n.startControlPlane()
	if err != nil {
		return err
	}
	if err := n.startControllers(plane); err != nil {
		return err
	}
	if err := n.startKubelet(plane); err != nil {
		return err
	}
	if err := waitReady(ctx, plane.admin); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "The node is ready; its logs are in %s.\n", n.logs)
	return nil
}

// run starts a process of the node. It has to run as long as the node.
func (n *node) run(name string, args ...string) error {
	log, err := n.openLog(name)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(n.binaries, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	// containerd finds its shim there.
	cmd.Env = append(os.Environ(), "PATH="+n.binaries+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the command
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		n.end(fmt.Errorf("%s has ended (%v); see its log %s", name, cmd.Wait(), log.Name())) //nolint:errorlint // the error may be nil
	}()
	return nil
}

func (n *node) openLog(name string) (*os.File, error) {
	return os.Create(filepath.Join(n.logs, name+".log"))
}
