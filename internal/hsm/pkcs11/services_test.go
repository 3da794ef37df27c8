//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// served are the modules whose library depends on another process.
var served = map[string]func(testing.TB) (tokens.Token, *tokens.Service){
	"openCryptoki": tokens.OpenCryptoki,
	"p11-kit": func(t testing.TB) (tokens.Token, *tokens.Service) {
		tok, server := tokens.P11Kit(t)
		return tok, server.Service
	},
}

func TestServed_keepTheContract(t *testing.T) {
	for name, newToken := range served {
		t.Run(name, func(t *testing.T) {
			tok, _ := newToken(t)
			keepsTheContract(t, configOf(tok), expected(name, hsm.CustodyHost, false))
		})
	}
}
