//go:build cgo

// Package faults tests what modules do while their PKCS#11 library fails: it runs a load of exports, imports and generations on
// two key stores, lets the library of one of them fail, and checks that nothing is lost, doubled or wrong, that the other store
// is not affected, and that no PIN is tried more often than needed.
package faults

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// limit is the time for any condition. It is generous, because no test depends on the speed of the machine.
const limit = 2 * time.Minute

// The names of the libraries. Each case gives the library that fails another name, because a provider remembers the failures of a
// library.
const (
	failing   = "failing-"   // SoftHSM behind the faulty library
	impatient = "impatient-" // the same, whose calls may take hangTimeout
	other     = "other"      // NSS
)

// hangTimeout is how long a call may take if one hangs endlessly: longer than any other call takes on a slow machine.
const hangTimeout = 4 * time.Second

// Library is a library that the provider under test must allow.
type Library struct {
	Path, Parameters string
	// Files are the files and directories that it writes, and Environment are the names of the variables that it reads.
	Files, Environment []string
	// Timeout is how long a call may take, if the provider bounds that; 0 means the default.
	Timeout time.Duration
}

// Scene is two key stores on real tokens, of which one has a library that fails on demand. A process has one at a time.
type Scene struct {
	control  *faulty.Control
	provider hsm.Provider
	library  Library
	token    tokens.Token // of the failing store
	nss      tokens.Token // of the other store
	other    *load
	cases    int
	late     atomic.Int64 // how much later than the time the provider's clock is
}

