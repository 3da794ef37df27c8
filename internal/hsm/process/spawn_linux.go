package process

import (
	"errors"
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
func socketPair() (*net.UnixConn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	conn, err := connectionOf(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, theirs, nil
}

// connectionOf returns a socket as a connection, and closes the file.
func connectionOf(socket *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(socket)
	_ = socket.Close() // FileConn has duplicated it
	if err != nil {
		return nil, err
	}
	local, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, errors.New("the socket is not a local one")
	}
	return local, nil
}

// sendFile sends an open file to the process at the other end of a connection.
func sendFile(to *net.UnixConn, file *os.File) error {
	_, _, err := to.WriteMsgUnix([]byte{0}, unix.UnixRights(int(file.Fd())), nil)
	return err
}

// receiveConnection receives a socket that was sent by sendFile.
func receiveConnection(from *net.UnixConn) (*net.UnixConn, error) {
	var data [1]byte
	rights := make([]byte, unix.CmsgSpace(4)) // of one file
	_, n, _, _, err := from.ReadMsgUnix(data[:], rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(errNotInherited, err)
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) == 0 {
		return nil, errors.Join(errNotInherited, err)
	}
	return connectionOf(os.NewFile(uintptr(files[0]), "socket"))
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
