package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// reconcileDelete destroys all versions of the key where the policy says so.
func (r *generatedKeyReconciler) reconcileDelete(ctx context.Context, object *v1alpha1.GeneratedKey) (ctrl.Result, error) {
	m := masterKeyOf(object)
	if controllerutil.ContainsFinalizer(object, finalizerKey) && !m.destroys() {
		return ctrl.Result{}, r.removeFinalizer(ctx, object)
	}
	left := ""
	if m.key().Recorded() {
		left = m.versionNames()
	}
	return r.finishDeletion(ctx, keyDeletion{
		masterKey: m, what: "all versions of the key", left: left,
		cleanUp: func(ctx context.Context, ops keystore.Session) (destroyed bool, err error) {
			key, err := m.key().KMS()
			if err != nil {
				return false, err
			}
			if err := r.stillSo(ctx, m); err != nil {
				return false, err
			}
			r.Announce(object, r.noteUse(ctx, m))
			return r.destroyAll(ctx, ops, m, key)
		},
	})
}

// destroyAll destroys all versions of a key, and the next one, which may be in the module while the status does not know it yet. It
// begins with the oldest, so that new data keys are refused last.
func (r *generatedKeyReconciler) destroyAll(ctx context.Context, ops keystore.Session, m masterKey, key kms.Key) (destroyed bool, err error) {
	var versions []uuid.UUID
	for _, version := range key.Former {
		versions = append(versions, version.ID)
	}
	versions = append(versions, key.Primary.ID, kms.VersionID(key.ID, key.Primary.Number+1))
	return r.destroyVersions(ctx, ops, m, key, versions, audit.DestroyKey)
}
