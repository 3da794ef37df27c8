package controllers

import (
	"context"
	"encoding/base64"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// An export that is delivered in the status needs one write, and no Secret that its reader needs permission for. Only the
// operator writes the status, so it is what the status says it is.

// compareStatus is compare for an export in the status. Reasons: KeyStoreNotReady.
func (r *exportedDataKeyReconciler) compareStatus(ctx context.Context, s *exportScope) (err error) {
	status := &s.object.Status
	if status.ExportedDataKey == "" || status.InputsDigest != s.inputs {
		return nil
	}
	if s.suspect, err = r.isSuspect(ctx, s.holder.Store(), status.ExportTime); err != nil || s.suspect {
		return err
	}
	s.finish()
	return reconciler.ErrDone
}

// setExported sets the export in the status.
func (s *exportScope) setExported(exported kms.ExportedDataKey) {
	s.object.Status.ExportedDataKey = base64.StdEncoding.EncodeToString(exported.ExportedDataKey)
	s.finish()
}

// withdrawFromDeleted withdraws the export of an object that is being deleted.
func (r *exportedDataKeyReconciler) withdrawFromDeleted(ctx context.Context, object *v1alpha1.ExportedDataKey) error {
	before, s := object.DeepCopy(), &exportScope{object: object}
	if err := r.withdraw(ctx, s); err != nil || s.withdrawn == nil {
		return err
	}
	if err := reconciler.PatchStatus(ctx, r.Client, before, object); err != nil {
		return client.IgnoreNotFound(err)
	}
	r.recordWithdrawal(s)
	return nil
}
