//go:build cgo

package token

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

func TestOpen_noTokenMatches_listsTheTokens(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		cfg := configOf(token)
		cfg.Selector = hsm.TokenSelector{Label: "treasure\x01", Model: "chest"}
		mustNotOpen(t, cfg, hsm.Misconfigured, `label "treasure?"`, `model "chest"`, token.Label)
		cfg.Selector = hsm.TokenSelector{}
		mustNotOpen(t, cfg, hsm.Misconfigured, "label")
	})
}

func TestOpen_twoTokensMatch_namesBothAndOpensNone(t *testing.T) {
	one := tokens.SoftHSM(t)
	tokens.SoftHSMLabelled(t, one.Label)
	detail := mustNotOpen(t, configOf(one), hsm.Misconfigured, "2 tokens match", "SoftHSM v2")
	serials := 0
	for _, part := range strings.Split(detail, `serial "`)[1:] {
		serial, _, _ := strings.Cut(part, `"`)
		cfg := configOf(one)
		cfg.Selector.Serial = " " + serial + "\x00"
		if got := mustOpen(t, cfg).Info().Serial; got != serial {
			t.Errorf("selected serial %q and opened %q", serial, got)
		}
		serials++
	}
	if serials != 2 {
		t.Errorf("%q names %d serials, want 2", detail, serials)
	}
}

// SoftHSM reads its list of tokens only in C_Initialize.
func TestOpen_newToken_isFoundWhenNoOtherIsConnected(t *testing.T) {
	early := mustOpen(t, configOf(tokens.SoftHSM(t)))
	late := configOf(tokens.SoftHSM(t))
	mustNotOpen(t, late, hsm.Misconfigured, "a new token may be missing")
	mustClose(t, early)
	mustOpen(t, late)
}

func TestOpen_missingTokens_doNotDisturbConnectedOnes(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		tok := mustOpen(t, configOf(token))
		spy := tokens.SpyOn(t, token)
		before := tok.connectionID()
		cfg := configOf(token)
		cfg.Selector.Label = "nothing"
		for n := range 18 {
			cfg.PIN = redact.WireBytes(fmt.Sprintf("%08d", n))
			mustNotOpen(t, cfg, hsm.Misconfigured, "no token")
		}
		if n := spy.Count("C_Initialize", "C_Finalize", "C_Login", "C_OpenSession"); n != 0 || tok.connectionID() != before {
			t.Errorf("%d calls that a connected token notices, want 0", n)
		}
	})
}

func TestOpen_libraryInUseWithOtherParameters_isMisconfigured(t *testing.T) {
	token := tokens.NSS(t)
	mustOpen(t, configOf(token))
	cfg := configOf(token)
	cfg.Parameters += " "
	mustNotOpen(t, cfg, hsm.Misconfigured, "other parameters")
}

func TestOpen_contextDone_isUnavailable(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := open(ctx, configOf(tokens.SoftHSM(t)))
	hsmtest.WantKind(t, err, hsm.Unavailable, "Open")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not have context.Canceled in its chain", err)
	}
}

func TestOpen_testFails_closesTheToken(t *testing.T) {
	token := tokens.SoftHSM(t)
	spy := closedToken(t, configOf(token), token)
	want := hsm.Errorf(hsm.NotSupported, "the test fails")
	if _, err := libraries.Open(t.Context(), configOf(token), func(*Session) error { return want }); !errors.Is(err, want) {
		t.Errorf("Open: %v, want %v", err, want)
	}
	if n := spy.Count("C_Finalize"); n != 1 {
		t.Errorf("%d calls of C_Finalize, want 1", n)
	}
}

func TestOpen_libraryDoesNotInitialize(t *testing.T) {
	first := tokens.SoftHSM(t)
	spy := closedToken(t, configOf(first), first)
	cfg := configOf(tokens.SoftHSM(t))
	spy.Inject(tokens.Failing(p11.CKR_GENERAL_ERROR, 1, "C_Initialize"))
	mustNotOpen(t, cfg, hsm.Unavailable)
	spy.Inject(tokens.Failing(p11.CKR_ARGUMENTS_BAD, 1, "C_Initialize"))
	mustNotOpen(t, cfg, hsm.Misconfigured, "parameters")
	spy.Inject(nil)
	mustOpen(t, cfg)
}

// A library that forwards calls shows no token while its server is down. That is not a wrong configuration.
func TestOpen_libraryShowsNoToken_isUnavailableUntilItShowsOne(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		spy := closedToken(t, configOf(token), token)
		spy.Unplug(true)
		mustNotOpen(t, configOf(token), hsm.Unavailable, "shows no token at all")
		spy.Unplug(false)
		tok := mustOpen(t, configOf(token))
		spy.Unplug(true)
		tok.disconnect(t.Context())
		hsmtest.WantKind(t, check(t.Context(), tok), hsm.Unavailable, "HealthCheck")
		spy.Unplug(false)
		clock.Advance(maxBackoff)
		if err := check(t.Context(), tok); err != nil {
			t.Error(err)
		}
	})
}

func TestClose_oneOfTwo_leavesTheOtherLoggedIn(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		one, two := mustOpen(t, configOf(token)), mustOpen(t, configOf(token))
		spy := tokens.SpyOn(t, token)
		mustClose(t, one)
		if err := check(t.Context(), two); err != nil || spy.Count("C_Login", "C_Initialize") != 0 {
			t.Errorf("HealthCheck: %v, with %d logins and initializations", err, spy.Count("C_Login", "C_Initialize"))
		}
		hsmtest.WantKind(t, check(t.Context(), one), hsm.Unavailable, "HealthCheck after Close")
	})
}

func TestClose_contextDone_logsOutAndFinalizes(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		done, cancel := context.WithCancel(t.Context())
		cancel()
		for range 5 {
			tok := mustOpen(t, configOf(token))
			spy := tokens.SpyOn(t, token)
			if err := tok.Close(done); err != nil {
				t.Fatal(err)
			}
			if n, logins := spy.Count("C_Finalize"), len(tok.lib.logins.bySlot); n != 1 || logins != 0 {
				t.Fatalf("%d calls of C_Finalize, want 1; %d logins, want 0", n, logins)
			}
		}
	})
}
