package harness

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const (
	// Patience is how long tests wait for what must happen. No machine is that slow.
	Patience = time.Minute
	// Interval is how often they look.
	Interval = 20 * time.Millisecond
)

// Eventually waits until there is no problem any more.
func Eventually(t testing.TB, problem func() string) {
	t.Helper()
	deadline := time.After(Patience)
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		last := problem()
		if last == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("Still not after %s: %s", Patience, last)
		case <-tick.C:
		}
	}
}

// WantWords fails the test if a message lacks one of the words.
func WantWords(t testing.TB, message string, words []string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("%q does not say %q", message, w)
		}
	}
}

// JSON returns a value as JSON.
func JSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
