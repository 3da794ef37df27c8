package controllers

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// adopt takes the versions of a key over that are in the module already, once. An object that adopts by name, and finds none, is
// a new key from then on. Reasons: KeyVersionTaken, SeveralFormerKeys, ForbiddenKeyVersionNotFound, InvalidParameter, and those of
// operations.
func (r *generatedKeyReconciler) adopt(ctx context.Context, s *generatedScope) error {
	spec := s.object.Spec.Adopt
	if spec == nil || s.generated() || s.key.State == kms.StateDeleted {
		return nil
	}
	var found []hsm.Key
	var token string
	err := r.stores.Use(ctx, s.object.Namespace, s.object.Spec.KeyStoreRef, func(ops keystore.Session) (err error) {
		token = ops.Token
		ids := versionIDs(s.key)
		if spec.ByName() {
			if ids, err = r.leftByName(ctx, ops, s); err != nil {
				return err
			}
		}
		found, err = r.adoptVersions(ctx, ops, s, ids)
		return err
	})
	if err != nil || len(found) == 0 {
		return err
	}
	return s.takeOver(found, token)
}

// versionIDs are the versions of a key.
func versionIDs(key kms.Key) []uuid.UUID {
	ids := []uuid.UUID{key.Primary.ID}
	for _, version := range key.Former {
		ids = append(ids, version.ID)
	}
	return ids
}

// leftByName returns the versions in the module that a former object with the same name left, and that no other object holds.
func (r *generatedKeyReconciler) leftByName(ctx context.Context, ops keystore.Session, s *generatedScope) ([]uuid.UUID, error) {
	left, err := ops.KeysByName(ctx, s.key)
	if err != nil {
		return nil, err
	}
	var free []hsm.Key
	for _, found := range left {
		other, err := r.keys.Rival(ctx, s.masterKey.key(), found.KeyVersionID.String(), ops.Token)
		if err != nil {
			return nil, err
		}
		if other == nil {
			free = append(free, found)
		}
	}
	if len(free) == 0 && len(left) > 0 {
		return nil, reconciler.RetryAfter(errKeyVersionTaken, lookAgainInterval)
	}
	ids := make([]uuid.UUID, len(free))
	numbers := map[int]bool{}
	for i, found := range free {
		ids[i], numbers[found.Owner.Number] = found.KeyVersionID, true
	}
	if len(numbers) < len(ids) { // two versions of the same number belong to two keys
		return nil, severalFormerKeys(ids, "adopt.keyVersionIDs")
	}
	return ids, nil
}

// adoptVersions finds versions in the module that this object may adopt. Reasons: see adopt.
func (r *generatedKeyReconciler) adoptVersions(ctx context.Context, ops keystore.Session, s *generatedScope, ids []uuid.UUID) (found []hsm.Key, err error) {
	for _, id := range ids {
		holder, err := r.keys.Rival(ctx, s.masterKey.key(), id.String(), ops.Token)
		if err != nil {
			return nil, err
		}
		// Mention a holder in another namespace only if the module would give the key to this namespace.
		if holder != nil && holder.Ref().Namespace == s.object.Namespace {
			return nil, reconciler.RetryAfter(errKeyVersionTaken, lookAgainInterval)
		}
		key := s.key
		key.Primary = kms.Version{ID: id}
		version, err := r.findAdopted(ctx, ops, s.object, key)
		if err != nil {
			return nil, reconciler.RetryAfter(err, lookAgainInterval) // what is in the module cannot be watched
		}
		claimant, err := r.keys.Claimant(ctx, s.masterKey.key(), version.Owner.Name, ops.Token)
		if err != nil {
			return nil, err
		}
		if holder != nil || claimant != nil {
			return nil, reconciler.RetryAfter(errKeyVersionTaken, lookAgainInterval)
		}
		found = append(found, version)
	}
	slices.SortFunc(found, func(a, b hsm.Key) int { return cmp.Compare(a.Owner.Number, b.Owner.Number) })
	for i := range found[:max(len(found)-1, 0)] {
		if found[i].Owner.Number == found[i+1].Owner.Number {
			return nil, &kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.keyVersionIDs", Detail: fmt.Sprintf(
				"%s and %s are versions of different keys. Name the versions of one key.", found[i].KeyVersionID, found[i+1].KeyVersionID)}
		}
	}
	return found, nil
}

// takeOver records in the status that the object holds versions that were found in a token, in the order of their numbers. The
// last one is the primary version.
func (s *generatedScope) takeOver(found []hsm.Key, token string) (err error) {
	status := &s.object.Status
	at := metav1.NewTime(s.now.UTC().Truncate(time.Second))
	for i, version := range found {
		state := v1alpha1.VersionActive
		if i == len(found)-1 {
			state = v1alpha1.VersionPrimary
		}
		status.Versions = append(status.Versions, v1alpha1.KeyVersion{
			KeyVersionID: version.KeyVersionID.String(), Number: int32(version.Owner.Number), CreateTime: at, //nolint:gosec // bounded by kms.MaxVersions
			Custody: v1alpha1.CustodyUnknown, Fingerprint: version.Fingerprint.String(), State: state,
		})
		status.PrimaryVersion = version.KeyVersionID.String()
	}
	status.Token, status.KeyState = token, v1alpha1.KeyState(kms.StateEnabled)
	// An annotation that was restored asks for what was done to the former object.
	status.RotatedFor = annotationValue(s.object, v1alpha1.AnnotationRotate)
	s.notes = append(s.notes, reconciler.Event{Type: corev1.EventTypeNormal, Reason: "KeyAdopted", Action: "Adopt", Message: fmt.Sprintf(
		"This object adopted %d key versions, of which %s is the primary one, and which were in the module of %s.", len(found), status.PrimaryVersion, s.storeName())})
	s.key, err = s.masterKey.key().KMS()
	return err
}
