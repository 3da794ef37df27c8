//go:build cgo

package faults

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Test runs cases, one after the other, and logs a table of their results.
func (s *Scene) Test(t *testing.T, cases ...Case) {
	t.Helper()
	var table strings.Builder
	rows := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(rows, "fault\tfired\trecovery\tother store\tfailed calls\tleft by self-tests\twrong results")
	var longest time.Duration
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			r := s.Run(t, c)
			r.check(t, c)
			longest = max(longest, r.Recovery)
			fmt.Fprintf(rows, "%s\t%d\t%.2f s\t%.1f\t%s\t%d\t%s\n",
				c.Name, r.Fired, r.Recovery.Seconds(), r.Share, list(r.Failures), r.Left, list(r.Wrong))
		})
	}
	_ = rows.Flush()
	t.Logf("The longest recovery took %.2f s.\n%s", longest.Seconds(), &table)
}

// check checks that no result was wrong, and that all errors say that the store is unavailable: other kinds would let an object
// stall, although it is right. Garbage may also look like an object that is wrong.
func (r Result) check(t *testing.T, c Case) {
	t.Helper()
	for wrong, n := range r.Wrong {
		if !c.mayBe(wrong) {
			t.Errorf("%d × %s", n, wrong)
		}
	}
	for kind := range r.Failures {
		if kind != hsm.Unavailable && !c.isGarbage() {
			t.Errorf("calls fail with %s", list(r.Failures))
		}
	}
}

// list returns the keys of a map with their counts, in a stable order.
func list[K ~string](counts map[K]int) string {
	if len(counts) == 0 {
		return "-"
	}
	var all []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%d × %s", counts[key], key))
	}
	return strings.Join(all, "; ")
}
