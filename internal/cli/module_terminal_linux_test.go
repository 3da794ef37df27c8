//go:build cgo

package cli_test

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// screen is what a terminal shows.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// watch copies what the terminal shows until it is closed.
func (s *screen) watch(person *os.File) {
	buffer := make([]byte, 4096)
	for {
		n, err := person.Read(buffer)
		s.mu.Lock()
		s.text.Write(buffer[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func echoes(t testing.TB, terminal *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func TestModuleCheck_asksForThePINWithoutEcho(t *testing.T) {
	t.Parallel()
	token := tokens.SoftHSM(t)
	args := []string{"module", "check", "--pkcs11-module", token.Path, "--token", token.Label}
	for name, test := range map[string]struct {
		answer func(*testing.T, *os.File, *os.Process)
		code   int
		shows  string
	}{
		"the PIN is typed": {func(t *testing.T, person *os.File, _ *os.Process) {
			if _, err := person.WriteString(token.PIN + "\n"); err != nil {
				t.Error(err)
			}
		}, 0, "Testing the token"},
		"the command is interrupted": {func(t *testing.T, _ *os.File, command *os.Process) {
			if err := command.Signal(syscall.SIGINT); err != nil {
				t.Error(err)
			}
		}, 1, "error: interrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			person, program := newTerminal(t)
			var shown screen
			go shown.watch(person)
			var out bytes.Buffer
			cmd := call{args: args, env: token.Env, stdin: program}.command(t)
			cmd.Stdout, cmd.Stderr = &out, program
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the prompt", func() bool { return strings.Contains(shown.String(), "PIN of token") && !echoes(t, program) })
			test.answer(t, person, cmd.Process)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d:\n%s", code, shown.String())
			}
			waitFor(t, test.shows, func() bool { return strings.Contains(shown.String(), test.shows) })
			if !echoes(t, program) {
				t.Error("the terminal does not echo any more")
			}
			if strings.Contains(shown.String()+out.String(), token.PIN) {
				t.Errorf("the terminal shows the PIN:\n%s", shown.String())
			}
		})
	}
}
