//go:build cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// mustNotOpen opens and checks how that fails; it returns the public message.
func mustNotOpen(t *testing.T, cfg Config, want hsm.Kind, saying ...string) string {
	t.Helper()
	m, err := Open(t.Context(), cfg)
	if err == nil {
		_ = m.Close()
		t.Fatal("it opens")
	}
	wantKind(t, err, want, "Open")
	var e *hsm.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no *hsm.Error", err)
	}
	for _, part := range saying {
		if !strings.Contains(e.Detail, part) {
			t.Errorf("the message %q does not say %q", e.Detail, part)
		}
	}
	return e.Detail
}

func TestOpen_libraryThatDoesNotLoad_saysWhyInTheLogOnly(t *testing.T) {
	for name, path := range map[string]string{"missing": "/nowhere/libnothing.so", "no PKCS#11": "/lib/x86_64-linux-gnu/libm.so.6"} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(t.Context(), Config{Path: path, Token: TokenSelector{Label: "x"}})
			wantKind(t, err, hsm.Misconfigured, "Open")
			var e *hsm.Error
			if !errors.As(err, &e) || e.Err == nil || strings.Contains(e.Detail, path) {
				t.Errorf("%v: the cause must say why and the message must not say where", err)
			}
		})
	}
}

func TestOpen_noTokenMatches_saysWhatThereIs(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		cfg := configOf(token)
		cfg.Token = TokenSelector{Label: "treasure\x01", Model: "chest"}
		mustNotOpen(t, cfg, hsm.Misconfigured, `label "treasure?"`, `model "chest"`, token.Label)
		cfg.Token = TokenSelector{}
		mustNotOpen(t, cfg, hsm.Misconfigured, "label")
	})
}

func TestOpen_twoTokensMatch_namesBothAndTakesNone(t *testing.T) {
	one := tokens.SoftHSM(t)
	tokens.SoftHSMLabelled(t, one.Label)
	detail := mustNotOpen(t, configOf(one), hsm.Misconfigured, "2 tokens match", "SoftHSM v2")
	serials := 0
	for _, part := range strings.Split(detail, `serial "`)[1:] {
		serial, _, _ := strings.Cut(part, `"`)
		cfg := configOf(one)
		cfg.Token.Serial = " " + serial + "\x00"
		if m := mustOpen(t, cfg); m.Info().Serial != serial {
			t.Errorf("asked for serial %q and got %q", serial, m.Info().Serial)
		}
		serials++
	}
	if serials != 2 {
		t.Errorf("%q names %d serials", detail, serials)
	}
}

func TestOpen_tokenThatCameLater_isSeen(t *testing.T) {
	early := mustOpen(t, configOf(tokens.SoftHSM(t)))
	late := mustOpen(t, configOf(tokens.SoftHSM(t)))
	for _, m := range []*Module{early, late} {
		if err := m.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
	}
}

func TestOpen_tokensMissing_doNotInitialiseForEver(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	generous := libraries.rescan
	libraries.rescan = newAllowance(2, time.Hour)
	defer func() { libraries.rescan = generous }()
	spy := spyOn(t, m)
	cfg := configOf(tokens.SoftHSM(t))
	cfg.Token.Label = "nothing"
	for range 5 {
		if _, err := Open(t.Context(), cfg); hsm.KindOf(err) != hsm.Misconfigured {
			t.Fatal(err)
		}
	}
	if n := spy.count("C_Initialize"); n != 2 {
		t.Errorf("%d initialisations for 5 tries; the allowance is 2", n)
	}
}

func TestOpen_otherParametersForALibraryInUse_areRefused(t *testing.T) {
	token := tokens.NSS(t)
	mustOpen(t, configOf(token))
	cfg := configOf(token)
	cfg.Parameters += " "
	mustNotOpen(t, cfg, hsm.Misconfigured, "other parameters")
}

func TestOpen_contextDone_isUnavailable(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, configOf(tokens.SoftHSM(t)))
	wantKind(t, err, hsm.Unavailable, "Open")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not have context.Canceled in its chain", err)
	}
}

func TestOpen_noPIN_isMisconfigured(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		cfg := configOf(token)
		cfg.PIN = nil
		mustNotOpen(t, cfg, hsm.Misconfigured, "needs a PIN")
	})
}

func TestOpen_wrongPIN_isTriedOnceEver(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		probe := mustOpen(t, configOf(token))
		spy := spyOn(t, probe)
		if err := probe.Close(); err != nil { // nobody is logged in
			t.Fatal(err)
		}
		wrong := configOf(token)
		wrong.PIN = redact.Bytes("wrong " + token.Label)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() { mustNotOpen(t, wrong, hsm.Locked, "refused this PIN") })
		}
		group.Wait()
		mustNotOpen(t, wrong, hsm.Locked, "refused this PIN")
		if n := spy.count("C_Login"); n != 1 {
			t.Errorf("%d calls of C_Login; want 1", n)
		}
		if m := mustOpen(t, configOf(token)); m.Check(t.Context()) != nil {
			t.Error("the right PIN does not open the token afterwards")
		}
	})
}

