//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"regexp"
	"slices"
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

func TestSelfTest_namesItsProbes(t *testing.T) {
	for kind, want := range map[string]hsm.Probe{
		"SoftHSM": {Name: "import with RSAES_OAEP_SHA_256, custody Module", Failure: "C_UnwrapKey: CKR_ARGUMENTS_BAD"},
		"NSS":     {Name: "C_WrapKey with CKM_AES_KEY_WRAP", Attack: true, Succeeded: true},
	} {
		t.Run(kind, func(t *testing.T) {
			probes := describe(t, mustOpen(t, configOf(tokens.Kinds[kind](t)))).Probes
			if !slices.Contains(probes, want) {
				t.Errorf("the probes lack %+v: %+v", want, probes)
			}
			checkProbes(t, probes)
		})
	}
}

// checkProbes checks that each probe has a result, in words that this repository or the standard chose.
func checkProbes(t *testing.T, probes []hsm.Probe) {
	t.Helper()
	for _, p := range probes {
		if p.Name == "" || p.Succeeded != (p.Failure == "") || !failureText.MatchString(p.Failure) {
			t.Errorf("an incomplete or unexpected probe: %+v", p)
		}
	}
}

var failureText = regexp.MustCompile(`^(|C_[A-Za-z]+: CKR_[A-Z_]+|CKR_[A-Z_]+|wrong result|the token (returned|created) [^%]+)$`)

// A bug report about a token that is refused needs the probes, too.
func TestSelfTest_refusedToken_errorHasTheProbes(t *testing.T) {
	tok := tokens.SoftHSM(t)
	if err := mustOpen(t, configOf(tok)).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spy := tokens.SpyOn(t, tok)
	spy.Inject(tokens.Failing(p11.CKR_MECHANISM_INVALID, tokens.Always, "C_DeriveKey"))
	_, err := Open(t.Context(), configOf(tok))
	hsmtest.WantKind(t, err, hsm.NotSupported, "Open without C_DeriveKey")
	var e *hsm.Error
	if !errors.As(err, &e) || len(e.Probes) == 0 {
		t.Fatalf("%v has no probes", err)
	}
	checkProbes(t, e.Probes)
	if last := e.Probes[len(e.Probes)-1]; last.Failure != "C_DeriveKey: CKR_MECHANISM_INVALID" {
		t.Errorf("the last probe is %+v", last)
	}
}

// Open returns when its context is done, although the library does not.
func TestSelfTest_hangs_errorSaysWhere(t *testing.T) {
	tok := tokens.SoftHSM(t)
	if err := mustOpen(t, configOf(tok)).Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	spy := tokens.SpyOn(t, tok)
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	spy.Inject(func(function string) error {
		if function == "C_WrapKey" { // the first data key
			cancel()
			<-release
		}
		return nil
	})
	_, err := Open(ctx, configOf(tok))
	close(release)
	hsmtest.WantKind(t, err, hsm.Unavailable, "Open of a library that hangs")
	var e *hsm.Error
	if !errors.As(err, &e) || len(e.Probes) == 0 {
		t.Fatalf("%v has no probes", err)
	}
	want := hsm.Probe{Name: "wrap and unwrap a data key of 16 bytes", Failure: notReturned}
	if last := e.Probes[len(e.Probes)-1]; last != want {
		t.Errorf("the last probe is %+v, want %+v", last, want)
	}
}
