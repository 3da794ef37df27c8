package process

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// SelfCommand runs this program again, even if its file was replaced.
const SelfCommand = "/proc/self/exe"

// socketPair returns two connected sockets, the second one for a child process.
func socketPair() (net.Conn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "socket")
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // FileConn has duplicated it
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, theirs, nil
}

// run starts the process, says so, and waits for its end. The kernel kills the process when the thread that started it ends,
// which is only when the operator ends: the goroutine keeps it.
func (c *child) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	c.process = cmd.Process
	started <- nil
	err := cmd.Wait()
	c.end(cmd.ProcessState, err)
}

// describeEnd returns how a process ended, for messages and for the metric.
func describeEnd(state *os.ProcessState) (how, cause string) {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		name := unix.SignalName(status.Signal())
		return "was ended by signal " + name, name
	}
	cause = fmt.Sprintf("exit status %d", state.ExitCode())
	return "ended with " + cause, cause
}
