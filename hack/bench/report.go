package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report contains the results of a run of the benchmark, in the form of its JSON.
type report struct {
	Time       string          `json:"time"`
	Machine    machine         `json:"machine"`
	Limit      []limitRun      `json:"limit,omitempty"`
	Converge   []convergeRun   `json:"converge,omitempty"`
	Rotate     []rotateRun     `json:"rotate,omitempty"`
	Restart    []restartRun    `json:"restart,omitempty"`
	Steady     []steadyRun     `json:"steady,omitempty"`
	Trouble    []troubleRun    `json:"trouble,omitempty"`
	Namespaces []namespacesRun `json:"namespaces,omitempty"`
}

// machine describes the machine of the measurement.
type machine struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"`
	MemoryGiB int    `json:"memoryGiB"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	Version   string `json:"version"` // of Keyconvoy
	// Flush is the time that a small write takes until it is on the disk, as for each write of etcd, in milliseconds.
	Flush float64 `json:"flushMilliseconds"`
}

func describeMachine(ctx context.Context) (*report, error) {
	m := machine{Cores: runtime.NumCPU(), Go: runtime.Version()}
	var err error
	if m.Processor, err = field("/proc/cpuinfo", "model name"); err != nil {
		return nil, err
	}
	memory, err := field("/proc/meminfo", "MemTotal")
	if err != nil {
		return nil, err
	}
	var kib int
	if _, err := fmt.Sscan(memory, &kib); err != nil {
		return nil, err
	}
	m.MemoryGiB = kib >> 20
	kernel, err := command(ctx, "uname", "-sr")
	if err != nil {
		return nil, err
	}
	version, err := command(ctx, "git", "describe", "--tags", "--always", "--dirty")
	if err != nil {
		return nil, err
	}
	m.Kernel, m.Version = strings.TrimSpace(kernel), strings.TrimSpace(version)
	if m.Flush, err = flushTime(); err != nil {
		return nil, err
	}
	return &report{Time: time.Now().UTC().Format(time.RFC3339), Machine: m}, nil
}

// field reads the first line "NAME : value" of a file in /proc.
func field(path, name string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no line %q", path, name)
}

// flushTime measures how long a small write and its flush to the disk take, in milliseconds.
func flushTime() (float64, error) {
	file, err := os.CreateTemp("", "keyconvoy-bench-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	const times = 100
	start := time.Now()
	for range times {
		if _, err := file.Write(make([]byte, 4096)); err != nil {
			return 0, err
		}
		if err := file.Sync(); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(start).Microseconds()) / 1000 / times, nil
}

// bestLimit returns the fastest run of the bare client with the same requests as the operator.
func (r *report) bestLimit() limitRun {
	var best limitRun
	for _, run := range r.Limit {
		if run.Write == byApply && run.PerSecond > best.PerSecond {
			best = run
		}
	}
	return best
}

// print writes the results as tables.
func (r *report) print(out io.Writer) {
	m := r.Machine
	fmt.Fprintf(out, "\n%s, %d cores, %d GiB, %s, %s, Keyconvoy %s; flush to disk %.2f ms\n",
		m.Processor, m.Cores, m.MemoryGiB, m.Kernel, m.Go, m.Version, m.Flush)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer t.Flush()
	row := func(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }

	if len(r.Limit) > 0 {
		row("\nlimit\tconcurrency\tobjects\tobjects/s")
	}
	for _, l := range r.Limit {
		row("%s\t%d\t%d\t%.0f", l.Write, l.Concurrency, l.Objects, l.PerSecond)
	}
	if len(r.Converge) > 0 {
		row("\nconverge\talgorithm\tpublic key\tobjects\tobjects/s\tlimit\tratio\twrites\treads\tmodule calls\tCPU s\tpeak MiB")
	}
	for _, c := range r.Converge {
		row("%s\t%s\t%s\t%d\t%.0f\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.1f\t%.0f", c.Store, c.Algorithm, c.PublicKey, c.Objects, c.PerSecond,
			figure("%.0f", c.Limit), figure("%.2f", c.Ratio), c.Writes, c.Reads, float64(total(c.Calls))/float64(c.Objects), c.CPU, c.PeakMiB)
	}
	if len(r.Rotate) > 0 {
		row("\nrotate\tdata keys\tseconds\tdata keys/s\tlimit\tratio\twrites\treads\tmodule calls\tCPU s\tpeak MiB")
	}
	for _, s := range r.Rotate {
		row("%s\t%d\t%.1f\t%.0f\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.1f\t%.0f", s.Store, s.DataKeys, s.Seconds, s.PerSecond,
			figure("%.0f", s.Limit), figure("%.2f", s.Ratio), s.Writes, s.Reads, float64(total(s.Calls))/float64(s.DataKeys), s.CPU, s.PeakMiB)
	}
	if len(r.Restart) > 0 {
		row("\nrestart\tobjects\tcaches s\tnew object s\tsettled s\tmodule calls\tCPU s\tpeak MiB\trequests")
	}
	for _, s := range r.Restart {
		row("%s\t%d\t%.2f\t%.2f\t%.2f\t%s\t%.1f\t%.0f\t%s", s.Store, s.Objects, s.Start, s.New, s.Settled,
			inWords(s.Calls), s.CPU, s.PeakMiB, inWords(s.Requests))
	}
	if len(r.Steady) > 0 {
		row("\nsteady\tobjects\tseconds\trequests/s\tCPU s\tpeak MiB\trequests")
	}
	for _, s := range r.Steady {
		row("%s\t%d\t%.0f\t%.2f\t%.2f\t%.0f\t%s", s.Store, s.Objects, s.Seconds, s.Rate, s.CPU, s.PeakMiB, inWords(s.Requests))
	}
	if len(r.Trouble) > 0 {
		row("\ntrouble\tobjects\tready during it\ttrouble s\trequests/s\tmodule calls\trecovery s\tobjects/s then\twrites\tpeak MiB")
	}
	for _, s := range r.Trouble {
		row("%s\t%d\t%d\t%.0f\t%.1f\t%s\t%.1f\t%.0f\t%.2f\t%.0f", s.Store, s.Objects, s.Ready, s.Seconds, float64(s.Sent)/s.Seconds,
			inWords(s.Calls), s.Recovery, s.PerSecond, s.Writes, s.PeakMiB)
	}
	if len(r.Namespaces) > 0 {
		row("\nnamespaces\tnamespaces\tseconds\tper second\twrites\treads\tCPU s\tpeak MiB")
	}
	for _, s := range r.Namespaces {
		row("%s\t%d\t%.1f\t%.0f\t%.2f\t%.2f\t%.1f\t%.0f", s.Store, s.Namespaces, s.Seconds, s.PerSecond, s.Writes, s.Reads, s.CPU, s.PeakMiB)
	}
}

// figure formats a number; it is a dash if nothing was measured.
func figure(format string, f float64) string {
	if f == 0 {
		return "-"
	}
	return fmt.Sprintf(format, f)
}

func total(m map[string]int) int {
	n := 0
	for _, count := range m {
		n += count
	}
	return n
}

func inWords(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var words []string
	for _, name := range sorted(m) {
		words = append(words, fmt.Sprintf("%d %s", m[name], name))
	}
	return strings.Join(words, ", ")
}
