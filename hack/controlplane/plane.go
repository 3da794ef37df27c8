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

// plane is where one control plane keeps its things.
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

// openLog appends, so that what a dead predecessor wrote can still be read.
func (p plane) openLog(process string) (*os.File, error) {
	return os.OpenFile(p.log(process), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// discardData makes room for a new control plane and keeps the logs of the old one.
func (p plane) discardData() error {
	return errors.Join(os.RemoveAll(p.etcdDir()), os.RemoveAll(p.apiServerDir()))
}

// lockCommands waits until no other up or down is at work in this directory. The lock is on the
// directory and not on a file, because down leaves no file.
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

// claim writes our process id for stop to find, and locks it for as long as we live: a process id alone
// could be another process's by now. Only our end releases the lock, so that whoever waits for it finds
// our last words in the log and no process. (An os.File would be closed when nobody refers to it.)
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

// running tells whether a supervisor lives.
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

// stop asks the supervisor to stop, if it lives, and returns when it has.
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

// wait returns when no supervisor lives any more: when its lock is free.
func (p plane) wait() error {
	file, err := os.Open(p.pidFile())
	if err != nil {
		return err
	}
	defer file.Close()
	return syscall.Flock(int(file.Fd()), syscall.LOCK_SH)
}
