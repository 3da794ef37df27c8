package csi

import "testing"

func TestRemovals_areLimited(t *testing.T) {
	t.Parallel()
	r := removals{running: true} // nothing is deleted yet
	removed := 0
	for range maxWaiting + 10 {
		r.add(func() { removed++ })
	}
	r.run()
	if removed != maxWaiting {
		t.Errorf("%d objects were deleted, want %d", removed, maxWaiting)
	}
}
