package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// plane names the files of a control plane.
type plane struct {
	kubeconfig string // the file that clients use; it also names the control plane
	state      string // the directory of data, certificates and logs
}

func newPlane(kubeconfig string) (plane, error) {
	path, err := filepath.Abs(kubeconfig)
	if err != nil {
		return plane{}, err
	}
	return plane{kubeconfig: path, state: path + ".state"}, nil
}

func (p plane) etcdDir() string      { return filepath.Join(p.state, "etcd") }
func (p plane) apiServerDir() string { return filepath.Join(p.state, "kube-apiserver") }
func (p plane) pidFile() string      { return filepath.Join(p.state, "supervisor.pid") }

// log is the log file of a process: supervisor, etcd or kube-apiserver.
func (p plane) log(process string) string { return filepath.Join(p.state, process+".log") }

// openLog opens a log file to append to it, so that it keeps the lines of an earlier process.
func (p plane) openLog(process string) (*os.File, error) {
	return os.OpenFile(p.log(process), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// discardData deletes the data of an earlier control plane and keeps its logs.
func (p plane) discardData() error {
	return errors.Join(os.RemoveAll(p.etcdDir()), os.RemoveAll(p.apiServerDir()))
}

// lockCommands waits until no other up or down runs for this directory. The lock is on the directory, not on a file,
// because down deletes all files.
func (p plane) lockCommands() (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(p.kubeconfig), 0o750); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(p.kubeconfig))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", dir.Name(), err)
	}
	return func() { dir.Close() }, nil
}

// claim writes the process ID of the supervisor for stop, and locks the file until the supervisor ends, because another
// process could later have the same ID. A process that waits for the lock finds the log complete. The file is not an
// os.File, which the garbage collector would close.
func (p plane) claim() error {
	file, err := syscall.Open(p.pidFile(), os.O_CREATE|os.O_RDWR|os.O_TRUNC|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("opening %s: %w", p.pidFile(), err)
	}
	if err := syscall.Flock(file, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("locking %s: %w", p.pidFile(), err)
	}
	_, err = syscall.Write(file, []byte(strconv.Itoa(os.Getpid())))
	return err
}

// running reports whether a supervisor is running.
func (p plane) running() (bool, error) {
	file, err := os.Open(p.pidFile())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// stop stops the supervisor, if it is running, and returns when it has ended.
func (p plane) stop() error {
	running, err := p.running()
	if err != nil || !running {
		return err
	}
	text, err := os.ReadFile(p.pidFile())
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("reading %s: %w", p.pidFile(), err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping the supervisor, process %d: %w", pid, err)
	}
	return p.wait()
}

// wait returns when the supervisor has ended, which releases its lock.
func (p plane) wait() error {
	file, err := os.Open(p.pidFile())
	if err != nil {
		return err
	}
	defer file.Close()
	return syscall.Flock(int(file.Fd()), syscall.LOCK_SH)
}
