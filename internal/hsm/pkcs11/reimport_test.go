//go:build cgo

package pkcs11

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// A token that lost its login shows no private object, so an import finds no key. It must not make a second
// one: whether the pair's handle was known before or has to be searched, too.
func TestImportKey_afterALostLogin_makesNoSecondKey(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		for name, known := range map[string]bool{"the pair is known": true, "the pair is searched": false} {
			t.Run(name, func(t *testing.T) {
				f := newFixture(t, configOf(token))
				forgotten := []objectName{masterName(f.id)}
				if !known {
					forgotten = append(forgotten, privateName(f.pair.ID))
				}
				f.m.forget(f.m.at, forgotten)
				if err := spyOn(t, f.m).direct().Logout(f.m.at.login); err != nil {
					t.Fatal(err)
				}
				if _, err := f.m.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
					t.Errorf("ImportKey: %v", err)
				}
				err := f.m.operate(t.Context(), func(s *session) error {
					handles, err := s.find(masterName(f.id).template())
					if len(handles) != 1 {
						t.Errorf("there are %d keys of one identifier", len(handles))
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
