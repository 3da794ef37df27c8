//go:build cgo

package tokens

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Service is a process on which a library depends. It ends with the test process, even if that is killed.
type Service struct {
	// Socket is the path of the Unix socket on which the process listens.
	Socket string

	env   []string
	args  []string
	ready func() bool

	mu   sync.Mutex
	pid  int // of the process, which leads a process group; 0 if it does not run
	done chan struct{}
	log  bytes.Buffer
}

// Start starts the process, if it does not run, and waits until it listens.
func (s *Service) Start(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid != 0 {
		return
	}
	_ = os.Remove(s.Socket) // of a process that was killed
	started := make(chan error)
	s.done = make(chan struct{})
	go s.run(started, s.done)
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", s.args[0], err)
	}
	waitFor(t, time.Minute, s.args[0]+" is ready", func() bool {
		select {
		case <-s.done:
			t.Fatalf("%s ended: %s", s.args[0], s.log.String())
		default:
		}
		return s.ready()
	})
}

// run runs the process. The kernel kills it when the thread that started it ends, so this goroutine keeps its thread.
func (s *Service) run(started chan<- error, done chan<- struct{}) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	cmd.WaitDelay = time.Second // children of the process may keep its output open
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err := cmd.Start()
	if err == nil {
		s.pid = cmd.Process.Pid
	}
	started <- err
	if err == nil {
		_ = cmd.Wait()
	}
	close(done)
}

// Kill kills the process and its children as kill -9 does.
func (s *Service) Kill(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGKILL)
}

func (s *Service) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid == 0 {
		return
	}
	if err := syscall.Kill(-s.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Errorf("end %s: %v", s.args[0], err)
	}
	<-s.done
	s.pid = 0
}

// waitFor waits for a condition that another process fulfills, and fails if it does not hold within a limit.
func waitFor(t testing.TB, limit time.Duration, condition string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(limit)
	for !holds() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("after %s, this condition does not hold: %s", limit, condition)
		}
	}
}

// accepts returns whether a process accepts connections on a Unix socket.
func accepts(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// lookPath returns the path of a program.
func lookPath(t testing.TB, program, debianPackage string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} { // which is not in every user's PATH
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: apt-get install %s", program, debianPackage)
	return ""
}

// runTool runs a program that prepares a token.
func runTool(t testing.TB, stdin, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("%s %q: %w: %s", program, args, err, out))
	}
}
