package software

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Remove deletes the wrapping key pairs, the MAC key of import tokens and the root key of a store. If a master key exists, or a
// record that this version does not know, it keeps the root key and returns false. No Module may be open on the storage.
func Remove(ctx context.Context, storage hsm.Storage) (removed bool, err error) {
	records, err := storage.Load(ctx)
	if err != nil {
		return false, storageError(err)
	}
	left := 0
	for name := range records {
		if kind, _, ok := parseName(name); !ok || kind == masterKeyRecord {
			left++
			continue
		}
		if err := storage.Delete(ctx, name); err != nil {
			return false, storageError(err)
		}
	}
	if left > 0 {
		return false, nil
	}
	if err := storage.DeleteRootKey(ctx); err != nil {
		return false, storageError(err)
	}
	return true, nil
}
