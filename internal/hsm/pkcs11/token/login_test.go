//go:build cgo

package token

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins/pinstest"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

func TestLogin_noPIN_isMisconfigured(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		cfg := configOf(token)
		cfg.PIN = nil
		mustNotOpen(t, cfg, hsm.Misconfigured, "requires a PIN")
	})
}

func TestLogin_wrongPIN_isTriedOnce(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		spy := closedToken(t, configOf(token), token) // no session is logged in
		wrong := configOf(token)
		wrong.PIN = redact.WireBytes("wrong " + token.Label)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() { mustNotOpen(t, wrong, hsm.Locked, "rejected this PIN") })
		}
		group.Wait()
		mustNotOpen(t, wrong, hsm.Locked, "rejected this PIN")
		if n := spy.Count("C_Login"); n != 1 {
			t.Errorf("%d calls of C_Login, want 1", n)
		}
		if err := check(t.Context(), mustOpen(t, configOf(token))); err != nil {
			t.Errorf("after that, the right PIN does not open the token: %v", err)
		}
	})
}

func TestLogin_wrongPINForAConnectedToken_doesNotUseTheExistingLogin(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		tok := mustOpen(t, configOf(token))
		spy := tokens.SpyOn(t, token)
		other := configOf(token)
		other.PIN = redact.WireBytes("87654321")
		mustNotOpen(t, other, hsm.PINUntried, "another PIN")
		if n := spy.Count("C_Login"); n != 0 {
			t.Errorf("%d calls of C_Login, want 0", n)
		}
		if err := check(t.Context(), tok); err != nil {
			t.Errorf("the connected token fails: %v", err)
		}
		if err := check(t.Context(), mustOpen(t, configOf(token))); err != nil {
			t.Error(err)
		}
		if n := spy.Count("C_Login"); n != 0 {
			t.Errorf("%d calls of C_Login for the same PIN, want 0", n)
		}
	})
}

func TestLogin_PINCounter_isRespected(t *testing.T) {
	for text, flag := range map[string]uint{"locked": p11.CKF_USER_PIN_LOCKED, "one more wrong attempt": p11.CKF_USER_PIN_FINAL_TRY} {
		t.Run(text, func(t *testing.T) {
			one, two := tokens.SoftHSM(t), tokens.SoftHSM(t)
			mustOpen(t, configOf(one))
			spy := tokens.SpyOn(t, one)
			spy.AddFlags(flag)
			mustNotOpen(t, configOf(two), hsm.PINUntried, text)
			if n := spy.Count("C_Login"); n != 0 {
				t.Errorf("%d calls of C_Login, want 0", n)
			}
		})
	}
}

// A token with a counter reports the first wrong PIN. If it has accepted a PIN before, no other PIN is tried.
func TestLogin_lowPINCounter_triesOnlyAPINThatWasAccepted(t *testing.T) {
	one, known, fresh := tokens.SoftHSM(t), tokens.SoftHSM(t), tokens.SoftHSM(t)
	mustOpen(t, configOf(one))
	spy := closedToken(t, configOf(known), known)
	spy.AddFlags(p11.CKF_USER_PIN_COUNT_LOW)
	wrong := configOf(known)
	wrong.PIN = redact.WireBytes("87654321")
	mustNotOpen(t, wrong, hsm.PINUntried, "has rejected one since the last login")
	if n := spy.Count("C_Login"); n != 0 {
		t.Errorf("%d calls of C_Login, want 0", n)
	}
	mustOpen(t, configOf(known))
	mustOpen(t, configOf(fresh)) // it has accepted none
	if n := spy.Count("C_Login"); n != 2 {
		t.Errorf("%d calls of C_Login, want 2", n)
	}
}

func TestLogin_everyCodeForAWrongPIN_isRemembered(t *testing.T) {
	for _, code := range []p11.Error{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_EXPIRED} {
		t.Run(fmt.Sprintf("%#x", uint(code)), func(t *testing.T) {
			one, two := tokens.SoftHSM(t), tokens.SoftHSM(t)
			mustOpen(t, configOf(one))
			spy := tokens.SpyOn(t, one)
			spy.Inject(tokens.Failing(code, 1, "C_Login"))
			mustNotOpen(t, configOf(two), hsm.Locked)
			mustNotOpen(t, configOf(two), hsm.Locked)
			if n := spy.Count("C_Login"); n != 1 {
				t.Errorf("%d calls of C_Login, want 1", n)
			}
		})
	}
}

