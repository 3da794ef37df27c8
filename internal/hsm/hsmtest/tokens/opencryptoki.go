//go:build cgo

package tokens

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The software token of openCryptoki. Its files, its slot number and the PINs of a new token are fixed.
const (
	openCryptokiLabel = "keyconvoy-test"
	openCryptokiSlot  = "3"
	openCryptokiDir   = "/var/lib/opencryptoki/swtok"
	openCryptokiShm   = "/dev/shm/var.lib.opencryptoki.swtok"
	openCryptokiPID   = "/run/pkcsslotd.pid"
	initialSOPIN      = "87654321"
	otherSOPIN        = "76543210"
)

var openCryptokiPaths = []string{"/usr/lib/*/opencryptoki/libopencryptoki.so.0", "/usr/lib/opencryptoki/libopencryptoki.so.0"}

// openCryptoki is held by the test that uses the token, because a machine has one. A lock on a file keeps other processes away.
var openCryptoki sync.Mutex

// OpenCryptoki makes a new software token of openCryptoki and starts pkcsslotd, on which its library depends. A test can have one
// token, and tests with a token run one after the other. It requires root.
//
// It never replaces a token that has another label, and it does not end a daemon that it did not start.
func OpenCryptoki(t testing.TB) (Token, *Service) {
	t.Helper()
	path := find(t, openCryptokiPaths...)
	if !openCryptoki.TryLock() {
		t.Fatal("another test of this process uses openCryptoki: run them one after the other")
	}
	t.Cleanup(openCryptoki.Unlock)
	lockFile(t, filepath.Join(os.TempDir(), "keyconvoy-opencryptoki.lock"))
	checkNoDaemon(t)
	pkcsconf := lookPath(t, "pkcsconf", "opencryptoki")
	service := &Service{
		Socket: "/run/pkcsslotd.socket",
		args:   []string{lookPath(t, "pkcsslotd", "opencryptoki"), "-f"},
		ready:  func() bool { return exec.Command(pkcsconf, "-t", "-c", openCryptokiSlot).Run() == nil },
	}
	clearOpenCryptoki(t)
	t.Cleanup(func() {
		service.signal(t, syscall.SIGTERM) // so that it removes its shared memory
		clearOpenCryptoki(t)
	})
	service.Start(t)
	runTool(t, openCryptokiLabel+"\n", pkcsconf, "-I", "-c", openCryptokiSlot, "-S", initialSOPIN)
	runTool(t, "", pkcsconf, "-P", "-c", openCryptokiSlot, "-S", initialSOPIN, "-n", otherSOPIN)
	runTool(t, "", pkcsconf, "-u", "-c", openCryptokiSlot, "-S", otherSOPIN, "-n", pin)
	// Concurrent calls have crashed version 3.8.1 in C_FindObjectsInit.
	return Token{Path: path, Label: openCryptokiLabel, PIN: pin, MaxSessions: 1}, service
}

// lockFile locks a file until the end of the test. The kernel releases the lock of a process that is killed.
func lockFile(t testing.TB, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		t.Cleanup(func() { _ = file.Close() })
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkNoDaemon fails if a daemon runs. A daemon of an earlier test process ends with that process, shortly after it.
func checkNoDaemon(t testing.TB) {
	t.Helper()
	const condition = "pkcsslotd does not run; the tests start their own, so stop it, for example with systemctl stop pkcsslotd"
	waitFor(t, 10*time.Second, condition, func() bool { return !daemonRuns() })
}

func daemonRuns() bool {
	pid, err := os.ReadFile(openCryptokiPID)
	if err != nil {
		return false
	}
	name, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "comm"))
	return err == nil && strings.TrimSpace(string(name)) == "pkcsslotd"
}

// clearOpenCryptoki removes the files of a token of these tests.
func clearOpenCryptoki(t testing.TB) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(openCryptokiDir, "NVTOK.DAT"))
	initialized := err == nil && !bytes.HasPrefix(content, []byte("IBM OS PKCS#11"))
	if initialized && !bytes.HasPrefix(content, []byte(openCryptokiLabel+" ")) {
		t.Fatalf("the software token of openCryptoki has label %q, and the tests only replace their own token: remove the files in %s if it is not needed",
			bytes.TrimRight(content[:min(32, len(content))], " "), openCryptokiDir)
	}
	files, err := filepath.Glob(filepath.Join(openCryptokiDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := filepath.Glob(filepath.Join(openCryptokiDir, "TOK_OBJ", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(append(files, objects...), openCryptokiShm) {
		if info, err := os.Stat(file); err == nil && !info.IsDir() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}
