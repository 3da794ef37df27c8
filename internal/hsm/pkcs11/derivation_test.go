//go:build cgo

package pkcs11

import (
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// A variant is a module of tokens.Kinds without the mechanisms of the derivations that it prefers.
type variant struct {
	kind     string
	rejected []uint
	want     derivation
}

var variants = map[string]variant{
	"SoftHSM without derivation": {"SoftHSM", []uint{p11.CKM_AES_ECB_ENCRYPT_DATA}, byEncryption},
	"NSS without derivation":     {"NSS", []uint{p11.CKM_AES_ECB_ENCRYPT_DATA, token.CKMCounterKDF}, byEncryption},
	"NSS with the KDF":           {"NSS", []uint{p11.CKM_AES_ECB_ENCRYPT_DATA}, byKDF},
}

// onEachVariant runs a test on each variant.
func onEachVariant(t *testing.T, test func(t *testing.T, name string, want derivation, tok tokens.Token)) {
	t.Helper()
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			tok := tokens.Kinds[v.kind](t)
			spyLoaded(t, tok).Reject(v.rejected...)
			test(t, name, v.want, tok)
		})
	}
}

// spyLoaded loads the library of a token and returns its spy.
func spyLoaded(t *testing.T, tok tokens.Token) *tokens.Spy {
	t.Helper()
	m, err := Open(t.Context(), configOf(tok))
	if err == nil {
		err = m.Close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return tokens.SpyOn(t, tok)
}

func TestDerivation_variants_keepTheContract(t *testing.T) {
	onEachVariant(t, func(t *testing.T, name string, _ derivation, tok tokens.Token) {
		keepsTheContract(t, configOf(tok), expected(name, hsm.CustodyHost, false))
	})
}
