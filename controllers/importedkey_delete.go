package controllers

import (
	"context"

	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
)

// reconcileDelete destroys the key's wrapping pairs, and the key itself where the policy says so.
func (r *importedKeyReconciler) reconcileDelete(ctx context.Context, object *v1alpha1.ImportedKey) (ctrl.Result, error) {
	m := masterKeyOf(object)
	left := ""
	if m.key().Recorded() {
		left = m.versionNames() + " or its import key pairs"
	}
	return r.finishDeletion(ctx, keyDeletion{
		masterKey: m, what: "the import key pairs (and the key, if deletionPolicy is Delete)", left: left,
		cleanUp: func(ctx context.Context, ops keystore.Session) (destroyed bool, err error) {
			key, err := m.key().KMS()
			if err != nil {
				return false, err
			}
			if err := r.destroyPairs(ctx, ops, object, key); err != nil || !m.destroys() {
				return false, err
			}
			if err := r.stillSo(ctx, m); err != nil {
				return false, err
			}
			r.Announce(object, r.noteUse(ctx, m))
			return r.destroyVersions(ctx, ops, m, key, []uuid.UUID{key.Primary.ID}, audit.DestroyKey)
		},
	})
}
