package controllers

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// errKeyVersionTaken refuses a key version that another object holds, or adopts first. Not every object that could end this is
// watched, so the operator looks again.
var errKeyVersionTaken = &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonKeyVersionTaken, After: lookAgainInterval, Warn: true,
	Message: "Another object already holds this key version. Delete that object, or this one."}

// findFree finds the primary version of a key in the module, if the object may take it over. Reasons: KeyVersionTaken, and the codes
// of AdoptKey.
func (r *shared) findFree(ctx context.Context, ops keystore.Session, object client.Object, key kms.Key) (hsm.Key, error) {
	asks := keyring.Of(object)
	holder, err := r.keys.Rival(ctx, asks, key.Primary.ID.String(), ops.Token)
	if err != nil {
		return hsm.Key{}, err
	}
	// Mention a holder in another namespace only if the module would give the key to this namespace.
	if holder != nil && holder.Ref().Namespace == object.GetNamespace() {
		return hsm.Key{}, errKeyVersionTaken
	}
	var found hsm.Key
	err = r.recorded(keyLine(audit.AdoptKey, object, key), func(*audit.Record) (err error) {
		found, err = ops.AdoptKey(ctx, key)
		return err
	})
	if err != nil {
		return hsm.Key{}, reconciler.RetryAfter(err, lookAgainInterval) // what is in the module cannot be watched
	}
	// In this order: a key that adopts the version between the two questions is a claimant, or then a rival.
	claimant, err := r.keys.Claimant(ctx, asks, found.Owner.Name, ops.Token)
	if err != nil {
		return hsm.Key{}, err
	}
	holder, err = r.keys.Rival(ctx, asks, key.Primary.ID.String(), ops.Token)
	if err == nil && (holder != nil || claimant != nil) {
		err = errKeyVersionTaken
	}
	return found, err
}

// severalFormerKeys lists the keys that an object could adopt by its name. Only their owner knows which one is the right one. field is
// the field in which the owner names it.
func severalFormerKeys(keys, field string) error {
	return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonSeveralFormerKeys, After: lookAgainInterval, Warn: true, Message: fmt.Sprintf(
		"The module has several former keys with the name of this object, which adopts none of them: %s. A backup of their objects' statuses, and the "+
			"audit log, have the whole list. To adopt a key, delete this object and create it again with %s.", keys, field)}
}
