//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// A token that lost its login shows no private objects, so an import finds no key. It must not create a second one, whether the
// handle of the wrapping key pair is cached or must be searched.
func TestImportKey_loginLost_createsNoSecondKey(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		for name, cached := range map[string]bool{"the pair is cached": true, "the pair is searched": false} {
			t.Run(name, func(t *testing.T) {
				f := newFixture(t, configOf(tok))
				forgotten := []token.ObjectName{masterName(f.id)}
				if !cached {
					forgotten = append(forgotten, privateName(f.pair.ID))
				}
				err := f.m.do(t.Context(), func(s *session) error { s.Forget(forgotten...); return nil })
				if err != nil {
					t.Fatal(err)
				}
				if err := tokens.SpyOn(t, tok).LogoutDirectly(); err != nil {
					t.Fatal(err)
				}
				if _, err := f.m.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
					t.Errorf("ImportKey: %v", err)
				}
				err = f.m.do(t.Context(), func(s *session) error {
					handles, err := s.FindObjects(masterName(f.id).Template())
					if len(handles) != 1 {
						t.Errorf("%d keys with the same identifier", len(handles))
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	})
}
