package main

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// The tests run the benchmark with a few objects, and with a product and a launcher built from this tree. They check
// what it counts, not how fast it is.

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())             // as main does
	if err := os.Chdir("../.."); err != nil { // the benchmark runs in the root of the repository
		panic(err)
	}
	os.Exit(m.Run())
}

func builtTools(t *testing.T) *tools {
	t.Helper()
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set. Run `make test`, which builds kube-apiserver, etcd and kubectl and sets it")
	}
	dir := t.TempDir()
	found := &tools{
		launcher: filepath.Join(dir, "controlplane"), keyconvoy: filepath.Join(dir, "keyconvoy"), kubectl: filepath.Join(assets, "kubectl"),
	}
	for path, pkg := range map[string]string{found.keyconvoy: ".", found.launcher: "hack/controlplane"} {
		cmd := exec.Command("go", "build", "-o", path, ".")
		cmd.Dir = pkg
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, out)
		}
	}
	return found
}

func TestBench_countsWhatEachScenarioCosts(t *testing.T) {
	const n = 8
	o, err := parse([]string{
		"-n", "8", "-namespaces", "3", "-stores", onNSS, "-algorithms", "RSAES_OAEP_SHA_1", "-public-keys", inline,
		"-concurrency", "4", "-steady", "2s", "-trouble", "3s",
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &report{}

	if err := measure(t.Context(), builtTools(t), o, r); err != nil {
		t.Fatal(err)
	}

	if len(r.Limit) != 6 || r.bestLimit().Objects != n { // applied, created, before and after converge and rotate
		t.Errorf("the limit was measured as %+v", r.Limit)
	}
	checkConverge(t, r.Converge, n)
	checkRestart(t, r.Restart, n)
	if len(r.Rotate) != 1 || r.Rotate[0].Requests["APPLY secrets"] != n || r.Rotate[0].Requests["PATCH datakeys/status"] != n || r.Rotate[0].Ratio <= 0 {
		t.Errorf("rotate was measured as %+v", r.Rotate)
	}
	if len(r.Steady) != 1 || r.Steady[0].Seconds < 2 || r.Steady[0].Requests["PATCH exporteddatakeys/status"] != 0 {
		t.Errorf("steady was measured as %+v", r.Steady)
	}
	if len(r.Trouble) != 1 || r.Trouble[0].Recovery <= 0 || r.Trouble[0].Ready >= n {
		t.Errorf("trouble was measured as %+v", r.Trouble)
	}
	if len(r.Namespaces) != 1 || r.Namespaces[0].Requests["APPLY secrets"] != 3 || r.Namespaces[0].Writes < 3 {
		t.Errorf("namespaces were measured as %+v", r.Namespaces)
	}
	drawn(t, r)
}

func checkConverge(t *testing.T, runs []convergeRun, n int) {
	t.Helper()
	if len(runs) != 1 {
		t.Fatalf("converge was measured as %+v", runs)
	}
	run := runs[0]
	if run.Requests["APPLY secrets"] != n || run.Requests["PATCH exporteddatakeys/status"] != n || run.Calls["ExportDataKey OK"] != n {
		t.Errorf("%d exports cost the requests %v and the calls %v", n, run.Requests, run.Calls)
	}
	if run.Ratio <= 0 || run.CPU <= 0 || run.PeakMiB < 10 || run.PeakMiB > 1000 {
		t.Errorf("that is a strange run: %+v", run)
	}
}

func checkRestart(t *testing.T, runs []restartRun, n int) {
	t.Helper()
	if len(runs) != 1 || runs[0].Objects != n {
		t.Fatalf("restart was measured as %+v", runs)
	}
	run := runs[0]
	// Only the new export costs writes and a call.
	if run.Requests["APPLY secrets"] != 1 || run.Requests["PATCH exporteddatakeys/status"] != 1 || run.Calls["ExportDataKey OK"] != 1 {
		t.Errorf("a restart cost the requests %v and the calls %v", run.Requests, run.Calls)
	}
	if run.New > time.Minute.Seconds() || run.Settled <= 0 {
		t.Errorf("that is a strange restart: %+v", run)
	}
}

// drawn checks that charts are drawn from the JSON of runs.
func drawn(t *testing.T, r *report) {
	t.Helper()
	dir := t.TempDir()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := chart([]string{dir, path}); err != nil {
		t.Fatal(err)
	}
	for _, c := range charts {
		if info, err := os.Stat(filepath.Join(dir, c.file)); err != nil || info.Size() < 1000 {
			t.Errorf("%s was not drawn: %v", c.file, err)
		}
	}
}

var (
	readmeFlags = regexp.MustCompile(`(?m)^(?:make bench BENCHFLAGS="(.+)"|bin/tools/bench (-s.+))$`)
	readmeChart = regexp.MustCompile(`(?m)^bin/tools/bench chart (.+)$`)
)

func TestREADME_itsCommandsAreTaken(t *testing.T) {
	page, err := os.ReadFile("hack/bench/README.md")
	if err != nil {
		t.Fatal(err)
	}
	runs := readmeFlags.FindAllStringSubmatch(string(page), -1)
	for _, m := range runs {
		if _, err := parse(strings.Fields(m[1] + m[2])); err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
	drawing := readmeChart.FindStringSubmatch(string(page))
	if len(runs) != 2 || drawing == nil {
		t.Fatalf("the README has %d runs with flags, and the charts %q", len(runs), drawing)
	}
	args := strings.Fields(drawing[1])
	args[0] = t.TempDir()
	if err := chart(args); err != nil {
		t.Error(err)
	}
}

func TestParse_refusesWhatItDoesNotKnow(t *testing.T) {
	for _, args := range [][]string{
		{"-stores", "luna"}, {"-scenarios", "limit,nap"}, {"-n", "0"}, {"-concurrency", "5"}, {"everything"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

// The benchmark accepts the commands in the README.
func TestReadme_commandsAreTheBenchmarks(t *testing.T) {
	text, err := os.ReadFile("hack/bench/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "@@") {
		t.Error("the README has a gap")
	}
	commands := 0
	for line := range strings.Lines(string(text)) {
		command := strings.TrimSpace(line)
		flags, isMake := strings.CutPrefix(command, "make bench")
		if isMake && !strings.HasPrefix(flags, "-modules") {
			_, flags, _ = strings.Cut(flags, "BENCHFLAGS=")
		}
		rest, isBench := strings.CutPrefix(command, "bin/tools/bench")
		if isBench {
			flags = rest
		}
		if !isMake && !isBench || strings.HasPrefix(flags, "-modules") || strings.HasPrefix(flags, " chart ") {
			continue
		}
		commands++
		if _, err := parse(strings.Fields(strings.Trim(flags, `"'`))); err != nil && !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", command, err)
		}
	}
	if commands < 3 {
		t.Errorf("the README shows %d commands", commands)
	}
}