func TestOpen_wrongPINOnATokenInUse_doesNotRideOnTheLogin(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		m := mustOpen(t, configOf(token))
		spy := spyOn(t, m)
		other := configOf(token)
		other.PIN = redact.Bytes("87654321")
		mustNotOpen(t, other, hsm.PINUntried, "another PIN")
		if n := spy.count("C_Login"); n != 0 {
			t.Errorf("%d calls of C_Login; want none", n)
		}
		if err := m.Check(t.Context()); err != nil {
			t.Errorf("the first one suffers: %v", err)
		}
		same := mustOpen(t, configOf(token))
		if err := same.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if n := spy.count("C_Login"); n != 0 {
			t.Errorf("%d calls of C_Login for the same PIN; want none", n)
		}
	})
}

func TestOpen_closingOneOfTwo_leavesTheOtherLoggedIn(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		one, two := mustOpen(t, configOf(token)), mustOpen(t, configOf(token))
		spy := spyOn(t, two)
		if err := one.Close(); err != nil {
			t.Fatal(err)
		}
		if err := two.Check(t.Context()); err != nil || spy.count("C_Login", "C_Initialize") != 0 {
			t.Errorf("Check: %v, with %d logins and initialisations", err, spy.count("C_Login", "C_Initialize"))
		}
		wantKind(t, one.Check(t.Context()), hsm.Unavailable, "Check after Close")
	})
}

func TestOpen_countersThatForbidATry_areRespected(t *testing.T) {
	for name, flag := range map[string]uint{"locked": p11.CKF_USER_PIN_LOCKED, "one try is left": p11.CKF_USER_PIN_FINAL_TRY} {
		t.Run(name, func(t *testing.T) {
			spy := spyOn(t, mustOpen(t, configOf(tokens.SoftHSM(t))))
			spy.flags = flag
			mustNotOpen(t, configOf(tokens.SoftHSM(t)), hsm.PINUntried, name)
			if n := spy.count("C_Login"); n != 0 {
				t.Errorf("%d calls of C_Login; want none", n)
			}
		})
	}
}

func TestOpen_lowCounter_stillTriesAPINThatWasNeverRefused(t *testing.T) {
	spy := spyOn(t, mustOpen(t, configOf(tokens.SoftHSM(t))))
	spy.flags = p11.CKF_USER_PIN_COUNT_LOW
	mustOpen(t, configOf(tokens.SoftHSM(t)))
	if n := spy.count("C_Login"); n != 1 {
		t.Errorf("%d calls of C_Login; want 1", n)
	}
}

func TestOpen_everyPINCode_isRemembered(t *testing.T) {
	for _, code := range []p11.Error{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED} {
		t.Run(fmt.Sprintf("%#x", uint(code)), func(t *testing.T) {
			spy := spyOn(t, mustOpen(t, configOf(tokens.SoftHSM(t))))
			spy.inject(failing(code, 1, "C_Login"))
			cfg := configOf(tokens.SoftHSM(t))
			mustNotOpen(t, cfg, hsm.Locked)
			mustNotOpen(t, cfg, hsm.Locked)
			if n := spy.count("C_Login"); n != 1 {
				t.Errorf("%d calls of C_Login; want 1", n)
			}
		})
	}
}

func TestOpen_copiesThePINAndCloseWipesIt(t *testing.T) {
	cfg := configOf(tokens.SoftHSM(t))
	given := redact.Bytes("12345678")
	cfg.PIN = given
	m := mustOpen(t, cfg)
	given.Wipe()
	if err := m.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept := m.pin
	if string(kept) != "12345678" {
		t.Error("the module does not keep a copy of its own")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if strings.Trim(string(kept), "\x00") != "" {
		t.Error("Close leaves the PIN in memory")
	}
}

func TestOpen_leavesNothingBehind(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		m := mustOpen(t, configOf(token))
		if n := objects(t, m); n != 0 {
			t.Errorf("%d objects after the self-test of an empty token", n)
		}
		again := mustOpen(t, configOf(token))
		if n := objects(t, again); n != 0 {
			t.Errorf("%d objects after a second self-test", n)
		}
	})
}

func TestOpen_libraryThatDoesNotInitialise(t *testing.T) {
	m := mustOpen(t, configOf(tokens.SoftHSM(t)))
	spy := spyOn(t, m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := configOf(tokens.SoftHSM(t))
	spy.inject(failing(p11.CKR_GENERAL_ERROR, 1, "C_Initialize"))
	mustNotOpen(t, cfg, hsm.Unavailable)
	spy.inject(failing(p11.CKR_ARGUMENTS_BAD, 1, "C_Initialize"))
	mustNotOpen(t, cfg, hsm.Misconfigured, "parameters")
	spy.inject(nil)
	mustOpen(t, cfg)
}

// The token counts no tries while it is logged in: guesses are counted here, and after some even the right
// PIN is not taken for a while, as the answer would tell.
func TestOpen_guessingThePINOfATokenInUse_ends(t *testing.T) {
	token := tokens.SoftHSM(t)
	m := mustOpen(t, configOf(token))
	spy := spyOn(t, m)
	other := configOf(token)
	for n := range 5 {
		other.PIN = redact.Bytes(fmt.Sprintf("1000000%d", n))
		mustNotOpen(t, other, hsm.PINUntried, "another PIN")
		mustNotOpen(t, other, hsm.PINUntried, "another PIN") // asking again costs no guess
	}
	mustNotOpen(t, configOf(token), hsm.PINUntried, "another PIN")
	if err := m.Check(t.Context()); err != nil || spy.count("C_Login") != 0 {
		t.Errorf("the one that is logged in suffers: %v, %d logins", err, spy.count("C_Login"))
	}
}
