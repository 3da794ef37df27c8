//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// kinds are the modules that every test of behaviour runs on.
var kinds = map[string]func(testing.TB) tokens.Token{"SoftHSM": tokens.SoftHSM, "NSS": tokens.NSS}

// configOf is the configuration for a token that allows everything.
func configOf(token tokens.Token) Config {
	return Config{
		Library: "test", Path: token.Path, Parameters: token.Parameters, Token: TokenSelector{Label: token.Label},
		PIN: redact.Bytes(token.PIN), Custody: hsm.CustodyHost,
	}
}

func mustOpen(t testing.TB, cfg Config) *Module {
	t.Helper()
	m, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}
