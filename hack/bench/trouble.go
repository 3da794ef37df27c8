package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// troubleRun is a module that answers every call with an error for a while, in the middle of its work.
type troubleRun struct {
	Store     string         `json:"store"`
	Objects   int            `json:"objects"`
	Ready     int            `json:"readyDuring"`    // exports that were Ready when it ended
	Seconds   float64        `json:"troubleSeconds"` // how long it lasted
	Requests  map[string]int `json:"requests"`       // during it
	Sent      int            `json:"requestsSent"`
	Calls     map[string]int `json:"moduleCalls"`
	Recovery  float64        `json:"recoverySeconds"` // from its end until all are Ready
	Writes    float64        `json:"writesPerObject"` // of the whole run
	PeakMiB   float64        `json:"peakMiB"`
	PerSecond float64        `json:"perSecondAfter"` // of those that were left, from its end
}

// faultyModule is a PKCS#11 library that passes all calls on to another one, or refuses them.
//
//go:embed faulty/faulty.c
var faultyModule string

// newFaulty is SoftHSM behind a library that refuses everything while the file trouble is there.
func newFaulty(ctx context.Context, dir string) (*store, error) {
	s, err := newSoftHSM(ctx, dir)
	if err != nil {
		return nil, err
	}
	headers, err := command(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11")
	if err != nil {
		return nil, err
	}
	source, shared := filepath.Join(dir, "faulty.c"), filepath.Join(dir, "faulty.so")
	if err := os.WriteFile(source, []byte(faultyModule), 0o600); err != nil {
		return nil, err
	}
	if _, err := command(ctx, "gcc", "-shared", "-fPIC", "-O2", "-I", strings.TrimSpace(headers), "-o", shared, source, "-ldl"); err != nil {
		return nil, err
	}
	_, library, _ := strings.Cut(s.flags[1], "=")
	s.flags[1] = onSoftHSM + "=" + shared
	s.env = append(s.env, "FAULTY_LIBRARY="+library, "FAULTY_WHILE="+troubleFile(dir))
	return s, nil
}

func troubleFile(dir string) string { return filepath.Join(dir, "trouble") }

// trouble lets the operator serve a quarter of the exports, breaks the module, and repairs it after a while.
func (s *scene) trouble(ctx context.Context, during time.Duration) (troubleRun, error) {
	run := troubleRun{Store: s.store.name, Objects: s.n}
	seen, err := s.observe(ctx)
	if err != nil {
		return run, err
	}
	defer seen.stop()
	start, err := s.requestsUntilNow(ctx)
	if err != nil {
		return run, err
	}
	o, err := s.startOperator(ctx, s.store, false)
	if err != nil {
		return run, err
	}
	if _, err := seen.waitReady(ctx, s.n/4); err != nil {
		return run, err
	}
	if err := os.WriteFile(troubleFile(s.dir), nil, 0o600); err != nil {
		return run, err
	}
	begun := time.Now()
	before, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	if err := pause(ctx, during); err != nil {
		return run, err
	}
	if run.Ready = seen.readyNow(); run.Ready >= s.n {
		return run, fmt.Errorf("all %d exports were Ready before the trouble began; measure more", s.n)
	}
	after, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	if err := os.Remove(troubleFile(s.dir)); err != nil {
		return run, err
	}
	repaired := time.Now()
	end, err := seen.waitReady(ctx, s.n)
	if err != nil {
		return run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	whole, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	spent := after.since(before)
	run.Seconds, run.Recovery = repaired.Sub(begun).Seconds(), end.Sub(repaired).Seconds()
	run.Requests, run.Sent, run.Calls = spent.requests, spent.sent, spent.calls
	run.PerSecond = float64(s.n-run.Ready) / run.Recovery
	run.Writes, run.PeakMiB = whole.since(counts{requests: start}).perObject(writeVerbs, s.n), mib(whole.usage.peak)
	if err := s.verify(ctx, s.recipient, s.n); err != nil {
		return run, err
	}
	return run, o.stop()
}
