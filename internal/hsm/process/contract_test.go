//go:build cgo && linux

package process_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

func TestModule_keepsTheContract(t *testing.T) {
	for kind, newToken := range tokens.Kinds {
		t.Run(kind, func(t *testing.T) {
			tok := newToken(t)
			p := newProvider(t, libraries{"real": libraryOf(tok)})
			described, err := mustOpen(t, p, configOf("real", tok)).Describe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			hsmtest.Run(t, hsmtest.Target{
				Open: func(t testing.TB) hsm.Module {
					m, err := p.Open(t.Context(), configOf("real", tok))
					if err != nil {
						t.Fatal(err)
					}
					return m
				},
				Capabilities: described.Capabilities,
			})
		})
	}
}
