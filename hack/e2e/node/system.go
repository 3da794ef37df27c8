package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// apiServerAddress is the first address of envtest's range of Services, and therefore that of the Service kubernetes. The
// API server itself listens there, so pods reach it without kube-proxy.
const (
	apiServerAddress = "10.0.0.1"
	apiServerPort    = "443"
	podNetwork       = "10.244.0.0/24"
)

// setUp prepares the namespaces of the node.
func setUp() error {
	if err := mountPlaces(); err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	if err := fakeTunables(); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	return setUpNetwork()
}

// mountPlaces gives the node places of its own where its processes write, at the paths that Kubernetes and CSI drivers
// expect, without changing directories of the machine.
func mountPlaces() error {
	// What is mounted here must not appear on the machine, and what the machine unmounts must not remain here.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separating the mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := mountMemory("/run"); err != nil {
		return err
	}
	for _, dir := range []string{"/var/lib", "/var/log"} {
		if err := coverDirectory(dir); err != nil {
			return err
		}
	}
	// The upper directory of an overlay cannot be on an overlay, and containerd's snapshots are overlays.
	for _, dir := range []string{"/var/lib/containerd", "/var/lib/kubelet"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := mountMemory(dir); err != nil {
			return err
		}
	}
	// Mounts of CSI drivers below it have to appear in the other containers and on the node.
	return syscall.Mount("", "/var/lib/kubelet", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

func mountMemory(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID, "mode=0755"); err != nil {
		return fmt.Errorf("mounting a tmpfs at %s: %w", dir, err)
	}
	return nil
}

// coverDirectory lets the node write to a directory of the machine and keep what it writes in memory.
func coverDirectory(dir string) error {
	cover := filepath.Join("/run", "cover", dir)
	upper, work := filepath.Join(cover, "upper"), filepath.Join(cover, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil { //nolint:gosec // as the directory that it covers
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
	if err := syscall.Mount("overlay", dir, "overlay", 0, layers); err != nil {
		return fmt.Errorf("mounting an overlay at %s: %w", dir, err)
	}
	return nil
}

// fakeTunables lets the kubelet find the kernel's settings that it wants, so that it does not set them for the whole
// machine.
func fakeTunables() error {
	for tunable, value := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(stateDir, strings.ReplaceAll(tunable, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return err
		}
		if err := syscall.Mount(file, filepath.Join("/proc/sys", tunable), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting on the kernel's setting %s: %w", tunable, err)
		}
	}
	return nil
}

// setUpNetwork makes the network of the node, which is connected to nothing outside.
func setUpNetwork() error {
	for _, args := range []string{
		"link set lo up",
		"address add " + apiServerAddress + "/32 dev lo",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
}
