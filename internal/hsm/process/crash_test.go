//go:build cgo && linux

package process_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins/pinstest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// children returns the process identifiers of the children of this process that run a library.
func children(library string) (pids []int, err error) {
	all, err := hsmtest.Children(os.Getpid())
	for pid, runs := range all {
		if runs == library {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

func childrenOf(t testing.TB, library string) []int {
	t.Helper()
	pids, err := children(library)
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// childOf returns the only child that runs a library.
func childOf(t testing.TB, library string) int {
	t.Helper()
	pids := childrenOf(t, library)
	if len(pids) != 1 {
		t.Fatalf("%d children run %s, want 1", len(pids), library)
	}
	return pids[0]
}

func signalChild(t testing.TB, library string, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(childOf(t, library), signal); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a condition holds. It fails after two minutes, which no machine needs.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A name of its own for each library keeps the children of parallel tests apart.
func uniqueName(t testing.TB) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
}

func TestModule_whoseProcessIsKilled_isLostAndOpensAgain(t *testing.T) {
	for signal, name := range map[syscall.Signal]string{
		syscall.SIGKILL: "SIGKILL", syscall.SIGSEGV: "SIGSEGV", syscall.SIGABRT: "SIGABRT", syscall.SIGBUS: "SIGBUS",
	} {
		t.Run(name, func(t *testing.T) {
			tok, library := tokens.SoftHSM(t), uniqueName(t)
			p := newProvider(t, libraries{library: libraryOf(tok)})
			cfg := configOf(library, tok)
			lost := make(chan *hsm.Error, 2)
			cfg.Lost = func(failure *hsm.Error) { lost <- failure }
			m := mustOpen(t, p, cfg)
			first := childOf(t, library)
			tag, err := m.Authenticate(t.Context(), []byte("message"))
			if err != nil {
				t.Fatal(err)
			}

			signalChild(t, library, signal)
			failure := <-lost
			if !strings.Contains(failure.Detail, "was ended by signal "+name) {
				t.Errorf("the failure is %q", failure.Detail)
			}
			_, err = m.Authenticate(t.Context(), []byte("message"))
			if detail := hsmtest.WantKind(t, err, hsm.Unavailable, "a call after the end of the process"); detail != failure.Detail {
				t.Errorf("a later call fails with %q", detail)
			}

			again := mustOpen(t, p, cfg)
			if childOf(t, library) == first {
				t.Error("no other process runs the library")
			}
			if now, err := again.Authenticate(t.Context(), []byte("message")); err != nil || string(now) != string(tag) {
				t.Errorf("Authenticate = %x, %v; want the same tag as before", now, err)
			}
			if len(lost) != 0 {
				t.Error("the module was lost twice")
			}
			if n := restarts(t, p, name); n != 1 {
				t.Errorf("%v restarts because of %s, want 1", n, name)
			}
		})
	}
}

// restarts returns the metric for a cause.
func restarts(t testing.TB, p *process.Provider, cause string) (n float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(p.Metrics())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "cause" && label.GetValue() == cause {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// The calls of many goroutines are in progress when the process ends.
func TestModule_whoseProcessIsKilledUnderLoad_failsCallsWithUnavailable(t *testing.T) {
	tok, library := tokens.SoftHSM(t), uniqueName(t)
	p := newProvider(t, libraries{library: libraryOf(tok)})
	m := mustOpen(t, p, configOf(library, tok))
	var begun, callers sync.WaitGroup
	for range 16 {
		begun.Add(1)
		callers.Go(func() {
			var first sync.Once
			for {
				_, err := m.Authenticate(context.Background(), []byte("message"))
				first.Do(begun.Done)
				if err != nil {
					hsmtest.WantKind(t, err, hsm.Unavailable, "a call when the process ends")
					return
				}
			}
		})
	}
	begun.Wait()
	signalChild(t, library, syscall.SIGKILL)
	callers.Wait()
}

// Restarts are immediate once, then delayed by one second to one minute, and immediate again after ten minutes.
func TestProvider_processThatEndsAgainAndAgain_isStartedLater(t *testing.T) {
	tok, library := tokens.SoftHSM(t), uniqueName(t)
	var clock pinstest.Clock
	p := newProvider(t, libraries{library: libraryOf(tok)}, func(o *process.Options) { o.Now = clock.Now })
	cfg := configOf(library, tok)
	crash := func() {
		t.Helper()
		lost := make(chan *hsm.Error, 1)
		cfg.Lost = func(failure *hsm.Error) { lost <- failure }
		mustOpen(t, p, cfg)
		signalChild(t, library, syscall.SIGKILL)
		<-lost
	}
	crash()
	for _, delay := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		delay *= time.Second
		crash() // at once, or after the delay
		_, err := p.Open(t.Context(), cfg)
		hsmtest.WantKind(t, err, hsm.Unavailable, "an opening during the delay")
		var e *hsm.Error
		if errors.As(err, &e) && (e.After != delay || !strings.Contains(e.Detail, "SIGKILL; the operator starts it again after a delay")) {
			t.Errorf("the error asks for a retry after %s, want %s: %s", e.After, delay, e.Detail)
		}
		if n := len(childrenOf(t, library)); n != 0 {
			t.Errorf("%d children during the delay", n)
		}
		clock.Advance(delay)
	}
	if n := restarts(t, p, "SIGKILL"); n != 8 {
		t.Errorf("%v restarts, want 8", n)
	}
	lost := make(chan *hsm.Error, 1)
	cfg.Lost = func(failure *hsm.Error) { lost <- failure }
	m := mustOpen(t, p, cfg)
	clock.Advance(10 * time.Minute)
	signalChild(t, library, syscall.SIGKILL)
	<-lost
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 { // of which the first follows a failure
		if err := mustOpen(t, p, cfg).Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := restarts(t, p, "SIGKILL"); n != 10 {
		t.Errorf("%v restarts, want 10: one that follows a close is none", n)
	}
}

func TestProvider_processes(t *testing.T) {
	tok, other := tokens.SoftHSM(t), tokens.SoftHSM(t)
	library, copied := uniqueName(t), uniqueName(t)+"-copy"
	p := newProvider(t, libraries{library: libraryOf(tok), copied: libraryOf(tok)})
	first := mustOpen(t, p, configOf(library, tok))
	second := mustOpen(t, p, configOf(library, other))
	child := childOf(t, library) // key stores of a library share its process

	mustOpen(t, p, configOf(copied, tok))
	childOf(t, copied) // and another library has its own
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if childOf(t, library) != child {
		t.Error("the process ended with the first of two modules")
	}
	if err := second.Check(t.Context()); err != nil {
		t.Errorf("the other module: %v", err)
	}
	if err := second.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(childrenOf(t, library)); n != 0 {
		t.Errorf("%d children after the last module was closed", n)
	}
}

// A process that was stopped does not answer at all.
func TestModule_closeOfAProcessThatDoesNotAnswer_endsIt(t *testing.T) {
	tok, library := tokens.SoftHSM(t), uniqueName(t)
	p := newProvider(t, libraries{library: libraryOf(tok)})
	m := mustOpen(t, p, configOf(library, tok))
	signalChild(t, library, syscall.SIGSTOP)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(childrenOf(t, library)); n != 0 {
		t.Errorf("%d children", n)
	}
}

// The guard in this process decides, and knows what a former child found out.
func TestModule_wrongPIN_isTriedOnceAndRememberedHere(t *testing.T) {
	tok, library := tokens.SoftHSM(t), uniqueName(t)
	p := newProvider(t, libraries{library: libraryOf(tok)})
	cfg := configOf(library, tok)
	cfg.PIN = redact.WireBytes("wrong-pin")
	counted := &countedPINs{Authority: pins.New(nil, (&pinstest.Clock{}).Now)}
	cfg.PINs, cfg.PINOrigin = counted, pins.Origin{Namespace: "team-a", Source: "uid"}
	for range 3 {
		_, err := p.Open(t.Context(), cfg)
		hsmtest.WantKind(t, err, hsm.Locked, "Open with a wrong PIN")
	}
	if counted.allowed != 1 || counted.origin != cfg.PINOrigin {
		t.Errorf("the PIN of %+v was tried %d times", counted.origin, counted.allowed)
	}
	cfg.PIN = redact.WireBytes(tok.PIN)
	mustOpen(t, p, cfg)
}

type countedPINs struct {
	pins.Authority

	allowed int
	origin  pins.Origin
}

func (c *countedPINs) Begin(ctx context.Context, p pins.Presented, asked pins.Asked) (pins.Attempt, error) {
	attempt, err := c.Authority.Begin(ctx, p, asked)
	if err == nil {
		c.allowed++
		c.origin = p.Origin
	}
	return attempt, err
}

// A parent that is killed cannot stop its child.
func TestChild_whoseParentIsKilled_ends(t *testing.T) {
	tok := tokens.SoftHSM(t)
	parent := exec.CommandContext(t.Context(), process.SelfCommand, parentArgument, tok.Path, tok.Label, tok.PIN, tok.Dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	parent.Stderr = os.Stderr
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscanf(out, "%d\n", &child); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	eventually(t, "the child ends", func() bool { return errors.Is(syscall.Kill(child, 0), syscall.ESRCH) })
}

// beParent opens a module, prints the process identifier of the child, and waits to be killed.
func beParent(path, label, pin, dir string) error {
	tok := tokens.Token{Path: path, Label: label, PIN: pin, Dir: dir}
	l := libraries{"real": libraryOf(tok)}
	p := process.New(process.Options{Find: l.find, Command: []string{process.SelfCommand, childArgument}})
	if _, err := p.Open(context.Background(), configOf("real", tok)); err != nil {
		return err
	}
	pids, err := children("real")
	if err != nil || len(pids) != 1 {
		return fmt.Errorf("%d children, %w", len(pids), err)
	}
	if _, err := fmt.Fprintln(os.Stdout, pids[0]); err != nil {
		return err
	}
	select {}
}
