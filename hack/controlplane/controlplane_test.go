package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary also be the launcher, for these tests and for up, which runs its own executable as the
// supervisor.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"up", "down", superviseCommand}, os.Args[1]) {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestControlPlane_runs_fromUpToDown(t *testing.T) {
	p := newTestPlane(t)
	export := "export KUBECONFIG=" + p.kubeconfig + "\n"

	if got := launch(t, p, "up", "--fsync"); got != export {
		t.Errorf("up printed %q, want %q", got, export)
	}
	if got := kubectl(t, p, "get", "namespaces", "--output=name"); !strings.Contains(got, "namespace/default") {
		t.Errorf("kubectl get namespaces printed %q", got)
	}
	before := processes(t, p)
	if len(before) != 3 {
		t.Fatalf("running are %v, want the supervisor, etcd and kube-apiserver", before)
	}
	if etcd := before["etcd"]; !strings.Contains(etcd.args, "--unsafe-no-fsync=false") {
		t.Errorf("etcd was started with --fsync as %q", etcd.args)
	}

	if got := launch(t, p, "up"); got != export {
		t.Errorf("the second up printed %q, want %q", got, export)
	}
	if after := processes(t, p); after["etcd"] != before["etcd"] {
		t.Errorf("the second up started etcd anew: %v, before %v", after["etcd"], before["etcd"])
	}

	launch(t, p, "down")
	if left := processes(t, p); len(left) > 0 {
		t.Errorf("down left running: %v", left)
	}
	if left, _ := filepath.Glob(p.kubeconfig + "*"); len(left) > 0 {
		t.Errorf("down left on the disk: %q", left)
	}
	launch(t, p, "down")
}

func TestControlPlane_token_hasOnlyThePermissionsOfItsRole(t *testing.T) {
	p := newTestPlane(t)
	launch(t, p, "up")
	kubectl(t, p, "create", "serviceaccount", "reader")
	kubectl(t, p, "create", "role", "reader", "--verb=list", "--resource=configmaps")
	kubectl(t, p, "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:reader")
	// The kubeconfig contains the administrator's certificate, which takes precedence over a token.
	server := kubectl(t, p, "config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}")
	token := strings.TrimSpace(kubectl(t, p, "create", "token", "reader"))
	asReader := []string{"--kubeconfig=/dev/null", "--server=" + server, "--insecure-skip-tls-verify", "--token=" + token}

	mayList := func(resource string) string {
		// The command exits with 1 if the answer is no.
		answer, _ := exec.Command(asset("kubectl"), append(asReader, "auth", "can-i", "list", resource)...).Output()
		return strings.TrimSpace(string(answer))
	}

	// The API server does not apply a new role immediately.
	for deadline := time.Now().Add(time.Minute); mayList("configmaps") != "yes"; {
		if time.Now().After(deadline) {
			t.Fatal("the reader may not list what its role says")
		}
	}
	if got := mayList("secrets"); got != "no" {
		t.Errorf("may the reader list secrets? %q, want no", got)
	}
}

func TestControlPlane_endOfTheAPIServer_isLoggedAndUpStartsAgain(t *testing.T) {
	p := newTestPlane(t)
	launch(t, p, "up")

	if err := syscall.Kill(processes(t, p)["kube-apiserver"].pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err != nil {
		t.Fatal(err)
	}

	if left := processes(t, p); len(left) > 0 {
		t.Errorf("still running without an API server: %v", left)
	}
	log, err := os.ReadFile(p.log("supervisor"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "kube-apiserver has ended, see its log " + p.log("kube-apiserver"); !strings.Contains(string(log), want) {
		t.Errorf("the supervisor's log is %q, want it to contain %q", log, want)
	}
	launch(t, p, "up")
	kubectl(t, p, "get", "namespaces")
}

func TestUp_doesNotOverwriteAnotherKubeconfig(t *testing.T) {
	p := newTestPlane(t)
	if err := os.WriteFile(p.kubeconfig, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}

	err := up(p, false)

	if err == nil || !strings.Contains(err.Error(), "was not written by this command") {
		t.Errorf("up returned %v", err)
	}
	if content, _ := os.ReadFile(p.kubeconfig); string(content) != "precious" {
		t.Errorf("the file now contains %q", content)
	}
}

// newTestPlane returns a control plane for the test, which is stopped at its end.
func newTestPlane(t *testing.T) plane {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set; run the tests with make test")
	}
	p, err := newPlane(filepath.Join(t.TempDir(), "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// launch runs the launcher as a user would, and returns its output.
func launch(t *testing.T, p plane, command string, flags ...string) string {
	t.Helper()
	args := append([]string{command, "--kubeconfig=" + p.kubeconfig}, flags...)
	return output(t, exec.Command(os.Args[0], args...))
}

func kubectl(t *testing.T, p plane, args ...string) string {
	t.Helper()
	return output(t, exec.Command(asset("kubectl"), append([]string{"--kubeconfig=" + p.kubeconfig}, args...)...))
}

func asset(name string) string { return filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), name) }

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	return string(stdout)
}

type process struct {
	pid  int
	args string
}

// processes returns the processes whose arguments contain the files of the control plane, by executable.
func processes(t *testing.T, p plane) map[string]process {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]process{}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte(p.kubeconfig)) {
			continue // it has ended, or belongs to another user
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		args := strings.Split(strings.Trim(string(line), "\x00"), "\x00")
		found[filepath.Base(args[0])] = process{pid: pid, args: strings.Join(args[1:], " ")}
	}
	return found
}
