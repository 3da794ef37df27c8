// Bench compares the operator with a bare client that makes the same writes on the same API server. It runs the built
// binary as a process, with the flags and permissions in config/.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const usageText = `Compare the operator with the limit: a bare client on the same API server.

Usage, in the root of the repository after make build:
  bench [flags]                      measure, print tables and write a JSON report
  bench chart DIRECTORY FILE.json …  draw charts from reports with different numbers of objects

Scenarios:
  limit       a bare client writes one Secret and one status for each export, at several concurrencies
  converge    the operator reconciles new exports of one data key, until all are Ready
  rotate      a GeneratedKey is rotated, until all of its data keys are re-encrypted
  restart     the operator starts with Ready exports and one new export
  steady      the operator has nothing to do
  trouble     the module returns errors for a while
  namespaces  one ClusterExportedDataKey exports to many namespaces

Each scenario has its own control plane, with an empty etcd that flushes to the disk, except that restart
and steady use the control plane of converge.

Flags:
`

// options are the parsed flags.
type options struct {
	n          int
	namespaces int
	scenarios  list
	stores     list
	bare       list
	algorithms list
	publicKeys list
	repeat     int
	steady     time.Duration
	trouble    time.Duration
	out        string
	profiles   string
}

// list is a flag that takes allowed names, separated by commas.
type list struct {
	chosen  []string
	allowed []string
}

func all(allowed ...string) list { return list{allowed, allowed} }

// String implements flag.Value.
func (l *list) String() string { return strings.Join(l.chosen, ",") }

// Set implements flag.Value.
func (l *list) Set(text string) error {
	l.chosen = strings.Split(text, ",")
	for _, name := range l.chosen {
		if !slices.Contains(l.allowed, name) {
			return fmt.Errorf("%q is none of %s", name, strings.Join(l.allowed, ", "))
		}
	}
	return nil
}

func (l *list) has(name string) bool { return slices.Contains(l.chosen, name) }

func main() {
	log.SetLogger(logr.Discard()) // of controller-runtime's client
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "chart" {
		return chart(args[1:])
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	t, err := findTools()
	if err != nil {
		return err
	}
	report, err := describeMachine(ctx)
	if err != nil {
		return err
	}
	// After an error or an interrupt, write what was measured until then.
	measureErr := measure(ctx, t, o, report)
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(o.out, append(text, '\n'), 0o600); err != nil {
		return err
	}
	report.print(os.Stdout)
	fmt.Println("\nWritten to", o.out)
	return measureErr
}

func parse(args []string) (options, error) {
	o := options{
		scenarios:  all("limit", "converge", "rotate", "restart", "steady", "trouble", "namespaces"),
		stores:     all(onSoftware, onSoftHSM, onNSS),
		publicKeys: all(inline, fromConfigMap),
		bare:       all("1", "4", "16", "32"),
		algorithms: all("RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "SM2PKE"),
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usageText)
		flags.PrintDefaults()
	}
	flags.IntVar(&o.n, "n", 1000, "number of exports")
	flags.IntVar(&o.namespaces, "namespaces", 1000, "number of namespaces")
	flags.Var(&o.scenarios, "scenarios", "scenarios to run")
	flags.Var(&o.stores, "stores", "modules to use")
	flags.Var(&o.bare, "concurrency", "concurrencies of the bare client")
	flags.Var(&o.algorithms, "algorithms", "algorithms for converge; the other scenarios use the first")
	flags.Var(&o.publicKeys, "public-keys", "sources of the public key of the exports in converge")
	flags.IntVar(&o.repeat, "repeat", 1, "number of runs of each converge; the result is the run with the median ratio, and the highest peak of all runs")
	flags.DurationVar(&o.steady, "steady", time.Minute, "duration of the scenario steady")
	flags.DurationVar(&o.trouble, "trouble", 30*time.Second, "how long the module returns errors")
	flags.StringVar(&o.out, "out", "bin/bench.json", "file for the JSON report")
	flags.StringVar(&o.profiles, "profiles", "", "write profiles of the operator during converge to this directory; slows it down by a few percent")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.n < 1 || o.namespaces < 1 || o.repeat < 1 {
		return o, errors.New("-n, -namespaces and -repeat must be at least 1")
	}
	return o, nil
}

// measure runs the selected scenarios.
func measure(ctx context.Context, t *tools, o options, report *report) error {
	r, err := newRecipient(o.algorithms.chosen[0], inline)
	if err != nil {
		return err
	}
	l, err := measureLimits(ctx, t, r, o, report)
	if err != nil {
		return err
	}
	if o.scenarios.has("converge") || o.scenarios.has("restart") || o.scenarios.has("steady") {
		for _, name := range o.stores.chosen {
			if err := measureStore(ctx, t, name, o, l, report); err != nil {
				return err
			}
		}
	}
	if o.scenarios.has("rotate") {
		if err := measureRotate(ctx, t, r, o, l, report); err != nil {
			return err
		}
	}
	if o.scenarios.has("trouble") {
		if err := measureTrouble(ctx, t, r, o, report); err != nil {
			return err
		}
	}
	if o.scenarios.has("namespaces") {
		return measureNamespaces(ctx, t, r, o, report)
	}
	return nil
}

// limits measures the bare client, with a new run on each request.
type limits struct {
	tools     *tools
	recipient *recipient
	bodies    bodies
	n         int
	report    *report
	// last is the last run at the best concurrency. The speed of a shared machine changes over time, so each run that is
	// compared with the bare client is measured between two runs of it.
	last limitRun
}

func (l *limits) run(ctx context.Context, write string, concurrency int) (limitRun, error) {
	progress("limit: %s, concurrency %d", write, concurrency)
	run, err := measureLimit(ctx, l.tools, l.recipient, l.bodies, write, concurrency, l.n)
	if err != nil {
		return run, fmt.Errorf("limit: %w", err)
	}
	l.report.Limit = append(l.report.Limit, run)
	return run, nil
}

// measureLimits runs the bare client at each concurrency. It returns nil if the scenario limit is not selected.
func measureLimits(ctx context.Context, t *tools, r *recipient, o options, report *report) (*limits, error) {
	if !o.scenarios.has("limit") {
		return nil, nil
	}
	l := &limits{tools: t, recipient: r, n: o.n, report: report}
	var err error
	if l.bodies, err = sampleBodies(ctx, t, r); err != nil {
		return nil, err
	}
	for _, concurrency := range o.bare.chosen {
		number, err := strconv.Atoi(concurrency)
		if err != nil {
			return nil, err
		}
		if _, err := l.run(ctx, byApply, number); err != nil {
			return nil, err
		}
	}
	best := report.bestLimit().Concurrency
	// For comparison: the speed if the operator created Secrets instead of applying them.
	if _, err := l.run(ctx, byCreate, best); err != nil {
		return nil, err
	}
	l.last.Concurrency = best
	return l, nil
}

// again measures the bare client, before a run that is compared with it.
func (l *limits) again(ctx context.Context) (err error) {
	if l != nil {
		l.last, err = l.run(ctx, byApply, l.last.Concurrency)
	}
	return err
}

// compare measures the bare client again, and returns its speed and the ratio to it of the run that has just ended; 0 if the scenario
// limit is not selected.
func (l *limits) compare(ctx context.Context, perSecond float64) (limit, ratio float64, err error) {
	if l == nil {
		return 0, 0, nil
	}
	before := l.last
	if err := l.again(ctx); err != nil {
		return 0, 0, err
	}
	if before.PerSecond == 0 {
		before = l.last
	}
	limit = (before.PerSecond + l.last.PerSecond) / 2
	return limit, perSecond / limit, nil
}

// measureStore measures converge with each algorithm, and restart and steady with the first one.
func measureStore(ctx context.Context, t *tools, name string, o options, l *limits, report *report) error {
	for i, algorithm := range o.algorithms.chosen {
		if !o.publicKeys.has(inline) {
			break
		}
		if err := measureConverge(ctx, t, name, algorithm, inline, o, i == 0, l, report); err != nil {
			return fmt.Errorf("%s with %s: %w", name, algorithm, err)
		}
	}
	if !o.publicKeys.has(fromConfigMap) {
		return nil
	}
	return measureConverge(ctx, t, name, o.algorithms.chosen[0], fromConfigMap, o, false, l, report)
}

func measureConverge(ctx context.Context, t *tools, name, algorithm, from string, o options, goOn bool, l *limits, report *report) error {
	r, err := newRecipient(algorithm, from)
	if err != nil {
		return err
	}
	if goOn && (o.scenarios.has("restart") || o.scenarios.has("steady")) {
		// This run is not compared with the bare client: the minute of steady lies between it and the next one.
		if _, err := convergeOnce(ctx, t, name, r, o, true, report); err != nil {
			return err
		}
	}
	if !o.scenarios.has("converge") {
		return nil
	}
	if goOn {
		if err := l.again(ctx); err != nil {
			return err
		}
	}
	var runs []convergeRun
	for range o.repeat {
		run, err := convergeOnce(ctx, t, name, r, o, false, report)
		if err != nil {
			return err
		}
		if run.Limit, run.Ratio, err = l.compare(ctx, run.PerSecond); err != nil {
			return err
		}
		runs = append(runs, run)
	}
	slices.SortFunc(runs, func(a, b convergeRun) int { return cmp.Compare(a.Ratio, b.Ratio) })
	median := runs[(len(runs)-1)/2]
	for _, run := range runs {
		median.Ratios = append(median.Ratios, run.Ratio)
		median.PeakMiB = max(median.PeakMiB, run.PeakMiB)
	}
	report.Converge = append(report.Converge, median)
	return nil
}

func convergeOnce(ctx context.Context, t *tools, name string, r *recipient, o options, goOn bool, report *report) (convergeRun, error) {
	progress("converge: %s, %s, public key %s", name, r.Algorithm, r.From)
	s, err := newScene(ctx, t, storeNamed(name), r, o.n)
	defer s.stop()
	if err != nil {
		return convergeRun{}, err
	}
	operator, run, err := s.converge(ctx, o.profiles)
	if err != nil {
		return run, err
	}
	if goOn {
		if operator, err = s.goOn(ctx, operator, o, report); err != nil {
			return run, err
		}
	}
	return run, operator.stop()
}

// goOn measures restart and steady, with the exports of converge.
func (s *scene) goOn(ctx context.Context, operator *operator, o options, report *report) (*operator, error) {
	if o.scenarios.has("restart") {
		progress("restart: %s", s.store.name)
		var run restartRun
		var err error
		if operator, run, err = s.restart(ctx, operator); err != nil {
			return nil, err
		}
		report.Restart = append(report.Restart, run)
	}
	if o.scenarios.has("steady") {
		progress("steady: %s, %s", s.store.name, o.steady)
		run, err := s.steady(ctx, operator, o.steady)
		if err != nil {
			return nil, err
		}
		report.Steady = append(report.Steady, run)
	}
	return operator, nil
}

func measureRotate(ctx context.Context, t *tools, r *recipient, o options, l *limits, report *report) error {
	for _, name := range o.stores.chosen {
		if err := l.again(ctx); err != nil {
			return err
		}
		run, err := rotateOnce(ctx, t, name, r, o)
		if err != nil {
			return fmt.Errorf("rotate: %w", err)
		}
		if run.Limit, run.Ratio, err = l.compare(ctx, run.PerSecond); err != nil {
			return err
		}
		report.Rotate = append(report.Rotate, run)
	}
	return nil
}

func rotateOnce(ctx context.Context, t *tools, name string, r *recipient, o options) (rotateRun, error) {
	progress("rotate: %s", name)
	s, err := newScene(ctx, t, storeNamed(name), r, 0)
	defer s.stop()
	if err != nil {
		return rotateRun{}, err
	}
	return s.rotate(ctx, o.n)
}

func measureTrouble(ctx context.Context, t *tools, r *recipient, o options, report *report) error {
	progress("trouble: %s", o.trouble)
	s, err := newScene(ctx, t, newFaulty, r, 1)
	defer s.stop()
	if err != nil {
		return err
	}
	run, err := s.trouble(ctx, o.n, o.trouble)
	if err != nil {
		return fmt.Errorf("trouble: %w", err)
	}
	report.Trouble = append(report.Trouble, run)
	return nil
}

func measureNamespaces(ctx context.Context, t *tools, r *recipient, o options, report *report) error {
	progress("namespaces: %d", o.namespaces)
	s, err := newScene(ctx, t, storeNamed(o.stores.chosen[0]), r, 0)
	defer s.stop()
	if err != nil {
		return err
	}
	run, err := s.distribute(ctx, o.namespaces)
	if err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	report.Namespaces = append(report.Namespaces, run)
	return nil
}

// progress prints what is measured next. Creating the control plane and the objects takes a while.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+" …\n", args...)
}