func TestOpen_copiesThePIN_andCloseWipesTheCopy(t *testing.T) {
	cfg := configOf(tokens.SoftHSM(t))
	given := redact.WireBytes("vQ4-7pZk")
	cfg.PIN = given
	tok := mustOpen(t, cfg)
	given.Wipe()
	if err := check(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
	kept := tok.pin
	if string(kept) != "vQ4-7pZk" {
		t.Error("the token does not keep a copy of the PIN")
	}
	mustClose(t, tok)
	if strings.Trim(string(kept), "\x00") != "" {
		t.Error("Close does not wipe the PIN")
	}
}

// guarded is the configuration of a token whose PIN guard has a clock and a storage of the test.
type guarded struct {
	Config
	clock   *pinstest.Clock
	storage *pinstest.Memory
}

func guard(token tokens.Token) *guarded {
	g := &guarded{Config: configOf(token), storage: &pinstest.Memory{}, clock: &pinstest.Clock{}}
	g.restart()
	return g
}

// restart drops the state in memory, as a restart of the operator does.
func (g *guarded) restart() { g.PINs = pins.New(g.storage, g.clock.Now) }

// of returns the configuration of a key store in a namespace. An empty pin means the right one.
func (g *guarded) of(namespace, pin string) Config {
	cfg := g.Config
	cfg.PINOrigin = pins.Origin{Namespace: namespace, Source: "uid of " + namespace}
	if pin != "" {
		cfg.PIN = redact.WireBytes(pin)
	}
	return cfg
}

// A namespace that guesses PINs neither finds the right one nor uses up the attempts of other namespaces, whatever happens
// between two guesses.
func TestPINs_guessing_endsForItsNamespaceOnly(t *testing.T) {
	for name, between := range map[string]func(*testing.T, *guarded){
		"nothing in between":   func(*testing.T, *guarded) {},
		"a restart in between": func(_ *testing.T, g *guarded) { g.restart() },
		"a missing token in between": func(t *testing.T, g *guarded) {
			cfg := g.of("thief", "00000000")
			cfg.Selector.Label = "none"
			mustNotOpen(t, cfg, hsm.Misconfigured)
		},
		"C_Initialize in between": func(t *testing.T, g *guarded) {
			lib := libraries.get(g.Path)
			generation, _ := lib.currentGeneration()
			_ = lib.reinitialize(t.Context(), generation)
		},
		"while the token is connected": nil,
	} {
		t.Run(name, func(t *testing.T) {
			tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
				g := guard(token)
				first := mustOpen(t, configOf(token))
				spy := tokens.SpyOn(t, token)
				connected := between == nil
				if !connected {
					mustClose(t, first)
				}
				spy.Reset()
				for n := range 18 {
					if between != nil {
						between(t, g)
					}
					_, err := open(t.Context(), g.of("thief", fmt.Sprintf("%08d", n)))
					if kind := hsm.KindOf(err); kind != hsm.Locked && kind != hsm.PINUntried {
						t.Fatalf("a wrong PIN: %v", err)
					}
				}
				allowed := 5
				switch {
				case connected:
					allowed = 0
				case token.Parameters == "": // SoftHSM reports a low count, although it does not count
					allowed = 2
				}
				if n := spy.Count("C_Login"); n != allowed {
					t.Errorf("%d calls of C_Login, want %d", n, allowed)
				}
				tenant := mustOpen(t, g.of("tenant", ""))
				for n := range 5 {
					mustNotOpen(t, g.of("thief", fmt.Sprintf("9999999%d", n)), hsm.PINUntried)
				}
				// The answer to the right PIN must not differ.
				mustNotOpen(t, g.of("thief", ""), hsm.PINUntried, "too many wrong PINs")
				if err := check(t.Context(), tenant); err != nil {
					t.Error(err)
				}
				g.clock.Advance(10 * time.Minute)
				mustOpen(t, g.of("thief", ""))
			})
		})
	}
}

