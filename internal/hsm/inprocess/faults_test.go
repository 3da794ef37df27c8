//go:build cgo

package inprocess_test

import (
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faults"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
)

func TestFaults(t *testing.T) {
	scene := faults.New(t, func(find func(string) faults.Library, _ func() time.Time) hsm.Provider {
		return inprocess.Provider(func(name string) (inprocess.Library, error) {
			return inprocess.Library{Path: find(name).Path, Parameters: find(name).Parameters}, nil
		})
	})
	scene.Test(t, faults.Subset(false)...)
	t.Run("a refused PIN is not tried again", scene.TestRefusedPIN)
}
