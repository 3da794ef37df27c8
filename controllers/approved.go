package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// config/policy checks the verb export when a spec is written, on the names in it. Someone without the verb can delete a
// DataKey or an ImportedKey and create another one with the name. So an object keeps what its names meant when they were
// first found, until its spec is written again.

// blobDigest is the digest of a data key's ciphertextBlob, as sha256sum prints it. That of the first blob identifies the data key.
func blobDigest(blob string) string {
	sum := sha256.Sum256([]byte(blob))
	return hex.EncodeToString(sum[:])
}

// approvedFor returns what was approved for a generation of a spec, which is nothing yet for a new one.
func approvedFor(was *v1alpha1.ApprovedInputs, generation int64) *v1alpha1.ApprovedInputs {
	if was != nil && was.Generation == generation {
		return was
	}
	return &v1alpha1.ApprovedInputs{Generation: generation}
}

// approveDataKey keeps the data key that the spec's name means, and refuses another one. digest is what the spec itself
// requires, or "", and is is the digest of the data key that has the name now. Reasons: InputReplaced.
func approveDataKey(approved *v1alpha1.ApprovedInputs, digest, is, name string) error {
	if digest == "" {
		digest = approved.DataKeyDigest
	}
	if digest != "" && digest != is {
		return replaced("DataKey " + name)
	}
	approved.DataKeyDigest = is
	return nil
}

// approveRecipient keeps the ImportedKey that the spec's name means, and refuses another one. Reasons: InputReplaced.
func approveRecipient(approved *v1alpha1.ApprovedInputs, recipient *v1alpha1.ImportedKey) error {
	if is := string(recipient.UID); approved.RecipientKeyID == "" {
		approved.RecipientKeyID = is
	} else if approved.RecipientKeyID != is {
		return replaced("ImportedKey " + recipient.Name)
	}
	return nil
}

func replaced(what string) error {
	return reconciler.Stall(v1alpha1.ReasonInputReplaced, fmt.Sprintf(
		"%s is not the one that this object was created for: it was replaced by another of the same name. To use it, delete this object and create it again.", what))
}

// approveDataKey keeps the data key of the template, so that every export is of the same one. Reasons: InputReplaced.
func (r *clusterExportReconciler) approveDataKey(ctx context.Context, s *clusterExportScope) error {
	status, ref := &s.object.Status, &s.object.Spec.Template.DataKeyRef
	status.Approved = approvedFor(status.Approved, s.object.Generation)
	key := client.ObjectKey{Namespace: string(ref.Namespace), Name: string(ref.Name)}
	dataKey := &v1alpha1.DataKey{}
	if err := r.Client.Get(ctx, key, dataKey); client.IgnoreNotFound(err) != nil {
		return err
	}
	if dataKey.Status.CiphertextBlob == "" {
		return nil // the exports wait for it
	}
	return approveDataKey(status.Approved, "", known(dataKey).identity(), key.String())
}
