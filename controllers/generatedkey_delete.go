package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

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
	return r.finishDeletion(ctx, keyDeletion{
		masterKey: m, what: "all versions of the key", inModule: m.key().Recorded(),
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
	versions := append(key.Former[:len(key.Former):len(key.Former)], key.Primary)
	next := kms.Version{ID: kms.VersionID(key.ID, key.Primary.Number+1)}
	for _, version := range append(versions, next) {
		done, err := r.destroyVersion(ctx, ops, m, key, version.ID, audit.DestroyKey)
		if err != nil {
			return false, err
		}
		destroyed = destroyed || done
	}
	return destroyed, nil
}
