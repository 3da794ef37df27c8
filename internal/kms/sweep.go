package kms

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// Sweep destroys all expired wrapping pairs in the module and returns their number. Nothing else would destroy a pair
// whose key no longer exists.
//
// This includes pairs of other clusters. Their import tokens have expired there as well.
func (o Operations) Sweep(ctx context.Context) (destroyed int, err error) {
	pairs, err := o.Module.ListWrappingKeys(ctx)
	if err != nil {
		return 0, FromModule(err)
	}
	now := o.now()
	for _, pair := range pairs {
		if now.Before(pair.NotAfter) {
			continue
		}
		if err := o.Module.DestroyWrappingKey(ctx, pair.ID); err != nil {
			return destroyed, FromModule(err)
		}
		destroyed++
	}
	return destroyed, nil
}

// MasterKeys lists the master keys in the module. Only the caller can know which of them have no holder.
func (o Operations) MasterKeys(ctx context.Context) ([]hsm.Key, error) {
	keys, err := o.Module.ListKeys(ctx)
	return keys, FromModule(err)
}
