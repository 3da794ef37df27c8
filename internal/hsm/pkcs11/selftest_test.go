//go:build cgo

package pkcs11

import (
	"sync/atomic"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

func TestSelfTest_leavesNoObjects(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		for range 2 {
			if n := objects(t, mustOpen(t, configOf(tok))); n != 0 {
				t.Errorf("%d objects after the self-test of an empty token, want 0", n)
			}
		}
	})
}

// A device that fails during the self-test must not count as one that supports little.
func TestSelfTest_deviceLost_isUnavailable(t *testing.T) {
	tok := tokens.SoftHSM(t)
	if err := mustOpen(t, configOf(tok)).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spy := tokens.SpyOn(t, tok)
	for _, code := range []p11.Error{p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR} {
		var lost atomic.Bool
		spy.Inject(func(function string) error {
			if function == "C_WrapKey" { // the first data key
				lost.Store(true)
			}
			if lost.Load() {
				return code
			}
			return nil
		})
		_, err := Open(t.Context(), configOf(tok))
		hsmtest.WantKind(t, err, hsm.Unavailable, "Open with %#x", uint(code))
	}
	spy.Inject(nil)
	mustOpen(t, configOf(tok))
}
