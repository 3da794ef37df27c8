package cli_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// newTerminal opens a pseudo-terminal: what a person sees at one end, what a program has at the other.
func newTerminal(t testing.TB) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func TestUnwrapOut_showsNothingOnATerminalUnlessAsked(t *testing.T) {
	t.Parallel()
	rsa := rsaPair(t)
	in := file(t, "in", rsa.encrypt(t, "RSAES_OAEP_SHA_256", canary))
	args := []string{"unwrap", "--key-file", rsa.file(t), "--algorithm", "RSAES_OAEP_SHA_256", "--in", in, "--out", "-", "--encoding", "hex"}

	person, program := newTerminal(t)
	var errOut bytes.Buffer
	refused := call{args: args}.command(t)
	refused.Stdout, refused.Stderr = program, &errOut
	_ = refused.Run()
	outcome{code: refused.ProcessState.ExitCode(), errOut: errOut.String()}.fails(t, 2, "standard output is a terminal", "--to-terminal")

	asked := call{args: append(args, "--to-terminal")}.command(t)
	asked.Stdout, asked.Stderr = program, &errOut
	if err := asked.Run(); err != nil {
		t.Fatalf("%v: %s", err, errOut.String())
	}
	seen := make(redact.Bytes, 1024)
	n, err := person.Read(seen)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(seen[:n])); got != hex.EncodeToString(canary) {
		t.Errorf("the terminal shows %q", got) // the refused call's output would come first
	}
}

func TestInput_isNotTakenFromATerminal(t *testing.T) {
	t.Parallel()
	_, program := newTerminal(t)
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"material":     {[]string{"wrap", "--parameters", importedKeyFile(t, nil)}, "standard input is a terminal"},
		"a ciphertext": {[]string{"unwrap", "--key-file", rsaPair(t).file(t), "--out", "x"}, "a ciphertext is required"},
	} {
		t.Run(name, func(t *testing.T) {
			call{args: test.args, stdin: program}.run(t).fails(t, 2, test.says)
		})
	}
}
