//go:build cgo

package token

import (
	"context"
	"errors"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins/pinstest"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// clock is the clock of libraries. It stands still, so a backoff ends only when a test advances it.
var clock pinstest.Clock

// libraries are the libraries of all tests, each with a spy.
var libraries = &Libraries{
	Load: func(path string) (Cryptoki, error) {
		library, err := LoadLibrary(path)
		if err != nil {
			return nil, err
		}
		return tokens.NewSpy(path, library.(*p11.Ctx)), nil
	},
	ReinitializeInterval: -1,
	Now:                  clock.Now,
}

func configOf(token tokens.Token) Config {
	return Config{
		Path: token.Path, Parameters: token.Parameters,
		Selector: hsm.TokenSelector{Label: token.Label}, PIN: redact.WireBytes(token.PIN),
	}
}

func open(ctx context.Context, cfg Config) (*Token, error) {
	return libraries.Open(ctx, cfg, (*Session).HealthCheck)
}

func mustOpen(t testing.TB, cfg Config) *Token {
	t.Helper()
	tok, err := open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { mustClose(t, tok) })
	return tok
}

func mustClose(t testing.TB, tok *Token) {
	t.Helper()
	if err := tok.Close(context.Background()); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// mustNotOpen checks the error of Open and returns its public text.
func mustNotOpen(t *testing.T, cfg Config, want hsm.Kind, substrings ...string) string {
	t.Helper()
	tok, err := open(t.Context(), cfg)
	if err == nil {
		mustClose(t, tok)
		t.Fatal("the token opens")
	}
	hsmtest.WantKind(t, err, want, "Open")
	var e *hsm.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not an *hsm.Error", err)
	}
	for _, substring := range substrings {
		if !strings.Contains(e.Detail, substring) {
			t.Errorf("the message %q does not contain %q", e.Detail, substring)
		}
	}
	return e.Detail
}

// closedToken returns a token that was opened and closed again, and a spy on its library.
func closedToken(t *testing.T, cfg Config, token tokens.Token) *tokens.Spy {
	t.Helper()
	tok := mustOpen(t, cfg)
	mustClose(t, tok)
	return tokens.SpyOn(t, token)
}

func check(ctx context.Context, tok *Token) error { return tok.Do(ctx, (*Session).HealthCheck) }

// derive generates a session key and derives from it once.
func derive(s *Session) error {
	key, err := s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, healthKeys[DerivationProof])
	if err != nil {
		return err
	}
	_, err = s.DeriveEncryptedValue(key, make([]byte, 16))
	return err
}
