// Controlplane runs a Kubernetes control plane on the loopback interface: a real kube-apiserver on
// a real etcd, and nothing else. Tests, the demo and developers use it.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

const usage = `Run a Kubernetes control plane (kube-apiserver and etcd) on the loopback interface.

Usage:
  controlplane up   [--kubeconfig FILE] [--fsync]
  controlplane down [--kubeconfig FILE]

up starts it in the background, waits until it is ready, writes FILE with the credentials of an
administrator, and prints the line that makes kubectl use it:

  eval "$(controlplane up)"

If it is running already, up only prints that line. down stops it and deletes its data.

The binaries come from $KUBEBUILDER_ASSETS. RBAC is on and ServiceAccount tokens can be requested.
There are no nodes and no controllers: pods do not run, deleted namespaces remain Terminating,
objects of a deleted owner remain, and the aggregated roles (view, edit, admin) allow nothing.

Flags:
  --kubeconfig FILE   where to write the kubeconfig (default "bin/kubeconfig"). The data and the
                      logs are in FILE.state. Each FILE is a control plane of its own.
  --fsync             let etcd flush each write to the disk, as in production. Without it, writes
                      are faster than in production.
`

const defaultKubeconfig = "bin/kubeconfig"

func main() {
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "controlplane:", err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}

	flags := flag.NewFlagSet("controlplane "+command, flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	kubeconfig := flags.String("kubeconfig", defaultKubeconfig, "")
	fsync := false
	if command != "down" {
		flags.BoolVar(&fsync, "fsync", false, "")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	p, err := newPlane(*kubeconfig)
	if err != nil {
		return err
	}

	switch command {
	case "up":
		return up(p, fsync)
	case "down":
		return down(p)
	case superviseCommand:
		return supervise(p, fsync)
	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
		return nil
	default:
		flags.Usage()
		return fmt.Errorf("expected up or down, got %q", command)
	}
}

// up starts the control plane unless it is running, and writes p.kubeconfig.
func up(p plane, fsync bool) error {
	release, err := p.lockCommands()
	if err != nil {
		return err
	}
	defer release()

	running, err := p.running()
	if err != nil {
		return err
	}
	if !running {
		if err := start(p, fsync); err != nil {
			return err
		}
	}
	fmt.Printf("export KUBECONFIG=%s\n", p.kubeconfig)
	return nil
}

// start starts the supervisor and returns when the API server is ready.
func start(p plane, fsync bool) error {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return errors.New("KUBEBUILDER_ASSETS, the directory of kube-apiserver and etcd, is not set; " +
			"make up builds them and sets it")
	}
	switch _, err := os.Stat(p.state); {
	case err == nil:
		fmt.Fprintf(os.Stderr, "The earlier control plane ended unexpectedly; see %s.\n", p.log("supervisor"))
		if err := p.discardData(); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	default:
		// The file may contain the credentials of a real cluster.
		if _, err := os.Stat(p.kubeconfig); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists and was not written by this command; choose another file with --kubeconfig", p.kubeconfig)
		}
	}
	if err := os.MkdirAll(p.state, 0o700); err != nil {
		return err
	}

	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := p.openLog("supervisor")
	if err != nil {
		return err
	}
	defer log.Close()

	supervisor := exec.Command(self, superviseCommand, "--kubeconfig="+p.kubeconfig, fmt.Sprintf("--fsync=%t", fsync))
	supervisor.Stderr = log
	// In its own session, so that an interrupt or a closed terminal does not end it.
	supervisor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := supervisor.StdoutPipe()
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "Starting kube-apiserver and etcd …")
	if err := supervisor.Start(); err != nil {
		return err
	}
	// The supervisor closes its end when it is ready or when it ends.
	said, err := io.ReadAll(stdout)
	if err != nil {
		return err
	}
	if !bytes.Equal(said, []byte(ready)) {
		return fmt.Errorf("the control plane did not start; see the logs in %s", p.state)
	}
	return supervisor.Process.Release()
}

// down stops the control plane and deletes its files.
func down(p plane) error {
	release, err := p.lockCommands()
	if err != nil {
		return err
	}
	defer release()

	if _, err := os.Stat(p.state); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "No control plane is running here.")
		return nil
	}
	if err := p.stop(); err != nil {
		return err
	}
	if err := os.Remove(p.kubeconfig); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(p.state); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "Stopped the control plane of %s.\n", p.kubeconfig)
	return nil
}
