package hsmtest

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Provider is a function that implements hsm.Provider.
type Provider func(context.Context, hsm.Config) (hsm.Module, error)

// Open implements hsm.Provider.
func (open Provider) Open(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
	return open(ctx, cfg)
}
