package secrets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"golang.org/x/sync/semaphore"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// MaxEntryLen bounds in bytes what ReadEntry returns. It is more than any PIN has.
const MaxEntryLen = 4096

// SecretEntry is an entry of a Secret, which the caller wipes, and the Secret that it was read from.
type SecretEntry struct {
	UID             types.UID
	ResourceVersion string
	Value           redact.Bytes // nil if the Secret has no such entry
}

// version is Version of the Secret.
func (e *SecretEntry) version() string { return string(e.UID) + "/" + e.ResourceVersion }

// EntryReader reads an entry of a Secret live. It returns nil if the Secret does not exist.
type EntryReader func(ctx context.Context, secret types.NamespacedName, entry string) (*SecretEntry, error)

// PIN reads an entry with a PIN, which the caller wipes, and the version of the Secret. It returns nil if the Secret does not exist.
func (c *Client) PIN(ctx context.Context, ref Ref, entry string) (pin *SecretEntry, version string, err error) {
	read := c.readPIN
	if read == nil {
		read = c.readEntry
	}
	pin, err = read(ctx, ref.key, entry)
	if err != nil || pin == nil {
		return nil, "", err
	}
	version = pin.version()
	return pin, version, nil
}

func (c *Client) readEntry(ctx context.Context, secret types.NamespacedName, entry string) (*SecretEntry, error) {
	s, err := c.Read(ctx, Ref{Secret, secret})
	if err != nil || s == nil {
		return nil, err
	}
	return entryOf(s, entry), nil
}

func entryOf(s *corev1.Secret, entry string) *SecretEntry {
	return &SecretEntry{UID: s.UID, ResourceVersion: s.ResourceVersion, Value: s.Data[entry]}
}

// maxReading bounds the processes at a time, each of which takes as much memory as an idle operator does.
const maxReading = 2

// BySubprocess returns an EntryReader that reads each entry in a process of its own: a command with the Secret's namespace, its name and
// the entry as further arguments, which calls PrintEntry. The client leaves what it has read in buffers that cannot be wiped, and
// they end with that process.
func BySubprocess(stderr io.Writer, command ...string) EntryReader {
	reading := semaphore.NewWeighted(maxReading)
	return func(ctx context.Context, secret types.NamespacedName, entry string) (*SecretEntry, error) {
		if err := reading.Acquire(ctx, 1); err != nil {
			return nil, err
		}
		defer reading.Release(1)
		args := append(command[1:len(command):len(command)], "--", secret.Namespace, secret.Name, entry) // an entry may begin with "-"
		cmd := exec.CommandContext(ctx, command[0], args...)
		cmd.Stderr = stderr
		// Not a buffer of package exec, which would grow and leave copies.
		output, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("the process that reads a Secret: %w", err)
		}
		read, err := receiveEntry(output)
		_ = output.Close() // a process that writes more must not wait for a reader
		if waitErr := cmd.Wait(); waitErr != nil {
			err = fmt.Errorf("the process that reads a Secret: %w", errors.Join(waitErr, ctx.Err()))
		}
		if err != nil && read != nil {
			read.Value.Wipe()
			read = nil
		}
		return read, err
	}
}

// printed is the first line of PrintEntry's output, in JSON. The value follows.
type printed struct {
	UID             types.UID
	ResourceVersion string
	Length          int // of the value; -1 if the Secret has no such entry
	// Status is the error of the API server, and Failure another one.
	Status  *metav1.Status `json:",omitempty"`
	Failure string         `json:",omitempty"`
}

// PrintEntry writes what read returns, for BySubprocess.
func PrintEntry(ctx context.Context, read func(ctx context.Context) (*corev1.Secret, error), entry string, w io.Writer) error {
	var out printed
	var value redact.Bytes
	s, err := read(ctx)
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		out.Status = new(status.Status())
	case err != nil:
		out.Failure = err.Error()
	default:
		found := entryOf(s, entry)
		value = found.Value[:min(len(found.Value), MaxEntryLen+1)]
		out.UID, out.ResourceVersion, out.Length = found.UID, found.ResourceVersion, len(value)
		if found.Value == nil {
			out.Length = -1
		}
	}
	line, err := json.Marshal(out)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	_, err = w.Write(value)
	return err
}

// receiveEntry reads the output of PrintEntry.
func receiveEntry(from io.Reader) (*SecretEntry, error) {
	const enough = 64 << 10 // an error of the API server has a text
	buffer := make([]byte, enough)
	defer clear(buffer)
	n, err := io.ReadFull(from, buffer)
	if err == nil {
		return nil, errors.New("the process that reads a Secret wrote too much")
	}
	line, value, ok := bytes.Cut(buffer[:n], []byte("\n"))
	var out printed
	if !ok || json.Unmarshal(line, &out) != nil || out.Length > len(value) {
		return nil, errors.New("the process that reads a Secret ended before it wrote the entry")
	}
	switch {
	case out.Status != nil:
		err := &apierrors.StatusError{ErrStatus: *out.Status}
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, err
	case out.Failure != "":
		return nil, errors.New(out.Failure)
	}
	read := &SecretEntry{UID: out.UID, ResourceVersion: out.ResourceVersion}
	if out.Length >= 0 {
		read.Value = bytes.Clone(value[:out.Length])
		if read.Value == nil {
			read.Value = redact.Bytes{}
		}
	}
	return read, nil
}
