package cli_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// reportVariable names a file into which a process that is keyconvoy writes, at its end, what a core dump of it
// would be allowed.
const reportVariable = "KEYCONVOY_TEST_REPORT"

func init() { atEnd = reportProcess }

func reportProcess() {
	path := os.Getenv(reportVariable)
	if path == "" {
		return
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		panic(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(limits, "dumpable %d\n", dumpable), 0o600); err != nil {
		panic(err)
	}
}

// The limits of this process do not forbid core dumps, and those of every command do.
func TestCommands_leaveNoCoreDumps(t *testing.T) {
	t.Parallel()
	key := rsaPair(t)
	for name, c := range map[string]call{
		"manager": {args: []string{"manager", "--kubeconfig", "/nowhere"}, env: []string{"POD_NAMESPACE=keyconvoy-system"}},
		"wrap":    {args: []string{"wrap", "--parameters", "/nowhere", "--in", "/nowhere"}},
		"unwrap": {args: []string{
			"unwrap", "--key-file", key.file(t), "--algorithm", "RSAES_OAEP_SHA_256", "--in", "-", "--out", filepath.Join(t.TempDir(), "key"),
		}, stdin: bytes.NewReader(key.encrypt(t, "RSAES_OAEP_SHA_256", canary))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := filepath.Join(t.TempDir(), "report")
			c.env = append(c.env, reportVariable+"="+report)
			said := c.run(t)
			text, err := os.ReadFile(report)
			if err != nil {
				t.Fatalf("%v: %s", err, said.errOut)
			}
			for line := range strings.Lines(string(text)) {
				fields := strings.Fields(strings.TrimPrefix(line, "Max core file size"))
				if strings.HasPrefix(line, "Max core file size") && (fields[0] != "0" || fields[1] != "0") {
					t.Errorf("the soft and the hard limit are %v", fields)
				}
			}
			if !strings.Contains(string(text), "Max core file size") || !strings.HasSuffix(string(text), "dumpable 0\n") {
				t.Errorf("the process says\n%s", text)
			}
		})
	}
}
