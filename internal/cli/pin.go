package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// maxPIN is longer than any PIN.
const maxPIN = 1 << 10

// readPIN reads a PIN from a file, or from the terminal without echo. The caller must wipe it.
func readPIN(cmd *cobra.Command, file, token string) (redact.Bytes, error) {
	if file == "" {
		return askPIN(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr(), token)
	}
	text, err := readBounded(cmd.Context(), file, cmd.InOrStdin(), maxPIN)
	if err != nil {
		return nil, err
	}
	if file != standardStream {
		warnIfShared(cmd.ErrOrStderr(), file)
	}
	// The operator, too, removes the newline with which files end.
	pin := bytes.TrimRight(text, "\r\n")
	if why := faultOfPIN(pin); why != "" {
		text.Wipe()
		return nil, fmt.Errorf("the PIN in %s %s, so it was not tried\nhint: write the PIN itself, in UTF-8, with no more than a newline after it", describeInput(file), why)
	}
	return redact.Bytes(pin), nil
}

// faultOfPIN returns what is wrong with a PIN because of how its file was written, or "". An attempt with it would be wasted.
func faultOfPIN(pin []byte) string {
	switch {
	case len(pin) == 0:
		return "is empty"
	case bytes.HasPrefix(pin, []byte("\xef\xbb\xbf")), bytes.HasPrefix(pin, []byte("\xff\xfe")), bytes.HasPrefix(pin, []byte("\xfe\xff")):
		return "begins with a byte-order mark"
	case bytes.ContainsAny(pin, "\r\n\x00"):
		return "has several lines or a NUL byte"
	}
	return ""
}

// askPIN reads a PIN from the terminal. If ctx ends first, the terminal echoes again.
func askPIN(ctx context.Context, in io.Reader, out io.Writer, token string) (redact.Bytes, error) {
	if !isTerminal(in) {
		return nil, usagef("the token requires a PIN\nhint: put it into a file for --pin-file, or run the command on a terminal")
	}
	fd := int(in.(interface{ Fd() uintptr }).Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type result struct {
		pin redact.Bytes
		err error
	}
	done := make(chan result, 1)
	fmt.Fprintf(out, "PIN of token %s: ", printable(token))
	go func() {
		pin, err := term.ReadPassword(fd)
		done <- result{pin, err}
	}()
	select {
	case r := <-done:
		fmt.Fprintln(out)
		if r.err == nil && len(r.pin) == 0 {
			r.err = errors.New("the PIN is empty, so it was not tried")
		}
		return r.pin, r.err
	case <-ctx.Done():
		fmt.Fprintln(out)
		return nil, errors.Join(ctx.Err(), term.Restore(fd, before))
	}
}
