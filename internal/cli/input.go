package cli

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/term"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// standardStream is the file name that stands for standard input or output.
const standardStream = "-"

// readBounded reads a file, or in where the name is "-", of at most limit bytes. The result has one buffer, so that
// wiping it leaves no copy. It returns when ctx ends, even if a pipe has no data.
func readBounded(ctx context.Context, name string, in io.Reader, limit int) (redact.Bytes, error) {
	type result struct {
		data redact.Bytes
		err  error
	}
	done := make(chan result, 1)
	go func() {
		data, err := readAtMost(name, in, limit)
		done <- result{data, err}
	}()
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func readAtMost(name string, in io.Reader, limit int) (redact.Bytes, error) {
	if name != standardStream {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	buffer := make(redact.Bytes, limit+1)
	n, err := io.ReadFull(in, buffer)
	switch {
	case err == nil:
		buffer.Wipe()
		return nil, fmt.Errorf("%s is longer than %d bytes", describeInput(name), limit)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return buffer[:n], nil
	}
	buffer.Wipe()
	return nil, fmt.Errorf("reading %s: %w", describeInput(name), err)
}

func describeInput(name string) string {
	if name == standardStream {
		return "standard input"
	}
	return name
}

// isTerminal reports whether a stream is a terminal, where secrets must not be shown.
func isTerminal(stream any) bool {
	file, ok := stream.(interface{ Fd() uintptr })
	return ok && term.IsTerminal(int(file.Fd()))
}

// warnIfShared warns if every user of the machine can read a file with a secret. It is not an error, because the
// volumes of a pod have that mode unless their defaultMode is set.
func warnIfShared(warnings io.Writer, name string) {
	info, err := os.Stat(name)
	if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		fmt.Fprintf(warnings, "warning: every user of this machine can read %s; run chmod 600 on it, "+
			"or in a pod set defaultMode: 0440 on the volume and an fsGroup on the pod\n", name)
	}
}

// encoding is how bytes are written as text. The empty encoding is invalid.
type encoding string

const (
	encodingRaw    encoding = "raw"
	encodingHex    encoding = "hex"
	encodingBase64 encoding = "base64"
)

func encodings() []string {
	return []string{string(encodingRaw), string(encodingHex), string(encodingBase64)}
}

var (
	errNotHex    = errors.New("not hexadecimal digits in pairs")
	errNotBase64 = errors.New("not standard Base64 with padding")
)

// decode reads text that may be secret, ignoring ASCII white space. It works on bytes, and not
// through internal/b64, because a string cannot be wiped. text is no longer usable afterwards.
func (e encoding) decode(text redact.Bytes) (redact.Bytes, error) {
	if e == encodingRaw {
		return text, nil
	}
	defer text.Wipe()
	packed := dropSpace(text)
	raw := make(redact.Bytes, len(packed))
	var n int
	var err error
	var refused error
	switch e {
	case encodingHex:
		n, err = hex.Decode(raw, packed)
		refused = errNotHex
	default:
		n, err = base64.StdEncoding.Strict().Decode(raw, packed)
		refused = errNotBase64
	}
	if err != nil {
		raw.Wipe()
		return nil, refused
	}
	return raw[:n], nil
}

// encode writes a secret as text; text ends in a newline.
func (e encoding) encode(raw redact.Bytes) redact.Bytes {
	var text redact.Bytes
	switch e {
	case encodingHex:
		text = make(redact.Bytes, hex.EncodedLen(len(raw))+1)
		hex.Encode(text, raw)
	case encodingBase64:
		text = make(redact.Bytes, base64.StdEncoding.EncodedLen(len(raw))+1)
		base64.StdEncoding.Encode(text, raw)
	default:
		return append(redact.Bytes(nil), raw...)
	}
	text[len(text)-1] = '\n'
	return text
}

// dropSpace takes the white space out of text in place.
func dropSpace(text redact.Bytes) redact.Bytes {
	kept := text[:0]
	for _, b := range text {
		switch b {
		case ' ', '\t', '\n', '\r', '\v', '\f':
		default:
			kept = append(kept, b)
		}
	}
	return kept
}

// isMissing reports whether an error means that a file does not exist.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
