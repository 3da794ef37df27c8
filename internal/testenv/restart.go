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

// Restart kills the API server, as in a crash, calls meanwhile, starts the API server again with the same arguments, and
// returns when it is ready. Call it only for an API server of the test itself (Another), because other tests use the
// shared one.
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
	wait(t, "the API server to be ready again", func() bool {
		select {
		case <-ended:
			// Meanwhile, another process may have used the port for a connection.
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

// startAgain starts the API server. Its output, said, may be read after ended is closed.
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
		_ = again.Wait() // the caller kills it, so its error does not matter
	}()
	watch := startGuard()
	e.again = func() {
		_ = again.Process.Kill()
		<-ended
		watch.dismiss()
	}
	return said, ended
}

// apiServer finds the process of the API server by its directory of certificates, which no other process has.
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
	t.Fatal("The process of the API server was not found")
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
			t.Fatalf("Timed out waiting for %s", what)
		case <-tick.C:
		}
	}
}
