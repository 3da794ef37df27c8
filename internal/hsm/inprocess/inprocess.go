// Package inprocess opens modules in the process that uses them.
package inprocess

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
)

// Provider implements hsm.Provider and hsm.Lister. It returns the PKCS#11 library of a name, or an *hsm.Error.
type Provider func(name string) (Library, error)

// Library is a PKCS#11 library that the administrator allows.
type Library struct {
	// Path and Parameters are those of pkcs11.Config.
	Path       string
	Parameters string
}

// List implements hsm.Lister.
func (find Provider) List(ctx context.Context, name string) (hsm.LibraryInfo, error) {
	library, err := find(name)
	if err != nil {
		return hsm.LibraryInfo{}, err
	}
	return pkcs11.List(ctx, pkcs11.Config{Path: library.Path, Parameters: library.Parameters})
}

// Open implements hsm.Provider.
func (find Provider) Open(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
	if cfg.Library == "" {
		return software.Open(ctx, software.Config{Storage: cfg.Storage, AllowPKCS1v15Import: cfg.AllowPKCS1v15Import})
	}
	library, err := find(cfg.Library)
	if err != nil {
		return nil, err
	}
	return pkcs11.Open(ctx, pkcs11.Config{Config: cfg, Path: library.Path, Parameters: library.Parameters})
}
