//go:build cgo

package pkcs11

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// A read-only session cannot change a token, whatever the self-test does. What it finds out must be the same nevertheless.
func TestReadOnly_findsTheSameAndChangesNothing(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		writable := mustOpen(t, configOf(tok))
		want := describe(t, writable)
		if err := writable.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		cfg := configOf(tok)
		cfg.ReadOnly = true
		m := mustOpen(t, cfg)
		// The probes differ: NSS accepts more attributes that restrict a key for session objects than for token objects.
		got := describe(t, m)
		want.Probes, got.Probes = nil, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the self-test found\n%+v; with write access\n%+v", got, want)
		}
		if _, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
			ID: uuid.New(), Owner: uuid.New(), Spec: wrapping.RSA2048, NotAfter: time.Now().Add(time.Hour),
		}); err == nil {
			t.Error("a key pair was created in the token")
		}
		if n := objects(t, m); n != 0 {
			t.Errorf("%d objects", n)
		}
	})
}

// No key of the self-test is a token object, not even for a moment.
func TestReadOnly_selfTestAsksForNoTokenObject(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		cfg := configOf(tok)
		cfg.ReadOnly = true
		m := mustOpen(t, cfg)
		for _, p := range m.can.probes {
			if strings.HasSuffix(p.Failure, "CKR_SESSION_READ_ONLY") {
				t.Errorf("%s: %s", p.Name, p.Failure)
			}
		}
	})
}
