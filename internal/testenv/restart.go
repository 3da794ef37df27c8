package testenv

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Restart kills the API server, as a crash does, has meanwhile done, starts it again as it was, and returns
// when it serves. It is for the server of a test's own (Another): the others' tests would not like it.
func (e *Env) Restart(t testing.TB, meanwhile func()) {
	t.Helper()
	pid, command := e.apiServer(t)
	if e.again != nil {
		e.again()
	} else if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("Killing the API server: %v", err)
	}
	wait(t, "the API server to end", func() bool { return syscall.Kill(pid, 0) != nil })
	meanwhile()
	said, ended := e.startAgain(t, command)
	client, err := rest.HTTPClientFor(e.Config)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, "the API server to serve again", func() bool {
		select {
		case <-ended:
			// While nobody listened, the port may have become that of somebody's connection.
			if !strings.Contains(said.String(), syscall.EADDRINUSE.Error()) {
				t.Fatalf("The API server ended when it was started again:\n%s", said)
			}
			t.Logf("The API server is started once more:\n%s", said)
			e.again()
			said, ended = e.startAgain(t, command)
		default:
		}
		response, err := client.Get(e.server.ControlPlane.APIServer.SecureServing.URL("https", "/readyz").String())
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// startAgain starts the API server. What it says may be read when ended is closed.
func (e *Env) startAgain(t testing.TB, command []string) (said *bytes.Buffer, ended chan struct{}) {
	t.Helper()
	again := exec.Command(command[0], command[1:]...)
	said, ended = &bytes.Buffer{}, make(chan struct{})
	again.Stdout, again.Stderr = said, said
	if err := again.Start(); err != nil {
		t.Fatalf("Starting the API server again: %v", err)
	}
	go func() {
		defer close(ended)
		_ = again.Wait() // whoever killed it knows why
	}()
	watch := startGuard()
	e.again = func() {
		_ = again.Process.Kill()
		<-ended
		watch.dismiss()
	}
	return said, ended
}

// apiServer finds the server's process by its directory for certificates, which is nobody else's.
func (e *Env) apiServer(t testing.TB) (pid int, command []string) {
	t.Helper()
	for _, child := range children() {
		line, _ := os.ReadFile("/proc/" + child + "/cmdline") // it may have ended by now
		if !strings.Contains(string(line), "--cert-dir="+e.server.ControlPlane.APIServer.CertDir) {
			continue
		}
		pid, err := strconv.Atoi(child)
		if err != nil {
			t.Fatal(err)
		}
		return pid, strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	}
	t.Fatal("The API server's process is not to be found")
	return 0, nil
}

func wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("Waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
