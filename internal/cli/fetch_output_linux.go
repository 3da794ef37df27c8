package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// outputMode is that of the file with the data key.
const outputMode = 0o400

// checkOutput rejects a file that cannot be written, or would be written to a disk, before the data key is exported.
func (o *fetchOptions) checkOutput() error {
	if err := checkReplaceable(o.output); err != nil {
		return err
	}
	dir := filepath.Dir(o.output)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if isMemory := fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC; !isMemory && !o.allowDisk {
		return errors.New(dir + " is not in memory, so the data key could remain on a disk\n" +
			"hint: mount an emptyDir with medium: Memory there, or use --allow-disk")
	}
	return nil
}

// write writes the file atomically: readers see the old or the new data key. The file system is in memory, so nothing is
// synced.
func (o *fetchOptions) write(ctx context.Context, text redact.Bytes) (err error) {
	file, err := os.CreateTemp(filepath.Dir(o.output), ".keyconvoy-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	_, err = file.Write(text)
	if err := errors.Join(err, file.Chmod(outputMode), file.Close(), ctx.Err()); err != nil {
		return err
	}
	if err := checkReplaceable(o.output); err != nil {
		return err
	}
	return os.Rename(file.Name(), o.output)
}
