package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// identify sets key, and the status fields that follow from the object alone. Reasons: InvalidParameter.
func (r *generatedKeyReconciler) identify(_ context.Context, s *generatedScope) (err error) {
	if err := readable(s.object); err != nil {
		return err
	}
	if s.key, err = s.masterKey.key().KMS(); err != nil {
		return err
	}
	s.object.Status.KeyID = s.key.ID.String()
	s.object.Status.Origin = string(s.key.Origin)
	return nil
}

// generate has the module generate the first version. A key that is to be destroyed is not generated first. Reasons: those of
// operations, and the codes of CreateKeyVersion.
func (r *generatedKeyReconciler) generate(ctx context.Context, s *generatedScope) error {
	if s.generated() || s.key.State != kms.StateEnabled || s.desired == v1alpha1.DesiredPendingDeletion {
		return nil
	}
	// A new key needs no rotation, whatever its annotation says.
	s.object.Status.RotatedFor = annotationValue(s.object, v1alpha1.AnnotationRotate)
	return r.createVersion(ctx, s)
}

func (s *generatedScope) generated() bool { return len(s.object.Status.Versions) > 0 }

// createVersion generates the key's next version, or finds it in the module, and makes it the primary one.
func (r *generatedKeyReconciler) createVersion(ctx context.Context, s *generatedScope) error {
	var made kms.Version
	var token string
	err := r.stores.Use(ctx, s.object.Namespace, s.object.Spec.KeyStoreRef, func(ops keystore.Session) error {
		token = ops.Token
		return r.recorded(line(audit.CreateKeyVersion, s.object), func(line *audit.Record) (err error) {
			line.KeyID = s.key.ID.String()
			if made, err = ops.CreateKeyVersion(ctx, s.key); err == nil {
				line.KeyVersionID, line.Custody = made.ID.String(), made.Custody
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	status := &s.object.Status
	for i := range status.Versions {
		status.Versions[i].State = v1alpha1.VersionActive
	}
	status.Versions = append(status.Versions, v1alpha1.KeyVersion{
		KeyVersionID: made.ID.String(), Number: int32(made.Number), Custody: v1alpha1.Custody(made.Custody), //nolint:gosec // bounded by kms.MaxVersions
		CreateTime: metav1.NewTime(s.now.UTC().Truncate(time.Second)), Fingerprint: made.Fingerprint.String(), State: v1alpha1.VersionPrimary,
	})
	status.PrimaryVersion, status.Token = made.ID.String(), token
	if status.KeyState == "" {
		status.KeyState = v1alpha1.KeyState(s.key.State)
	}
	s.key, err = s.masterKey.key().KMS()
	return err
}

// followClock destroys all versions when the window of a pending deletion is over. Reasons: those of operations.
func (r *generatedKeyReconciler) followClock(ctx context.Context, s *generatedScope) error {
	if !s.windowOver() {
		return nil
	}
	if err := r.stillSo(ctx, s.masterKey); err != nil {
		return err
	}
	err := r.stores.CleanUp(ctx, s.masterKey.key().Store(), func(ops keystore.Session) error {
		_, err := r.destroyAll(ctx, ops, s.masterKey, s.key)
		return err
	})
	if err != nil {
		return err
	}
	s.object.Status.DeletionTime = nil
	return s.happen(kms.EventWindowOver)
}

// followDesire is that of all master keys.
func (r *generatedKeyReconciler) followDesire(ctx context.Context, s *generatedScope) error {
	return r.shared.followDesire(ctx, &s.keyScope)
}

// rotate makes a new version the primary one, when the owner asks for it or the interval is over. It sets the time of the next
// rotation. A key that is not Enabled is not rotated. It is rotated when it is Enabled again. Reasons: those of
// operations, and the codes of CreateKeyVersion.
func (r *generatedKeyReconciler) rotate(ctx context.Context, s *generatedScope) error {
	status := &s.object.Status
	defer func() { status.NextRotationTime = nextRotation(s.object) }()
	if !rotates(s.object, s.now) {
		return nil
	}
	if err := r.createVersion(ctx, s); err != nil {
		return err
	}
	status.RotatedFor = annotationValue(s.object, v1alpha1.AnnotationRotate)
	s.notes = append(s.notes, reconciler.Event{Type: corev1.EventTypeNormal, Reason: "KeyRotated", Action: "Rotate", Message: fmt.Sprintf(
		"Version %d is the primary version now. Data keys are made under it.", s.key.Primary.Number)})
	return nil
}

// rotates decides whether a key is rotated now.
func rotates(object *v1alpha1.GeneratedKey, now time.Time) bool {
	status := &object.Status
	if kms.KeyState(status.KeyState) != kms.StateEnabled || len(status.Versions) == 0 {
		return false
	}
	asked := annotationValue(object, v1alpha1.AnnotationRotate)
	return asked != "" && asked != status.RotatedFor || ended(nextRotation(object), now)
}

// nextRotation returns when a key is rotated automatically, nil for never. It follows from the time at which the primary version
// was made. So a clock that is set back makes the next rotation late, and one that is set forward makes it early, once.
func nextRotation(object *v1alpha1.GeneratedKey) *metav1.Time {
	interval, status := object.Spec.GetRotationInterval(), &object.Status
	if interval == 0 || kms.KeyState(status.KeyState) != kms.StateEnabled {
		return nil
	}
	for _, version := range status.Versions {
		if version.State == v1alpha1.VersionPrimary {
			return &metav1.Time{Time: version.CreateTime.Add(interval)}
		}
	}
	return nil
}

// explainState reports what a key that is not usable is waiting for. Reasons: ForbiddenKeyNotFound.
func (r *generatedKeyReconciler) explainState(_ context.Context, s *generatedScope) error {
	if s.key.State == kms.StateDeleted {
		return errDeleted
	}
	return nil
}
