//go:build cgo

package pkcs11

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// session is a token.Session with the methods that operations share.
type session struct {
	*token.Session
	cfg *Config
	can *capabilities // what the self-test found, or has found so far

	unfinished *unfinishedKeys
}

// do runs op in a session. See token.Token.Do.
func (m *Module) do(ctx context.Context, op func(*session) error) error {
	return m.token.Do(ctx, func(s *token.Session) error {
		return op(&session{Session: s, cfg: &m.cfg, can: &m.can, unfinished: &m.unfinished})
	})
}

// result is do for an op that returns a value.
func result[T any](ctx context.Context, m *Module, op func(*session) (T, error)) (T, error) {
	var value T
	err := m.do(ctx, func(s *session) (err error) {
		value, err = op(s)
		return err
	})
	if err != nil { // op may still run and write value
		var none T
		return none, err
	}
	return value, nil
}
