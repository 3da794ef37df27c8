package demo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests run the demo like make demo, with a product and a launcher built from this tree.

// built is the directory of the binaries that the demo needs. TestMain removes it.
var built struct {
	sync.Once
	dir string
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func build() {
	if built.dir, built.err = os.MkdirTemp("", "keyconvoy-demo-"); built.err != nil {
		return
	}
	for name, pkg := range map[string]string{"keyconvoy": "../..", "controlplane": "../controlplane"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(built.dir, name), ".")
		cmd.Dir = pkg
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = errors.Join(built.err, fmt.Errorf("building %s: %w\n%s", pkg, err, out))
		}
	}
}

// demo is one run of the script.
type demo struct {
	cmd  *exec.Cmd
	temp string // the directory of its files
	out  bytes.Buffer
}

func newDemo(t *testing.T, env ...string) *demo {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set. Run `make test`, which builds kube-apiserver, etcd and kubectl and sets it")
	}
	if built.Do(build); built.err != nil {
		t.Fatal(built.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	d := &demo{cmd: exec.CommandContext(ctx, "./demo.sh"), temp: t.TempDir()}
	d.cmd.Env = append(os.Environ(), "TMPDIR="+d.temp, "DEMO_STORE=",
		"KEYCONVOY="+filepath.Join(built.dir, "keyconvoy"), "CONTROLPLANE_LAUNCHER="+filepath.Join(built.dir, "controlplane"))
	d.cmd.Env = append(d.cmd.Env, env...)
	// Interrupted instead of killed at the deadline, so that it cleans up.
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	return d
}

// ends checks the exit code and the output of the script, and that it left no files and no processes.
func (d *demo) ends(t *testing.T, code int, says ...string) {
	t.Helper()
	if got := d.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, not %d", got, code)
	}
	for _, words := range says {
		if !strings.Contains(d.out.String(), words) {
			t.Errorf("the output does not contain %q", words)
		}
	}
	if strings.Contains(d.out.String(), "PRIVATE KEY-----") {
		t.Error("the output contains a private key")
	}
	if left, err := os.ReadDir(d.temp); err != nil || len(left) > 0 {
		t.Errorf("it left files: %v, %v", left, err)
	}
	for _, process := range lastingProcesses(t, d.temp) {
		t.Errorf("it left a process: %s", process)
	}
	if t.Failed() {
		t.Logf("The demo:\n%s", d.out.String())
	}
}

// lastingProcesses returns the command lines that contain a path and are still there after a minute. A process that is
// ending can still be listed for a moment.
func lastingProcesses(t *testing.T, path string) []string {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		found := processesWith(t, path)
		if len(found) == 0 {
			return nil
		}
		select {
		case <-deadline:
			return found
		case <-tick.C:
		}
	}
}

// processesWith returns the command lines that contain a path.
func processesWith(t *testing.T, path string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no processes: %v", err)
	}
	var found []string
	for _, file := range files {
		line, _ := os.ReadFile(file) // it may have ended by now
		if bytes.Contains(line, []byte(path)) {
			found = append(found, string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func TestDemo_unknownStore_fails(t *testing.T) {
	t.Parallel()
	d := newDemo(t, "DEMO_STORE=cloud")
	_ = d.cmd.Run()
	d.ends(t, 2, `DEMO_STORE is software or softhsm, not "cloud".`)
}

func TestDemo_missingBinary_isNamed(t *testing.T) {
	t.Parallel()
	d := newDemo(t, "KEYCONVOY=no/such/keyconvoy")
	_ = d.cmd.Run()
	d.ends(t, 2, "no/such/keyconvoy is missing; make demo builds it.")
}

func TestDemo_recipientsHaveDifferentKeys_fails(t *testing.T) {
	t.Parallel()
	forger := filepath.Join(t.TempDir(), "keyconvoy")
	script := "#!/bin/bash\nif [ \"$1\" = unwrap ]; then head -c 32 /dev/zero > \"${!#}\"; else exec keyconvoy-itself \"$@\"; fi\n"
	script = strings.ReplaceAll(script, "keyconvoy-itself", `"$REAL_KEYCONVOY"`)
	if err := os.WriteFile(forger, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d := newDemo(t, "KEYCONVOY="+forger)
	d.cmd.Env = append(d.cmd.Env, "REAL_KEYCONVOY="+filepath.Join(built.dir, "keyconvoy"))
	_ = d.cmd.Run()
	d.ends(t, 1, "This command failed: cmp ledger-from-rsa ledger-from-keyconvoy", "The demo failed")
}

func TestDemo_interrupted_cleansUp(t *testing.T) {
	t.Parallel()
	d := newDemo(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d.cmd.Stdout, d.cmd.Stderr = w, w
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	interrupted := false
	for buffer := make([]byte, 4096); ; {
		n, err := r.Read(buffer)
		d.out.Write(buffer[:n])
		if err != nil {
			break
		}
		if !interrupted && strings.Contains(d.out.String(), "== A key store ==") {
			interrupted = true
			if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = d.cmd.Wait()
	d.ends(t, 130, "Cleaning up")
}

func TestDemo_succeedsOnEachStore(t *testing.T) {
	t.Parallel()
	for store, custody := range map[string][]string{
		"software": {"ImportedKey       payments     Software", "DataKey           ledger       Software", "ExportedDataKey   ledger-sm2   Software"},
		"softhsm":  {"ImportedKey       payments     Host", "DataKey           ledger       Module", "ExportedDataKey   ledger-sm2   Host"},
	} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			d := newDemo(t, "DEMO_STORE="+store)
			_ = d.cmd.Run()
			d.ends(t, 0, append(custody, "None does.", "cmp ledger-from-rsa ledger-after-rotation", "Cleaning up")...)
		})
	}
}
