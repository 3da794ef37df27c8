package software

import (
	"errors"
	"fmt"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

func storageError(err error) error {
	var e *hsm.Error
	if errors.As(err, &e) {
		return err
	}
	return hsm.Wrap(hsm.Unavailable, err, "the storage of the software key store does not answer")
}

// brokenRecord returns the error of operations on a record that does not open.
func brokenRecord(name string, cause error) *hsm.Error {
	return hsm.Wrap(hsm.Internal, cause, fmt.Sprintf(
		"the record %s of the software key store does not open: %v; restore it from a backup, or delete it if its key is no longer needed", name, cause))
}

// rootKeyLost returns the error for a root key that opens no record. It names one of the records, to help find them.
func rootKeyLost(broken []string) error {
	return hsm.Errorf(hsm.Misconfigured,
		"the root key opens none of the %d records of the software key store, such as %s: restore the root key from a backup, or delete the records if their keys are no longer needed",
		len(broken), broken[0])
}
