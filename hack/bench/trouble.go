package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
)

// troubleRun is a period in which every call into the module fails, after a quarter of the exports.
type troubleRun struct {
	Store     string         `json:"store"`
	Objects   int            `json:"objects"`
	Ready     int            `json:"readyDuring"`    // exports that were Ready at the end of the period
	Seconds   float64        `json:"troubleSeconds"` // length of the period
	Requests  map[string]int `json:"requests"`       // during the period
	Sent      int            `json:"requestsSent"`
	Calls     map[string]int `json:"moduleCalls"`
	Recovery  float64        `json:"recoverySeconds"` // from the end of the period until all are Ready
	Writes    float64        `json:"writesPerObject"` // of the whole run
	PeakMiB   float64        `json:"peakMiB"`
	PerSecond float64        `json:"perSecondAfter"` // of the remaining exports, after the period
}

// broken are the functions that fail: those with which the operator uses keys and checks the module.
var broken = []string{
	"C_OpenSession", "C_Login", "C_GetSessionInfo", "C_GetTokenInfo", "C_FindObjectsInit", "C_GetAttributeValue", "C_CreateObject",
	"C_DestroyObject", "C_DecryptInit", "C_SignInit", "C_GenerateKey", "C_DeriveKey", "C_WrapKey", "C_UnwrapKey",
	"C_GenerateRandom",
}

// newFaulty returns a store on SoftHSM, behind a library that fails after breakAfter is called.
func newFaulty(ctx context.Context, dir string) (*store, error) {
	s, err := newSoftHSM(ctx, dir)
	if err != nil {
		return nil, err
	}
	shared, err := faulty.Build(ctx, dir)
	if err != nil {
		return nil, err
	}
	if s.faults, err = faulty.NewControl(filepath.Join(dir, "faults")); err != nil {
		return nil, err
	}
	_, library, _ := strings.Cut(s.flags[1], "=")
	s.flags[1] = onSoftHSM + "=" + shared
	s.env = append(s.env, s.faults.Env(library)...)
	for _, variable := range s.faults.Env(library) {
		name, _, _ := strings.Cut(variable, "=")
		s.flags = append(s.flags, "--pkcs11-env", onSoftHSM+"="+name)
	}
	return s, nil
}

// breakAfter lets the module fail after it has unwrapped that many more keys.
func (s *scene) breakAfter(unwrapped int) {
	s.store.faults.Inject(faulty.Fault{
		Kind: faulty.Code, Parameter: deviceError, Functions: broken, Counted: []string{"C_UnwrapKey"}, First: unwrapped + 1,
	})
}

// deviceError is CKR_DEVICE_ERROR.
const deviceError = 0x30

// trouble creates n exports, breaks the module after a quarter of them, and repairs it after a while. The scene itself
// has one export: when it is Ready, the operator has opened the module.
func (s *scene) trouble(ctx context.Context, n int, during time.Duration) (troubleRun, error) {
	run := troubleRun{Store: s.store.name, Objects: n}
	if n <= s.n {
		return run, errors.New("trouble requires at least two exports")
	}
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
	if _, err := seen.waitReady(ctx, s.n); err != nil {
		return run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	s.breakAfter(n / 4)
	created := make(chan error, 1)
	go func() { created <- s.createExports(ctx, s.recipient, s.n, n) }()
	before, err := o.waitBroken(ctx)
	if err != nil {
		return run, err
	}
	begun := time.Now()
	if err := errors.Join(<-created, pause(ctx, during-time.Since(begun))); err != nil {
		return run, err
	}
	run.Ready = seen.readyNow()
	after, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	s.store.faults.End()
	repaired := time.Now()
	end, err := seen.waitReady(ctx, n)
	if err != nil {
		return run, fmt.Errorf("%w\n%s", err, o.lastWords())
	}
	whole, err := o.count(ctx)
	if err != nil {
		return run, err
	}
	spent, all := after.since(before), whole.since(counts{requests: start})
	for _, c := range []counts{spent, all} {
		delete(c.requests, "POST exporteddatakeys") // by the benchmark itself
	}
	run.Seconds, run.Recovery = repaired.Sub(begun).Seconds(), end.Sub(repaired).Seconds()
	run.Requests, run.Sent, run.Calls = spent.requests, spent.sent, spent.calls
	run.PerSecond = float64(n-run.Ready) / run.Recovery
	run.Writes, run.PeakMiB = all.perObject(writeVerbs, n), mib(all.usage.peak)
	if err := s.verify(ctx, s.recipient, n); err != nil {
		return run, err
	}
	return run, o.stop()
}

// waitBroken waits until an export has failed in the module, and returns the counts at that time.
func (o *operator) waitBroken(ctx context.Context) (c counts, err error) {
	err = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		c, err = o.count(ctx)
		for call := range c.calls {
			if operation, result, _ := strings.Cut(call, " "); operation == "ExportDataKey" && result != "OK" {
				return true, nil
			}
		}
		return false, err
	})
	return c, err
}
