//go:build cgo && linux

package process_test

import (
	"errors"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// capabilitiesHere returns what the self-test finds in this process.
func capabilitiesHere(t testing.TB, tok tokens.Token) []hsm.Capability {
	t.Helper()
	m, err := here(tok).Open(t.Context(), configOf("real", tok))
	if err != nil {
		t.Fatal(err)
	}
	described, err := m.Describe(t.Context())
	if err := errors.Join(err, m.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	return described.Capabilities
}

func TestModule_keepsTheContract(t *testing.T) {
	for kind, newToken := range tokens.Kinds {
		t.Run(kind, func(t *testing.T) {
			tok := newToken(t)
			p := newProvider(t, libraries{"real": libraryOf(tok)})
			hsmtest.Run(t, hsmtest.Target{
				Open: func(t testing.TB) hsm.Module {
					m, err := p.Open(t.Context(), configOf("real", tok))
					if err != nil {
						t.Fatal(err)
					}
					return m
				},
				Capabilities: capabilitiesHere(t, tok),
			})
		})
	}
}
