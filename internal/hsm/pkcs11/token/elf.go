//go:build cgo

package token

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// The dynamic linker does not detect a truncated library: it maps the file and reads a page that does not exist, and the kernel
// ends the process. So LoadLibrary first checks every file that the linker will load. The checks report the mistakes that they
// recognize and leave the rest to the linker.

// elfMachines are the ELF machine types by GOARCH.
var elfMachines = map[string]elf.Machine{
	"386": elf.EM_386, "amd64": elf.EM_X86_64, "arm": elf.EM_ARM, "arm64": elf.EM_AARCH64, "loong64": elf.EM_LOONGARCH,
	"ppc64": elf.EM_PPC64, "ppc64le": elf.EM_PPC64, "riscv64": elf.EM_RISCV, "s390x": elf.EM_S390,
}

// checkLibrary checks a library and the libraries that it needs, if it finds them.
func checkLibrary(path string) error {
	if !strings.Contains(path, "/") { // a name, which the linker searches for
		if path = findLibrary(path, searchPath()); path == "" {
			return nil
		}
	}
	checked := map[string]bool{}
	needed := []string{path}
	for len(needed) > 0 {
		file := needed[0]
		needed = needed[1:]
		if real, err := filepath.EvalSymlinks(file); err == nil && checked[real] {
			continue
		} else if err == nil {
			checked[real] = true
		}
		more, err := checkELF(file)
		if err != nil && file != path {
			return fmt.Errorf("it needs %s, and %w", file, err)
		}
		if err != nil {
			return err
		}
		needed = append(needed, more...)
	}
	return nil
}

// checkELF checks one file and returns the files of the libraries that it needs, if it finds them.
func checkELF(path string) (needed []string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := elf.NewFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s is %s", path, describeFile(file, info.Size()))
	}
	defer func() { _ = f.Close() }()
	if want, known := elfMachines[runtime.GOARCH]; known && f.Machine != want {
		return nil, fmt.Errorf("%s is built for another processor (%s, and this system is %s)", path, f.Machine, want)
	}
	if f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("%s is not a shared library (its type is %s)", path, f.Type)
	}
	for _, segment := range f.Progs {
		if end := segment.Off + segment.Filesz; end > uint64(info.Size()) || end < segment.Off { //nolint:gosec // a size is not negative
			return nil, fmt.Errorf("%s is truncated: it has %d bytes and should have at least %d", path, info.Size(), end)
		}
	}
	return neededBy(f, filepath.Dir(path)), nil
}

// describeFile returns what a file is that is not an ELF file.
func describeFile(file io.ReaderAt, size int64) string {
	start := make([]byte, 512)
	n, err := file.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "not readable: " + err.Error()
	}
	start = start[:n]
	text := !slices.ContainsFunc(start, func(b byte) bool { return b == 0 || b >= 0x7f })
	switch {
	case size == 0:
		return "empty"
	case strings.HasPrefix(string(start), elf.ELFMAG):
		return "truncated or damaged: its ELF headers cannot be read"
	case text && strings.Contains(string(start), "git-lfs"):
		return "a Git LFS pointer, not the library itself"
	case text && (strings.Contains(string(start), "GNU ld script") || strings.Contains(string(start), "GROUP (") || strings.Contains(string(start), "INPUT (")):
		return "a linker script, which is for building programs: use the library that it names"
	case text:
		return "a text file, not a shared library"
	case strings.HasPrefix(string(start), "MZ"):
		return "a Windows library"
	case strings.HasPrefix(string(start), "\xcf\xfa\xed\xfe"), strings.HasPrefix(string(start), "\xca\xfe\xba\xbe"):
		return "a macOS library"
	case strings.HasPrefix(string(start), "!<arch>"):
		return "a static library: use the shared library, which ends in .so"
	}
	return "not a shared library"
}

// neededBy returns the files of the libraries that a library in that directory needs. It searches the directories that the
// dynamic linker searches first, and skips what it does not find.
func neededBy(f *elf.File, dir string) []string {
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, _ := f.DynString(tag)
		for _, path := range paths {
			path = strings.NewReplacer("$ORIGIN", dir, "${ORIGIN}", dir).Replace(path)
			dirs = append(dirs, filepath.SplitList(path)...)
		}
	}
	dirs = append(dirs, searchPath()...)
	var found []string
	for _, name := range names {
		if path := findLibrary(name, dirs); path != "" {
			found = append(found, path)
		}
	}
	return found
}

func findLibrary(name string, dirs []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && hasOurArchitecture(path) {
			return path
		}
	}
	return ""
}

// hasOurArchitecture returns whether the linker would use a file: it skips libraries of other architectures.
func hasOurArchitecture(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return true // the linker does not skip a damaged file
	}
	defer func() { _ = f.Close() }()
	want, known := elfMachines[runtime.GOARCH]
	return !known || f.Machine == want
}

// searchPath returns the directories that the linker searches for every library: from the environment, from its configuration,
// and its defaults.
func searchPath() []string {
	dirs := filepath.SplitList(os.Getenv("LD_LIBRARY_PATH"))
	files, _ := filepath.Glob("/etc/ld.so.conf.d/*.conf")
	for _, file := range append(files, "/etc/ld.so.conf") {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(text), "\n") {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
				dirs = append(dirs, line)
			}
		}
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
}
