//go:build cgo && linux

package process_test

import (
	"flag"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faults"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
)

// newFaultyProvider returns a provider for package faults.
func newFaultyProvider(find func(name string) faults.Library, now func() time.Time) hsm.Provider {
	return process.New(process.Options{
		Command: []string{process.SelfCommand, childArgument}, Log: logr.Discard(), Now: now,
		Find: func(name string) (process.Library, error) {
			l := find(name)
			library := process.Library{Path: l.Path, Parameters: l.Parameters, Environment: l.Environment, Timeout: l.Timeout}
			for _, file := range l.Files {
				library.Paths = append(library.Paths, process.Path{Name: file, Writable: true})
			}
			return library, nil
		},
	})
}

var (
	allFaults = flag.Bool("faults.all", false, "test every fault in every function, which takes an hour")
	killFor   = flag.Duration("faults.kill", 0, "how long to kill processes at random moments; 0 means a few kills")
)

func TestFaults(t *testing.T) {
	scene := faults.New(t, newFaultyProvider)
	t.Run("calls", func(t *testing.T) {
		cases := faults.Subset(true)
		if *allFaults {
			cases = faults.Matrix(true)
		}
		scene.Test(t, cases...)
	})
	t.Run("kill -9 at random moments", func(t *testing.T) { scene.TestKills(t, 8, *killFor) })
	t.Run("a refused PIN is not tried again", scene.TestRefusedPIN)
	t.Run("a PIN whose first attempt crashes is tried once", scene.TestCrashInLogin)
}
