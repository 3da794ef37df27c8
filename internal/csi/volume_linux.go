package csi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// A volume is a tmpfs with one file. The directory that the kubelet has made for the pod is closed to all users of the node but
// root, so only the pod's containers and root can reach it.

// mountFlags are those of every volume.
const mountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// volumeSize is the size of a volume in bytes.
const volumeSize = 64 << 10

// noSwap is the mount option that keeps pages from being swapped out.
const noSwap = "noswap"

// isComplete reports whether the volume is mounted and has its file, which is there as a whole or not at all.
func (v *volume) isComplete() (bool, error) {
	mounted, err := isVolume(v.target)
	if err != nil || !mounted {
		return false, err
	}
	_, err = os.Lstat(filepath.Join(v.target, v.file))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// write mounts the volume, unless it is mounted, and writes the file.
func (v *volume) write(dataKey redact.Bytes) error {
	if err := os.MkdirAll(v.target, 0o750); err != nil {
		return err
	}
	mounted, err := isVolume(v.target)
	if err != nil {
		return err
	}
	if !mounted {
		if err := v.mount(); err != nil {
			return fmt.Errorf("mounting a tmpfs: %w", err)
		}
	}
	return v.writeFile(dataKey)
}

// mount mounts a tmpfs of which no page is swapped out, if the kernel can do that (Linux 6.4).
func (v *volume) mount() error {
	options := fmt.Sprintf("size=%d,nr_inodes=16,mode=0755", volumeSize)
	if v.group >= 0 {
		options = fmt.Sprintf("size=%d,nr_inodes=16,mode=0750,gid=%d", volumeSize, v.group)
	}
	err := unix.Mount(Name, v.target, "tmpfs", mountFlags, options+","+noSwap)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount(Name, v.target, "tmpfs", mountFlags, options)
	}
	return err
}

// remount changes the flags of a volume. From Linux 6.4 until late 2025, a tmpfs that was mounted with noswap cannot be
// remounted without it. One that was mounted without it cannot be remounted with it: EINVAL in both cases, and no change.
func remount(target string, flags uintptr) error {
	err := unix.Mount("", target, "", unix.MS_REMOUNT|mountFlags|flags, noSwap)
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("", target, "", unix.MS_REMOUNT|mountFlags|flags, "")
	}
	return err
}

// writeFile writes the file atomically. With an fsGroup, only that group can read it. Without, the user of the containers is
// not known, and everyone in them can.
func (v *volume) writeFile(dataKey redact.Bytes) (err error) {
	file, err := os.CreateTemp(v.target, ".keyconvoy-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	mode := fs.FileMode(0o444)
	if v.group >= 0 {
		mode = 0o440
	}
	_, err = file.Write(dataKey)
	if err := errors.Join(err, file.Chown(-1, v.group), file.Chmod(mode), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), filepath.Join(v.target, v.file))
}

// protect makes the volume read-only, if the pod asks for that. The file system itself is read-only then, and not only this
// mount of it.
func (v *volume) protect() error {
	if !v.readOnly {
		return nil
	}
	return remount(v.target, unix.MS_RDONLY)
}

// remove overwrites the files of a volume, unmounts it, and removes its directory. There may be nothing, or only a part. A
// volume that cannot be overwritten is unmounted all the same: otherwise its pod could not end.
func remove(target string, log logr.Logger) error {
	for {
		mounted, err := isVolume(target)
		if err != nil {
			return err
		}
		if !mounted {
			break
		}
		if err := wipe(target); err != nil {
			log.Error(err, "Overwriting the files of a volume failed")
		}
		err = unix.Unmount(target, 0)
		if errors.Is(err, unix.EBUSY) { // someone is still in it; it disappears when they leave
			err = unix.Unmount(target, unix.MNT_DETACH)
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// wipe overwrites the files of a volume with zeros, so that a process that still has one open does not keep the data key alive.
// The pod may have written to the volume, so the files may be of any kind and length.
func wipe(target string) error {
	var fileSystem unix.Statfs_t
	if err := unix.Statfs(target, &fileSystem); err != nil {
		return &fs.PathError{Op: "statfs", Path: target, Err: err}
	}
	if fileSystem.Flags&unix.ST_RDONLY != 0 {
		if err := remount(target, 0); err != nil {
			return fmt.Errorf("making %s writable: %w", target, err)
		}
	}
	entries, err := os.ReadDir(target)
	for _, entry := range entries {
		if entry.Type().IsRegular() {
			err = errors.Join(err, overwrite(filepath.Join(target, entry.Name())))
		}
	}
	return err
}

// overwrite overwrites a file. A file with holes may be longer than the volume.
func overwrite(name string) error {
	file, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // it was replaced
		return nil
	}
	var zeros [4096]byte
	for left := min(info.Size(), volumeSize); left > 0 && err == nil; left -= int64(len(zeros)) {
		_, err = file.Write(zeros[:min(left, int64(len(zeros)))])
	}
	return err
}

// isVolume reports whether a tmpfs is mounted on a directory. The directory may not exist.
func isVolume(dir string) (bool, error) {
	var at, above unix.Stat_t
	err := unix.Lstat(dir, &at)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err == nil {
		err = unix.Lstat(filepath.Dir(dir), &above)
	}
	if err != nil {
		return false, &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if at.Dev == above.Dev {
		return false, nil
	}
	var fileSystem unix.Statfs_t
	if err := unix.Statfs(dir, &fileSystem); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if fileSystem.Type != unix.TMPFS_MAGIC {
		return false, fmt.Errorf("another file system is mounted on %s", dir)
	}
	return true, nil
}
