package testenv

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// guard ends etcd and kube-apiserver if this process ends without stopping them, because of a panic or the time limit of
// the tests. Otherwise they would continue to run.
type guard struct {
	shell *exec.Cmd
	pipe  io.WriteCloser
}

// startGuard starts a shell that waits on a pipe, which the system closes when this process ends. It returns nil on
// systems other than Linux, where it cannot list the children; tests also work without a guard.
func startGuard(dirs ...string) *guard {
	pids := children()
	if len(pids) == 0 {
		return nil
	}
	script := `cat >/dev/null; kill -9 ` + strings.Join(pids, " ") + ` 2>/dev/null; rm -rf "$@"`
	g := &guard{shell: exec.Command("sh", append([]string{"-c", script, "sh"}, dirs...)...)}
	// In its own process group, so that an interrupt from the terminal does not end it first.
	g.shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if g.pipe, err = g.shell.StdinPipe(); err != nil {
		return nil
	}
	if err := g.shell.Start(); err != nil {
		return nil
	}
	return g
}

// dismiss ends the guard before the pipe closes.
func (g *guard) dismiss() {
	if g == nil {
		return
	}
	_ = g.shell.Process.Kill()
	_ = g.shell.Wait()
	_ = g.pipe.Close()
}

// children returns the process IDs of the etcds and kube-apiservers that this process started.
func children() []string {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	var pids []string
	for _, file := range files {
		list, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(list)) {
			switch name, _ := os.ReadFile("/proc/" + pid + "/comm"); strings.TrimSpace(string(name)) {
			case "etcd", "kube-apiserver":
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
