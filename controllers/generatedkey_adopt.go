package controllers

import (
	"context"
	"fmt"
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
		if spec.ByName() {
			found, err = r.adoptByName(ctx, ops, s)
		} else {
			found, err = r.adoptByVersion(ctx, ops, s)
		}
		return err
	})
	if err != nil || len(found) == 0 {
		return err
	}
	if len(found) > kms.MaxVersions { // labels in a token may say anything
		return reconciler.RetryAfter(&kms.Error{Code: kms.UnsupportedOperation, Detail: fmt.Sprintf(
			"The key in the module has %d versions, and a GeneratedKey has at most %d.", len(found), kms.MaxVersions)}, lookAgainInterval)
	}
	return s.takeOver(found, token)
}

// adoptByName finds all versions of the key in the module that a former object with the same name left, in the order of their
// numbers; none if there is no such key. Reasons: see adopt.
func (r *generatedKeyReconciler) adoptByName(ctx context.Context, ops keystore.Session, s *generatedScope) ([]hsm.Key, error) {
	left, err := ops.KeysByName(ctx, s.key)
	if err != nil || len(left) == 0 {
		return nil, err
	}
	var free []formerKey
	for _, former := range formerKeys(left) {
		if former.continuedBy(s.key.ID) { // the status of this object was lost, and it has this key already
			free = []formerKey{former}
			break
		}
		taken, err := r.taken(ctx, ops, s, former)
		if err != nil {
			return nil, err
		}
		if !taken {
			free = append(free, former)
		}
	}
	switch {
	case len(free) == 0:
		return nil, errKeyVersionTaken
	case len(free) > 1 || free[0].ambiguous():
		return nil, severalFormerKeys(describe(free), "adopt.keyVersionIDs")
	}
	if number := free[0].missing(); number > 0 {
		return nil, reconciler.RetryAfter(&kms.Error{Code: kms.ForbiddenKeyVersionNotFound, Detail: fmt.Sprintf(
			"The module does not have version %d of the key that a former object with this name left. Restore it in the module.", number)}, lookAgainInterval)
	}
	return r.findVersions(ctx, ops, s, free[0].ids())
}

// taken reports whether another object holds a version of a key.
func (r *generatedKeyReconciler) taken(ctx context.Context, ops keystore.Session, s *generatedScope, key formerKey) (bool, error) {
	for _, version := range key {
		other, err := r.keys.Rival(ctx, s.masterKey.key(), version.KeyVersionID.String(), ops.Token)
		if err != nil || other != nil {
			return true, err
		}
	}
	return false, nil
}

// adoptByVersion finds the versions in the module that the spec names, which must be all of one key. It returns them in the order of
// their numbers. Reasons: see adopt.
func (r *generatedKeyReconciler) adoptByVersion(ctx context.Context, ops keystore.Session, s *generatedScope) ([]hsm.Key, error) {
	ids := []uuid.UUID{s.key.Primary.ID}
	for _, version := range s.key.Former {
		ids = append(ids, version.ID)
	}
	found, err := r.findVersions(ctx, ops, s, ids)
	if err != nil {
		return nil, err
	}
	inModule, err := ops.MasterKeys(ctx)
	if err != nil {
		return nil, err
	}
	if refused := refuseVersions(formerKeys(found), formerKeys(inModule)); refused != "" {
		return nil, reconciler.RetryAfter(&kms.Error{Code: kms.InvalidParameter, Parameter: "adopt.keyVersionIDs", Detail: refused}, lookAgainInterval)
	}
	return formerKeys(found)[0], nil
}

// findVersions finds versions in the module that the object may take over.
func (r *generatedKeyReconciler) findVersions(ctx context.Context, ops keystore.Session, s *generatedScope, ids []uuid.UUID) (found []hsm.Key, err error) {
	for _, id := range ids {
		key := s.key
		key.Primary = kms.Version{ID: id}
		version, err := r.findFree(ctx, ops, s.object, key)
		if err != nil {
			return nil, err
		}
		found = append(found, version)
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
			KeyVersionID: version.KeyVersionID.String(), Number: int32(version.Owner.Number), CreateTime: at, //nolint:gosec // at most kms.MaxVersions, because none is missing
			Custody: v1alpha1.CustodyUnknown, Fingerprint: version.Fingerprint.String(), State: state,
		})
		status.PrimaryVersion = version.KeyVersionID.String()
	}
	status.Token, status.KeyState = token, v1alpha1.KeyState(kms.StateEnabled)
	// The key of the former object was rotated for an annotation that was restored with this one.
	status.RotatedFor = annotationValue(s.object, v1alpha1.AnnotationRotate)
	s.notes = append(s.notes, reconciler.Event{Type: corev1.EventTypeNormal, Reason: "KeyAdopted", Action: "Adopt", Message: fmt.Sprintf(
		"This object adopted %d key versions, of which %s is the primary one, and which were in the module of %s.", len(found), status.PrimaryVersion, s.storeName())})
	s.key, err = s.masterKey.key().KMS()
	return err
}
