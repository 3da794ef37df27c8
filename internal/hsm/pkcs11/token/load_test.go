//go:build cgo

package token

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// build compiles C source text to a shared library.
func build(t testing.TB, path, source string, flags ...string) string {
	t.Helper()
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	cmd := exec.Command(cc, append([]string{"-shared", "-fPIC", "-x", "c", "-", "-o", path}, flags...)...)
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func write(t testing.TB, path string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

const (
	callsNothing   = "int C_GetFunctionList(void *list) { return 5; }"
	callsMissing   = "int missing_function(void); int C_GetFunctionList(void *list) { return missing_function(); }"
	callsDependent = "int helper(void); int C_GetFunctionList(void *list) { return helper(); }"
)

// The error is what an administrator needs to repair the library, and no library ends the process.
func TestOpen_libraryDoesNotLoad_reportsWhy(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	whole := read(t, build(t, at("whole.so"), callsNothing))
	foreign := append([]byte(nil), whole...)
	foreign[18], foreign[19] = 0x08, 0 // e_machine: MIPS
	executable := append([]byte(nil), whole...)
	executable[16] = 2 // e_type: ET_EXEC

	needsTruncated := func() string {
		helper := build(t, at("libhelper.so"), "char filler[100000] = {1}; int helper(void) { return 5; }")
		path := build(t, at("needs-truncated.so"), callsDependent, "-L"+dir, "-lhelper", "-Wl,-rpath,$ORIGIN")
		write(t, helper, read(t, helper)[:8192])
		return path
	}
	needsUndefined := func() string {
		build(t, at("libundefined.so"), "int missing_function(void); int helper(void) { return missing_function(); }")
		return build(t, at("needs-undefined.so"), callsDependent, "-L"+dir, "-lundefined", "-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined")
	}
	needsMissing := func() string {
		helper := build(t, at("libgone.so"), "int helper(void) { return 5; }")
		path := build(t, at("needs-missing.so"), callsDependent, "-L"+dir, "-lgone", "-Wl,-rpath,$ORIGIN")
		if err := os.Remove(helper); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for sentence, tc := range map[string]struct {
		path string
		want []string
	}{
		"it does not exist":                               {at("nothing.so"), []string{"nothing.so", "no such file"}},
		"it is a directory":                               {dir, []string{"not a regular file"}},
		"it is empty":                                     {write(t, at("empty.so"), nil), []string{"empty.so is empty"}},
		"it is text":                                      {write(t, at("text.so"), []byte("hello\n")), []string{"text file"}},
		"it is a linker script":                           {write(t, at("script.so"), []byte("/* GNU ld script */ INPUT (x.so.1)\n")), []string{"linker script"}},
		"it is a Git LFS pointer":                         {write(t, at("lfs.so"), []byte("version https://git-lfs.github.com/spec/v1\n")), []string{"Git LFS pointer"}},
		"it is a static library":                          {write(t, at("lib.a"), []byte("!<arch>\n\x00")), []string{"static library"}},
		"it is for Windows":                               {write(t, at("lib.dll"), []byte("MZ\x90\x00")), []string{"Windows"}},
		"it is for another processor":                     {write(t, at("mips.so"), foreign), []string{"another processor", "EM_MIPS"}},
		"it is a program":                                 {write(t, at("program"), executable), []string{"not a shared library", "ET_EXEC"}},
		"it is cut off in its header":                     {write(t, at("header.so"), whole[:40]), []string{"truncated or damaged"}},
		"it is cut off in a segment, and has no sections": {write(t, at("segment.so"), withoutSections(whole)[:4200]), []string{"is truncated", "4200 bytes"}},
		"it is cut off before its section headers":        {write(t, at("sections.so"), whole[:len(whole)-100]), []string{"truncated or damaged"}},
		"it has an undefined symbol":                      {build(t, at("undefined.so"), callsMissing), []string{"undefined symbol: missing_function"}},
		"it is no PKCS#11 library":                        {build(t, at("other.so"), "int f(void) { return 1; }"), []string{"C_GetFunctionList"}},
		"its C_GetFunctionList fails":                     {at("whole.so"), []string{"C_GetFunctionList fails"}},
		"what it needs is truncated":                      {needsTruncated(), []string{"needs", "libhelper.so", "truncated"}},
		"what it needs has an undefined symbol":           {needsUndefined(), []string{"undefined symbol: missing_function"}},
		"what it needs is missing":                        {needsMissing(), []string{"libgone.so"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			for range 2 { // also on the second attempt
				mustNotOpen(t, configAt(tc.path), hsm.Misconfigured, append(tc.want, "the library does not load: ")...)
			}
		})
	}
}

// withoutSections returns a library with nothing but what the dynamic linker reads.
func withoutSections(library []byte) []byte {
	out := append([]byte(nil), library...)
	clear(out[40:48]) // e_shoff
	clear(out[58:64]) // e_shentsize, e_shnum, e_shstrndx
	return out
}

func TestOpen_libraryDoesNotLoad_reportsShortPrintableText(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("\x1b", 200), strings.Repeat("y", 200), strings.Repeat("z", 200))
	text := mustNotOpen(t, configAt(path), hsm.Misconfigured)
	if strings.ContainsRune(text, 0x1b) || len(text) > 600 {
		t.Errorf("the text is %q", text)
	}
}

func TestOpen_libraryRepaired_loads(t *testing.T) {
	token := tokens.SoftHSM(t)
	path := filepath.Join(t.TempDir(), "lib.so")
	whole := read(t, token.Path)
	write(t, path, whole[:len(whole)/2])
	mustNotOpen(t, configAt(path), hsm.Misconfigured, "truncated")
	write(t, path, whole)
	if _, err := LoadLibrary(path); err != nil {
		t.Error(err)
	}
}

func TestOpen_libraryWithoutDirectory_isSearchedAndChecked(t *testing.T) {
	dir := t.TempDir()
	whole := read(t, build(t, filepath.Join(dir, "libbyname.so"), callsNothing))
	write(t, filepath.Join(dir, "libbyname.so"), whole[:40])
	t.Setenv("LD_LIBRARY_PATH", dir)
	mustNotOpen(t, configAt("libbyname.so"), hsm.Misconfigured, "truncated")
	mustNotOpen(t, configAt("libnowhere.so"), hsm.Misconfigured, "libnowhere.so: cannot open shared object file")
}

// configAt is the configuration of a library that does not load, so nothing else matters.
func configAt(path string) Config {
	return Config{Selector: hsm.TokenSelector{Label: "x"}, Path: path}
}
