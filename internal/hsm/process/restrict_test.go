//go:build cgo && linux

package process_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
)

// curious is a library that reports, when it is loaded, what its process may do.
const curious = `
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static FILE *report;

static void try(const char *what, const char *variable, int flags) {
	int file = open(getenv(variable), flags, 0600);
	fprintf(report, "%s: %s\n", what, file < 0 ? strerror(errno) : "possible");
	if (file >= 0)
		close(file);
}

__attribute__((constructor)) static void look(void) {
	report = fopen(getenv("CURIOUS_REPORT"), "w");
	if (report == NULL)
		return;
	try("read another file", "CURIOUS_SECRET", O_RDONLY);
	try("write into its own directory", "CURIOUS_OWN", O_WRONLY | O_CREAT);
	try("read an allowed file", "CURIOUS_ALLOWED", O_RDONLY);
	try("write an allowed file", "CURIOUS_ALLOWED", O_WRONLY);
	fprintf(report, "environment: %s %s\n", getenv("KUBERNETES_SERVICE_HOST") ? "host" : "-", getenv("CURIOUS_OTHER") ? "other" : "-");
	struct rlimit core;
	getrlimit(RLIMIT_CORE, &core);
	fprintf(report, "core: %lu %lu, dumpable: %d, no new privileges: %d\n", (unsigned long)core.rlim_cur, (unsigned long)core.rlim_max,
		prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	char link[64], target[256];
	for (int fd = 3; fd < 1024; fd++) {
		snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
		ssize_t length = readlink(link, target, sizeof target - 1);
		if (length < 0 || fd == fileno(report))
			continue;
		target[length] = 0;
		fprintf(report, "descriptor: %s\n", target);
	}
	fclose(report);
}
`

// The library of each process is code that an attacker may control.
func TestChild_mayUseOnlyWhatItsLibraryNeeds(t *testing.T) {
	own, allowed, forbidden := t.TempDir(), t.TempDir(), t.TempDir()
	library := filepath.Join(own, "curious.so")
	compile(t, library, curious)
	files := map[string]string{
		"CURIOUS_REPORT":  filepath.Join(allowed, "report"),
		"CURIOUS_SECRET":  write(t, filepath.Join(forbidden, "token"), "secret"),
		"CURIOUS_OWN":     filepath.Join(own, "new"),
		"CURIOUS_ALLOWED": write(t, filepath.Join(forbidden, "configuration"), "allowed"),
	}
	var variables []string
	for name, path := range files {
		t.Setenv(name, path)
		variables = append(variables, name)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
	t.Setenv("CURIOUS_OTHER", "not allowed")
	// C code in the parent may open files that its children inherit.
	leaked, err := unix.Open(files["CURIOUS_SECRET"], unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(leaked) }()

	for name, test := range map[string]struct {
		unrestricted bool
		secret       string
	}{
		"restricted":   {false, "read another file: Permission denied\nwrite into its own directory: Permission denied\n" + "read an allowed file: possible\nwrite an allowed file: Permission denied\n"},
		"unrestricted": {true, "read another file: possible\nwrite into its own directory: possible\n" + "read an allowed file: possible\nwrite an allowed file: possible\n"},
	} {
		t.Run(name, func(t *testing.T) {
			l := process.Library{
				Path: library, Environment: variables, Unrestricted: test.unrestricted,
				Paths: []process.Path{{Name: allowed, Writable: true}, {Name: files["CURIOUS_ALLOWED"]}},
			}
			_, err := newProvider(t, libraries{"curious": l}).List(t.Context(), "curious")
			hsmtest.WantKind(t, err, hsm.Misconfigured, "a library without functions")
			report, err := os.ReadFile(files["CURIOUS_REPORT"])
			if err != nil {
				t.Fatal(err)
			}
			want := test.secret + "environment: - -\ncore: 0 0, dumpable: 0, no new privileges: 1\n"
			rest, ok := strings.CutPrefix(string(report), want)
			if !ok {
				t.Errorf("the library reports\n%s\nwant\n%s", report, want)
			}
			if n := strings.Count(rest, "descriptor: socket:"); n != 3 { // two inherited ones, and that of the call
				t.Errorf("the library has %d sockets", n)
			}
			for line := range strings.Lines(rest) {
				if !strings.HasPrefix(line, "descriptor: socket:") && !strings.HasPrefix(line, "descriptor: anon_inode:[event") && !strings.HasPrefix(line, "descriptor: /sys/fs/cgroup/") && !strings.HasPrefix(line, "descriptor: "+library) {
					t.Errorf("the library has a %s", line)
				}
			}
		})
	}
}

// A path that does not exist yet, or is misspelt, is an error of the administrator.
func TestProvider_pathThatDoesNotExist_isMisconfigured(t *testing.T) {
	l := process.Library{Path: "/does/not/matter.so", Paths: []process.Path{{Name: "/does/not/exist"}}}
	_, err := newProvider(t, libraries{"x": l}).List(t.Context(), "x")
	detail := hsmtest.WantKind(t, err, hsm.Misconfigured, "a path that does not exist")
	if !strings.Contains(detail, "/does/not/exist") || !strings.Contains(detail, "--pkcs11-allow-path") {
		t.Errorf("the error is %q", detail)
	}
}

// compile compiles C source text to a shared library.
func compile(t testing.TB, path, source string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", path)
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func write(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