// A key store whose PIN was accepted can be opened again, whatever others tried meanwhile.
func TestPINs_acceptedPIN_isNeverLockedOut(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, token tokens.Token) {
		g := guard(token)
		tok := mustOpen(t, g.of("tenant", ""))
		for n := range 8 {
			mustNotOpen(t, g.of("thief", fmt.Sprintf("%08d", n)), hsm.PINUntried)
			mustNotOpen(t, g.of("tenant", fmt.Sprintf("%08d", n)), hsm.PINUntried)
		}
		for range 2 {
			mustClose(t, tok)
			g.restart()
			tok = mustOpen(t, g.of("tenant", ""))
		}
	})
}

func TestPINs_attempt_isRecordedBeforeTheLogin(t *testing.T) {
	token := tokens.SoftHSM(t)
	g := guard(token)
	spy := closedToken(t, configOf(token), token)
	spy.Inject(func(function string) error {
		if function == "C_Login" && (g.storage.Saves() != 1 || !strings.Contains(g.storage.Content(), "fullAt")) {
			t.Errorf("C_Login after %d saves of %s", g.storage.Saves(), g.storage.Content())
		}
		return nil
	})
	mustNotOpen(t, g.of("thief", "00000000"), hsm.Locked)
	if n := spy.Count("C_Login"); n != 1 {
		t.Errorf("%d calls of C_Login, want 1", n)
	}
}

func TestPINs_recordFails_onlyTheConnectedTokenLogsIn(t *testing.T) {
	token := tokens.SoftHSM(t)
	g := guard(token)
	tok := mustOpen(t, g.of("tenant", ""))
	spy := tokens.SpyOn(t, token)
	g.storage.Fail(errors.New("the API server is down"))
	if err := spy.LogoutDirectly(); err != nil {
		t.Fatal(err)
	}
	if err := check(t.Context(), tok); err != nil || spy.Count("C_Login") != 1 {
		t.Errorf("the connected token: %v, %d logins", err, spy.Count("C_Login"))
	}
	mustClose(t, tok)
	spy.Reset()
	mustNotOpen(t, g.of("thief", "00000000"), hsm.Unavailable, "tries no PIN")
	if n := spy.Count("C_Login"); n != 0 {
		t.Errorf("%d calls of C_Login, want 0", n)
	}
}

// A token that returns CKR_USER_ALREADY_LOGGED_IN has not compared the PIN.
func TestPINs_alreadyLoggedIn_provesNothing(t *testing.T) {
	token := tokens.SoftHSM(t)
	g := guard(token)
	spy := closedToken(t, configOf(token), token)
	spy.Inject(tokens.Failing(p11.CKR_USER_ALREADY_LOGGED_IN, 1, "C_Login"))
	mustNotOpen(t, g.of("thief", "00000000"), hsm.Locked)
	spy.Inject(tokens.Failing(p11.CKR_USER_ALREADY_LOGGED_IN, tokens.Always, "C_Login"))
	mustNotOpen(t, g.of("other", "00000001"), hsm.Internal)
	if strings.Contains(g.storage.Content(), `"right"`) {
		t.Error("a PIN that the token did not compare is recorded as accepted")
	}
}

func TestPINs_tokenThatCounts_getsOneWrongPIN(t *testing.T) {
	token := tokens.SoftHSM(t)
	g := guard(token)
	spy := closedToken(t, g.of("tenant", ""), token)
	mustNotOpen(t, g.of("thief", "00000000"), hsm.Locked)
	spy.AddFlags(p11.CKF_USER_PIN_COUNT_LOW)
	for n := range 18 {
		mustNotOpen(t, g.of(fmt.Sprint("thief", n), fmt.Sprint("wrong", n)), hsm.PINUntried, "has rejected one since")
	}
	if n := spy.Count("C_Login"); n != 1 {
		t.Errorf("%d calls of C_Login, want 1", n)
	}
	mustOpen(t, g.of("tenant", ""))
}
