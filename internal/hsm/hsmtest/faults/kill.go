//go:build cgo

package faults

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
)

// TestKills kills the process of the failing store at random moments, at least so many times and for at least that long. A moment
// is a number of calls into the library. Some of them are in the self-test of the next process.
func (s *Scene) TestKills(t *testing.T, kills int, duration time.Duration) {
	t.Helper()
	const most = 2000 // calls until the next kill
	r := s.begin(t, Case{Name: "kill -9 at random moments"})
	r.steady()
	begun, n, longest := time.Now(), 0, time.Duration(0)
	for ; n < kills || time.Since(begun) < duration; n++ {
		process := s.control.Process()
		moment := s.calls() + rand.IntN(most) //nolint:gosec // no secret
		r.wait("the load stops", func() bool { return s.calls() >= moment })
		s.late.Add(int64(24 * time.Hour)) // so that the provider starts the next process at once
		if err := syscall.Kill(process, syscall.SIGKILL); err != nil {
			t.Fatalf("kill the process of the library: %v", err)
		}
		r.wait("no new process starts", func() bool { return s.control.Process() != process })
		if n%4 == 0 { // the others are killed perhaps before they work
			longest = max(longest, r.recovery())
		}
	}
	r.recovery()
	r.settle()
	r.result.check(t, r.c)
	t.Logf("%d kills in %.0f s; the longest recovery took %.2f s; failed calls: %s; wrong results: %s; left by self-tests: %d",
		n, time.Since(begun).Seconds(), longest.Seconds(), list(r.result.Failures), list(r.result.Wrong), r.result.Left)
}

// calls returns the number of all calls into the library.
func (s *Scene) calls() int { return s.control.Calls(faulty.Functions()...) }
