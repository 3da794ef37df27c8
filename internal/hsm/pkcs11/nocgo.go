//go:build !cgo

package pkcs11

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Module implements hsm.Module. None can be opened without cgo.
type Module struct{ hsm.Module }

var errNoCgo = hsm.Errorf(hsm.NotSupported, "this keyconvoy was built without cgo; PKCS#11 modules need a cgo build")

// Open fails: shared libraries need cgo.
func Open(context.Context, Config) (*Module, error) { return nil, errNoCgo }

// List fails as Open does.
func List(context.Context, Config) (hsm.LibraryInfo, error) {
	return hsm.LibraryInfo{}, errNoCgo
}
