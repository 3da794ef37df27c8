package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// closeInherited closes the files that the process has inherited, except the standard ones and the sockets. Go passes on none, but C
// code in the parent may have opened some. What remains is of the Go runtime.
func closeInherited() error {
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, descriptor := range descriptors {
		number, err := strconv.Atoi(descriptor.Name())
		if err != nil || number <= parentDescriptor {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + descriptor.Name())
		if err != nil || ofRuntime(target) { // closed already, or in use
			continue
		}
		if err := unix.Close(number); err != nil {
			return fmt.Errorf("close %s: %w", target, err)
		}
	}
	return nil
}

// ofRuntime returns whether a file is one that the Go runtime keeps open: its poller, and the CPU limit of the process's cgroup.
func ofRuntime(target string) bool {
	return strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/sys/fs/cgroup/")
}

// restrict takes from this process what its library does not need. It returns the protections that are not in effect, with the
// reasons, and fails if one should be in effect and is not.
func restrict(library Library) (missing []string, err error) {
	// On all threads, also on those that exist.
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return nil, fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", errno)
	}
	if why := lockMemory(); why != "" {
		missing = append(missing, why)
	}
	if library.Unrestricted {
		return append(missing, "Landlock: the administrator turned it off for this library"), nil
	}
	why, err := restrictFiles(library)
	if why != "" {
		missing = append(missing, why)
	}
	return missing, err
}

// lockMemory keeps the process's memory out of the swap space, and returns why it cannot. Pages are locked when they are used:
// otherwise the whole program would be read into memory. A limit would apply to the address space, most of which Go only reserves,
// and the process would run out of it.
func lockMemory() string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Sprintf("memory lock: %v", err)
	}
	if limit.Cur != unix.RLIM_INFINITY && !mayLockMemory() {
		return fmt.Sprintf("memory lock: RLIMIT_MEMLOCK is %d bytes, and the process lacks CAP_IPC_LOCK", limit.Cur)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | mclOnFault); err != nil {
		return fmt.Sprintf("memory lock: mlockall: %v", err)
	}
	return ""
}

// mayLockMemory returns whether limits do not apply to the process.
func mayLockMemory() bool {
	var sets [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0])
	return err == nil && sets[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

// mclOnFault is MCL_ONFAULT (Linux 4.4), which package unix does not have.
const mclOnFault = 4

// systemPaths are what every library needs: the dynamic linker's files, those of the C library's resolver and locale, devices, and
// the system's libraries. Anything else must be named: Library.Paths.
var systemPaths = []string{
	"/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64", "/usr/share/zoneinfo", "/usr/share/locale",
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/hosts",
	"/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/ssl/openssl.cnf",
	"/dev/urandom", "/dev/random", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/sys/crypto", "/sys/devices/system/cpu",
}

// restrictFiles allows only the files that the library needs, and returns why the kernel does not support that.
func restrictFiles(library Library) (why string, err error) {
	rules, err := fileRules(library)
	if err != nil {
		return "", err
	}
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || version == 0 {
		return fmt.Sprintf("Landlock: the kernel does not support it (%v)", errno), nil
	}
	if version < landlockVersion {
		why = fmt.Sprintf("Landlock: the kernel supports version %d of %d, so it restricts fewer operations on files", version, landlockVersion)
	}
	return why, landlock.V5.BestEffort().RestrictPaths(rules...)
}

// landlockVersion is that of landlock.V5, which restricts device files, too.
const landlockVersion = 5

// serviceAccount is where Kubernetes mounts the token of the operator. No directory of a library may contain it.
var serviceAccount = []string{"/var/run/secrets/kubernetes.io/serviceaccount", "/run/secrets/kubernetes.io/serviceaccount"}

// libraryPaths are the library and what is beside it, and the directories of other libraries that the administrator named. If the
// library is in a directory above the operator's token, only its file is allowed.
func libraryPaths(library Library) []string {
	paths := filepath.SplitList(os.Getenv("LD_LIBRARY_PATH"))
	if filepath.IsAbs(library.Path) {
		paths = append(paths, filepath.Dir(library.Path), library.Path)
	}
	if file, err := filepath.EvalSymlinks(library.Path); err == nil {
		paths = append(paths, filepath.Dir(file), file)
	}
	return slices.DeleteFunc(paths, func(path string) bool {
		return !filepath.IsAbs(path) || slices.ContainsFunc(serviceAccount, func(secret string) bool {
			relative, err := filepath.Rel(path, secret)
			return err != nil || relative == "." || filepath.IsLocal(relative)
		})
	})
}

func fileRules(library Library) ([]landlock.Rule, error) {
	rules := []landlock.Rule{landlock.RWFiles("/dev/null")}
	for _, path := range slices.Concat(libraryPaths(library), systemPaths) {
		info, err := os.Stat(path)
		switch {
		case err != nil: // this system does not have it
		case info.IsDir():
			rules = append(rules, landlock.RODirs(path))
		default:
			rules = append(rules, landlock.ROFiles(path))
		}
	}
	for _, path := range library.Paths {
		rule, err := pathRule(path)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func pathRule(path Path) (landlock.Rule, error) {
	info, err := os.Stat(path.Name)
	switch {
	case err != nil:
		return nil, hsm.Wrap(hsm.Misconfigured, err, fmt.Sprintf(
			"the library may use %q (--pkcs11-allow-path), which the operator cannot find: create it, or correct the path", path.Name))
	case info.IsDir() && path.Writable:
		return landlock.RWDirs(path.Name).WithIoctlDev(), nil
	case info.IsDir():
		return landlock.RODirs(path.Name), nil
	case path.Writable:
		return landlock.RWFiles(path.Name).WithIoctlDev(), nil
	}
	return landlock.ROFiles(path.Name), nil
}
