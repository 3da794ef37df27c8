package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// writePrivate writes a file that only its owner can read (mode 0600), atomically: readers see the old or the new
// content, also after a crash.
func writePrivate(ctx context.Context, name string, data []byte) (err error) {
	if err := checkReplaceable(name); err != nil {
		return err
	}
	dir := filepath.Dir(name)
	file, err := os.CreateTemp(dir, ".keyconvoy-*") // creates it with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	if err := errors.Join(writeAndSync(file, data), file.Close()); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), name); err != nil {
		return err
	}
	return syncDir(dir)
}

// checkReplaceable rejects a name that is a device, pipe, link or directory, because renaming would replace it.
func checkReplaceable(name string) error {
	info, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s exists and is not a regular file\nhint: use another name, or - for standard output", name)
	}
	return nil
}

func writeAndSync(file *os.File, data []byte) error {
	if _, err := file.Write(data); err != nil {
		return err
	}
	return file.Sync()
}

// syncDir makes a rename durable. The file already exists at this point, so a file system that cannot sync
// directories is not an error.
func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return nil //nolint:nilerr // the directory can be writable but not readable
	}
	defer dir.Close()
	_ = dir.Sync()
	return nil
}

func writeAll(ctx context.Context, out io.Writer, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := out.Write(data)
	return err
}
