package cli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

func TestCommandLine_usedWronglyExitsWith2AndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"an unknown command":                   {[]string{"warp"}, "wrap"},
		"an unknown flag":                      {[]string{"wrap", "--nope"}, "--nope"},
		"an argument where none belongs":       {[]string{"wrap", "payments"}, "payments"},
		"wrap without a key":                   {[]string{"wrap"}, "--key"},
		"wrap with a key and a file of one":    {[]string{"wrap", "--key", "a", "--parameters", "b"}, "parameters"},
		"wrap offline and applying":            {[]string{"wrap", "--parameters", "b", "--apply"}, "apply"},
		"wrap offline in a namespace":          {[]string{"wrap", "--parameters", "b", "-n", "a"}, "namespace"},
		"wrap applying and writing":            {[]string{"wrap", "--key", "a", "--apply", "--out", "b"}, "out"},
		"wrap in two encodings":                {[]string{"wrap", "--key", "a", "--hex", "--base64"}, "hex"},
		"wrap to an unknown format":            {[]string{"wrap", "--key", "a", "--format", "xml"}, "yaml or json"},
		"wrap until no time":                   {[]string{"wrap", "--key", "a", "--in", "b", "--expire-time", "tomorrow"}, "or never"},
		"wrap until a past time":               {[]string{"wrap", "--key", "a", "--in", "b", "--expire-time", "2026-01-02T03:04:05Z"}, "in the past"},
		"wrap with all from standard input":    {[]string{"wrap", "--parameters", "-"}, "--in"},
		"unwrap without a key":                 {[]string{"unwrap", "--in", "a", "--out", "b"}, "key-file"},
		"unwrap without a place":               {[]string{"unwrap", "--in", "a", "--key-file", "b"}, "out"},
		"unwrap to no name":                    {[]string{"unwrap", "--in", "a", "--key-file", "b", "--out", ""}, "--out"},
		"unwrap from two places":               {[]string{"unwrap", "--key-file", "k", "--out", "o", "--in", "a", "--secret-dir", "b"}, "secret-dir"},
		"unwrap a Secret by another algorithm": {[]string{"unwrap", "--key-file", "k", "--out", "o", "--secret-dir", "b", "--algorithm", "SM2PKE"}, "secret-dir"},
		"unwrap by an unknown algorithm":       {[]string{"unwrap", "--key-file", "k", "--out", "o", "--algorithm", "RSA"}, "RSAES_OAEP_SHA_256"},
		"unwrap by an algorithm of no export":  {[]string{"unwrap", "--key-file", "k", "--out", "o", "--algorithm", "RSAES_PKCS1_V1_5"}, "RSAES_OAEP_SHA_256"},
		"unwrap an unknown SM2 format":         {[]string{"unwrap", "--key-file", "k", "--out", "o", "--sm2-format", "DER"}, "C1C3C2"},
		"unwrap to an unknown encoding":        {[]string{"unwrap", "--key-file", "k", "--out", "o", "--encoding", "base32"}, "base64"},
		"unwrap with all from standard input":  {[]string{"unwrap", "--key-file", "-", "--out", "o"}, "--in"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := keyconvoy(t, test.args...)
			got.fails(t, 2, test.says)
			if !strings.Contains(got.errOut, "--help") {
				t.Errorf("it does not say where help is: %s", got.errOut)
			}
		})
	}
}

func TestHelp_namesExitCodesAndHasExamples(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		says []string
	}{
		"the root":            {[]string{"--help"}, []string{"Exit codes: 0", "wrap", "unwrap", "manager", "module check", "fetch", "kubectl-keyconvoy"}},
		"the root by default": {nil, []string{"Exit codes: 0"}},
		"wrap":                {[]string{"wrap", "--help"}, []string{"Examples:", "--parameters", "--apply", "32 bytes"}},
		"unwrap":              {[]string{"unwrap", "--help"}, []string{"Examples:", "--secret-dir", "0600"}},
		"fetch":               {[]string{"fetch", "--help"}, []string{"Examples:", "--datakey", "KEYCONVOY_KEY_FD", "0400", "the verb export"}},
		"module":              {[]string{"module"}, []string{"check"}},
		"module check":        {[]string{"module", "check", "--help"}, []string{"Examples:", "--token", "changes nothing", "tries it once"}},
		"the version":         {[]string{"--version"}, []string{"keyconvoy "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := keyconvoy(t, test.args...).succeeds(t)
			for _, words := range test.says {
				if !strings.Contains(got.out, words) {
					t.Errorf("help lacks %q:\n%s", words, got.out)
				}
			}
			if got.errOut != "" {
				t.Errorf("standard error has %q", got.errOut)
			}
		})
	}
}

func TestPlugin_speaksOfKubectl(t *testing.T) {
	t.Parallel()
	got := call{name: "/usr/local/bin/kubectl-keyconvoy", args: []string{"wrap", "--help"}}.run(t).succeeds(t)
	for _, line := range []string{"  kubectl keyconvoy wrap (", "  kubectl keyconvoy wrap --key payments"} {
		if !strings.Contains(got.out, line) {
			t.Errorf("help lacks %q:\n%s", line, got.out)
		}
	}
	if strings.Contains(got.out, "  keyconvoy ") || strings.Contains(got.out, "kubectl kubectl") {
		t.Errorf("help speaks of another command:\n%s", got.out)
	}
	nested := call{name: "kubectl-keyconvoy", args: []string{"module", "check", "--help"}}.run(t).succeeds(t)
	if !strings.Contains(nested.out, "  kubectl keyconvoy module check --pkcs11-module") || strings.Contains(nested.out, "  keyconvoy ") {
		t.Errorf("help of a nested command speaks of another command:\n%s", nested.out)
	}
	call{name: "kubectl-keyconvoy", args: []string{"wrap"}}.run(t).fails(t, 2, "kubectl keyconvoy wrap --help")
}

func TestPlugin_isFoundAndCompletedByKubectl(t *testing.T) {
	t.Parallel()
	testenv.Start(t) // kubectl is there
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"kubectl-keyconvoy", "kubectl_complete-keyconvoy"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"found":     {[]string{"keyconvoy", "unwrap", "--help"}, "kubectl keyconvoy unwrap --key-file"},
		"completed": {[]string{"__complete", "keyconvoy", "wrap", "--format", ""}, "yaml\njson\n"},
	} {
		cmd := exec.Command((&testenv.Env{}).Kubectl(), test.args...)
		cmd.Env = selfEnv(t.TempDir(), "PATH="+bin+":"+os.Getenv("PATH"))
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), test.says) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestSignals_endACommandThatWaitsForInput(t *testing.T) {
	t.Parallel()
	material := file(t, "material.bin", canary)
	for name, signal := range map[string]syscall.Signal{"interrupt": syscall.SIGINT, "terminate": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fifo := filepath.Join(t.TempDir(), "parameters")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			var errOut strings.Builder
			cmd := call{args: []string{"wrap", "--parameters", fifo, "--in", material}}.command(t)
			cmd.Stderr = &errOut
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// This opens when the other side does, and that reads until we close.
			pipe, err := os.OpenFile(fifo, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer pipe.Close()
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 1 || errOut.String() != "error: interrupted\n" {
				t.Errorf("exit code %d, standard error %q", code, errOut.String())
			}
		})
	}
}