// New makes a scene. newProvider returns the provider under test, which allows the libraries that find returns by name, and reads
// this clock.
func New(t *testing.T, newProvider func(find func(name string) Library, now func() time.Time) hsm.Provider) *Scene {
	t.Helper()
	dir := t.TempDir()
	path, err := faulty.Build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &Scene{nss: tokens.NSS(t), token: tokens.SoftHSM(t)}
	if s.control, err = faulty.NewControl(filepath.Join(dir, "control")); err != nil {
		t.Fatal(err)
	}
	s.library = Library{Path: path, Files: []string{s.control.Path(), s.token.Dir}}
	for _, variable := range append(s.control.Env(s.token.Path), s.token.Env...) {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
		s.library.Environment = append(s.library.Environment, name)
	}
	s.provider = newProvider(s.find, func() time.Time { return time.Now().Add(time.Duration(s.late.Load())) })
	s.other = s.newLoad(other, s.nss)
	if err := s.other.prepare(); err != nil {
		t.Fatalf("prepare the other store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.other.close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func nameOf(library string, n int) string { return fmt.Sprint(library, n) }

func (s *Scene) find(name string) Library {
	if name == other {
		return Library{Path: s.nss.Path, Parameters: s.nss.Parameters, Files: []string{s.nss.Dir}}
	}
	library := s.library
	if strings.HasPrefix(name, impatient) {
		library.Timeout = hangTimeout
	}
	return library
}

// newLoad returns a load on a store. Each has its own guard of PINs, because the tokens are new.
func (s *Scene) newLoad(library string, token tokens.Token) *load {
	cfg := hsm.Config{
		Library: library, Token: hsm.TokenSelector{Label: token.Label}, PIN: redact.WireBytes(token.PIN), Custody: hsm.CustodyHost,
		PINOrigin: pins.Origin{Namespace: namespace, Source: library}, PINs: pins.New(nil, time.Now),
	}
	return &load{store: &store{provider: s.provider, cfg: cfg}, journal: newJournal()}
}

// Result is what a case measured.
type Result struct {
	Fired int
	// Recovery is the time from the end of the fault until each worker has finished an operation that began later. A fault that
	// happens once has ended when it has happened.
	Recovery time.Duration
	Failures map[hsm.Kind]int
	Wrong    map[string]int // results that were wrong although no error was returned, and how often
	Left     int            // objects of self-tests whose process ended
	// Share is the other store's throughput during the fault, divided by that before.
	Share float64
}

// Run runs a case on a new token.
func (s *Scene) Run(t *testing.T, c Case) Result {
	t.Helper()
	r := s.begin(t, c)
	r.steady()
	r.fail()
	r.recover()
	r.settle()
	return r.result
}

// run is one run of a case.
type run struct {
	*testing.T
	*Scene
	c      Case
	a, b   *load // on the failing store, and on the other
	result Result
	before float64 // operations of b per second
	broken bool    // the failing store does not work any more, because of garbage
}

// begin starts the load on both stores.
func (s *Scene) begin(t *testing.T, c Case) *run {
	t.Helper()
	tokens.Replace(t, s.token)
	s.control.Reset(s.token.PIN)
	s.cases++
	library := failing
	if c.hangsEndlessly() {
		library = impatient
	}
	r := &run{T: t, Scene: s, c: c, a: s.newLoad(nameOf(library, s.cases), s.token), b: s.other}
	r.a.pairs = c.pairs()
	if err := r.a.prepare(); err != nil {
		_ = r.a.close()
		t.Fatalf("prepare the failing store: %v", err)
	}
	r.a.start()
	r.b.start()
	t.Cleanup(r.end)
	return r
}

// rounds is the number of operations of each worker that a phase waits for.
const rounds = 3

// steady lets both stores work without a fault, and measures the throughput of the other one.
func (r *run) steady() {
	r.Helper()
	r.wait("the stores do not work before the fault", func() bool {
		leastA, _ := r.a.progress()
		leastB, _ := r.b.progress()
		return leastA > 0 && leastB > 0
	})
	r.before = r.throughput("the other store does not work before the fault", nil)
	if failures := r.a.failed(); len(failures) > 0 && !r.c.hangsEndlessly() {
		r.Errorf("calls fail without a fault: %v: %v", failures, r.a.lastError())
	}
}

// throughput returns the operations per second of the other store, during the time that it takes for some rounds and for a
// condition.
func (r *run) throughput(otherwise string, until func() bool) float64 {
	r.Helper()
	r.b.begin()
	begun := time.Now()
	r.wait(otherwise, func() bool {
		least, _ := r.b.progress()
		return least >= rounds && (until == nil || until())
	})
	_, all := r.b.progress()
	return float64(all) / time.Since(begun).Seconds()
}

// fail begins the fault, and waits until it has happened and both stores have worked during it. After a fault that happens once,
// the failing store must work although the test does not end the fault: a call may still hang.
func (r *run) fail() {
	r.Helper()
	r.control.Inject(r.c.Fault, r.c.Provoked)
	if r.c.reopens() {
		_ = r.a.close() // the workers open it again
	}
	r.wait("the fault does not happen", func() bool { return r.control.Fired() > 0 })
	r.a.begin()
	happened := time.Now()
	during := r.throughput("during the fault, the other store does not work, or the failing one does not respond", func() bool {
		least, _ := r.a.progress()
		switch {
		case r.c.Fault.Times == 0:
			return r.c.Fault.Kind == faulty.Hang || r.a.attempts() >= rounds
		case r.result.Recovery == 0 && least > 0:
			r.result.Recovery = time.Since(happened)
		}
		return r.result.Recovery > 0
	})
	r.result.Share = during / r.before
}

// recover ends the fault, after a check if the fault is garbage, and waits until the store works.
func (r *run) recover() {
	r.Helper()
	if r.c.isGarbage() {
		r.a.checkBetween(r.control.End)
	} else {
		r.control.End()
	}
	r.result.Fired = r.control.Fired()
	if r.c.Fault.Times == 0 {
		r.result.Recovery = r.recovery()
	}
}

// recovery returns the time until each worker has finished an operation that begins now or later.
func (r *run) recovery() time.Duration {
	r.Helper()
	r.a.begin()
	begun := time.Now()
	r.mustWork("the store does not work after the fault", func() bool {
		least, _ := r.a.progress()
		return least > 0
	})
	return time.Since(begun)
}

// mustWork waits for a condition on the failing store. Garbage may have damaged it permanently, which is a wrong result.
func (r *run) mustWork(otherwise string, condition func() bool) {
	r.Helper()
	if !r.c.isGarbage() {
		r.wait(otherwise, condition)
	} else if !r.broken && !r.poll(limit/8, condition) {
		r.broken = true
		r.a.journal.wrongf("%s (%s)", otherwise, hsm.KindOf(r.a.lastError()))
	}
}

// settle stops the load and compares what the stores have with what they should have.
func (r *run) settle() {
	r.Helper()
	r.mustWork("an operation does not succeed although it is repeated", r.a.stopped())
	r.wait("an operation of the other store does not succeed", r.b.stopped())
	if r.broken {
		r.a.end()
	} else {
		r.a.verify()
	}
	r.b.verify()
	r.b.cleanUp(r.T)
	if err := r.a.close(); err != nil {
		r.Errorf("Close: %v", err)
	}
	r.compareObjects()
	r.checkPINs()
	for _, load := range []*load{r.a, r.b} {
		load.journal.endCheck(load.journal.beginCheck(), nil)
	}
	r.result.Failures, r.result.Wrong = r.a.failed(), r.a.journal.wrong
	if len(r.b.journal.wrong) > 0 {
		r.Errorf("results of the other store are wrong: %v", r.b.journal.wrong)
	}
	if failures := r.b.failed(); len(failures) > 0 {
		r.Errorf("calls of the other store fail: %v: %v", failures, r.b.lastError())
	}
}

// compareObjects compares the objects in the token with those that the store returned.
func (r *run) compareObjects() {
	r.Helper()
	want, got := r.a.journal.objects(), tokens.Objects(r.T, r.token)
	if r.c.endsProcess() {
		// A later self-test destroys what this one leaves if its process ends.
		all := len(got)
		got = slices.DeleteFunc(got, func(object string) bool { return object == "secret keyconvoy:self-test" })
		r.result.Left = all - len(got)
	}
	for _, object := range difference(want, got) {
		r.a.journal.wrongf("the token lost a %s", kindOf(object))
	}
	for _, object := range difference(got, want) {
		if slices.Contains(want, object) {
			r.a.journal.wrongf("the token has a %s twice", kindOf(object))
		} else {
			r.a.journal.wrongf("the token has a %s that was destroyed or never returned", kindOf(object))
		}
	}
}

// kindOf returns the class of an object and the constant part of its label.
func kindOf(object string) string {
	class, label, _ := strings.Cut(object, " ")
	parts := strings.SplitN(label, ":", 3)
	return class + " " + strings.Join(parts[:min(2, len(parts))], ":")
}

// difference returns what a has and b does not, counting repetitions.
func difference(a, b []string) (only []string) {
	left := map[string]int{}
	for _, s := range b {
		left[s]++
	}
	for _, s := range a {
		if left[s]--; left[s] < 0 {
			only = append(only, s)
		}
	}
	return only
}

// checkPINs checks that only the right PIN reached the token, and at most once each time that the store connected: it lists
// the slots for that.
func (r *run) checkPINs() {
	r.Helper()
	logins, connections := r.control.Logins(), r.control.Calls("C_GetSlotList")
	if logins.Wrong > 0 || logins.Refused > 0 {
		r.Errorf("the token was asked to check other PINs: %+v", logins)
	}
	if n := r.control.Calls("C_Login"); n > connections {
		r.Errorf("%d calls of C_Login for %d connections", n, connections)
	}
}

// end ends the load, also after a failure.
func (r *run) end() {
	r.control.End()
	r.a.end()
	r.b.end()
	_ = r.a.close()
}

// wait waits for a condition.
func (r *run) wait(otherwise string, condition func() bool) {
	r.Helper()
	if !r.poll(limit, condition) {
		r.Fatalf("%s; the last errors are %v and %v", otherwise, r.a.lastError(), r.b.lastError())
	}
}

// poll returns whether a condition holds within a time.
func (r *run) poll(within time.Duration, condition func() bool) bool {
	ctx, cancel := context.WithTimeout(r.Context(), within)
	defer cancel()
	for !condition() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(2 * time.Millisecond):
		}
	}
	return true
}
