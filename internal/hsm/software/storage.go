package software

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Storage keeps what the store seals. The operator's implementation keeps it in Secrets. It is only
// ever given ciphertext, but for the root key. It is safe for concurrent use.
//
// An error of its own choosing may be an *hsm.Error, which is passed on; any other one becomes
// Unavailable.
type Storage interface {
	// RootKey returns the root key, 32 bytes, which the caller wipes. The implementation makes it on
	// first use and tells the administrator; it had better not make one while sealed records exist.
	RootKey(ctx context.Context) (redact.Bytes, error)
	// Load returns every sealed record by name.
	Load(ctx context.Context) (map[string][]byte, error)
	// Save creates or replaces a record. Names are DNS labels.
	Save(ctx context.Context, name string, sealed []byte) error
	// Delete removes a record; one that does not exist is no error.
	Delete(ctx context.Context, name string) error
}

func storageError(err error) error {
	var e *hsm.Error
	if errors.As(err, &e) {
		return err
	}
	return hsm.Wrap(hsm.Unavailable, err, "the storage of the software key store does not answer")
}

// brokenRecord is what operations on a record that does not open fail with.
func brokenRecord(name string, cause error) *hsm.Error {
	return hsm.Wrap(hsm.Internal, cause, fmt.Sprintf(
		"the record %s of the software key store does not open: %v; restore it from a backup, or delete it to give its key up", name, cause))
}

// rootKeyLost names the first of the records, so that there is something to look for.
func rootKeyLost(broken []string) error {
	return hsm.Errorf(hsm.Misconfigured,
		"the root key opens none of the %d records of the software key store, such as %s: restore the root key from a backup, or delete the records to give their keys up",
		len(broken), broken[0])
}
