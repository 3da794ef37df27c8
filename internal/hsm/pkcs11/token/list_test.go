//go:build cgo

package token

import (
	"slices"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

func TestList_showsTheTokensWithoutALogin(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		mustClose(t, mustOpen(t, configOf(tok)))
		spy := tokens.SpyOn(t, tok)
		spy.AddFlags(p11.CKF_USER_PIN_COUNT_LOW)
		info, err := libraries.List(t.Context(), Config{Path: tok.Path, Parameters: tok.Parameters})
		if err != nil {
			t.Fatal(err)
		}
		if info.Description == "" || info.Manufacturer == "" || info.Cryptoki < "2.40" {
			t.Errorf("the library is %+v", info)
		}
		i := slices.IndexFunc(info.Tokens, func(found hsm.TokenInfo) bool { return found.Label == tok.Label })
		if i < 0 {
			t.Fatalf("token %q is not listed: %+v", tok.Label, info.Tokens)
		}
		found := info.Tokens[i]
		if !found.Initialized || !found.LoginRequired || !found.PINInitialized || !found.PINCountLow || found.PINFinalTry || found.Model == "" || found.Serial == "" {
			t.Errorf("the token is %+v", found)
		}
		if n := spy.Count("C_OpenSession", "C_Login"); n != 0 {
			t.Errorf("List opens sessions or logs in: %d calls", n)
		}
		mustClose(t, mustOpen(t, configOf(tok)))
	})
}

func TestList_fails(t *testing.T) {
	tok := tokens.SoftHSM(t)
	mustClose(t, mustOpen(t, configOf(tok)))
	spy := tokens.SpyOn(t, tok)
	spy.Inject(tokens.Failing(p11.CKR_GENERAL_ERROR, tokens.Always, "C_Initialize"))
	_, err := libraries.List(t.Context(), Config{Path: tok.Path})
	hsmtest.WantKind(t, err, hsm.Unavailable, "List after C_Initialize failed")
	_, err = libraries.List(t.Context(), Config{Path: "/does/not/exist.so"})
	hsmtest.WantKind(t, err, hsm.Misconfigured, "List of a missing library")
}
