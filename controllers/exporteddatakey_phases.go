package controllers

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// Entries of the Secret.
const (
	entryExportedDataKey      = "exportedDataKey"
	entryKeyID                = "keyId"
	entryKeyVersionID         = "keyVersionId"
	entryWrappingKeySpec      = "wrappingKeySpec"
	entryWrappingAlgorithm    = "wrappingAlgorithm"
	entryRecipientFingerprint = "recipientFingerprint"
)

// Annotations of the Secret: what the status says too, for when the operator ended between the two
// writes.
const (
	annotationInputs    = "keyconvoy.io/inputs-digest"
	annotationData      = "keyconvoy.io/data-digest"
	annotationRequestID = "keyconvoy.io/request-id"
	annotationTime      = "keyconvoy.io/export-time"
)

// exportSecrets contain exports.
var exportSecrets = &secrets.Class{
	Type: v1alpha1.SecretTypeExportedDataKey, Mark: "keyconvoy.io/exported-data-key", Owner: "ExportedDataKey", Entries: []string{
		entryExportedDataKey, entryKeyID, entryKeyVersionID, entryWrappingKeySpec, entryWrappingAlgorithm, entryRecipientFingerprint,
	},
}

// findDataKey sets target, blob, master and context. Reasons: KeyNotReady, TargetNotOwned,
// InvalidParameter.
func (r *exportedDataKeyReconciler) findDataKey(ctx context.Context, s *exportScope) error {
	spec := &s.object.Spec
	err := readable(s.object)
	if err != nil {
		return err
	}
	if !spec.DeliversInStatus() {
		if s.target, err = exportTarget(s.object); err != nil {
			return err
		}
	}
	text, approved := spec.CiphertextBlob, approvedFor(s.object.Status.Approved, s.object.Generation)
	s.object.Status.Approved = approved
	s.context = encryptionContext(spec.EncryptionContext)
	if spec.KeyRef != nil {
		s.master = masterRefOfBlob(s.object)
	}
	if spec.DataKeyRef != nil {
		key := dataKeyOf(s.object)
		dataKey := &v1alpha1.DataKey{}
		err := r.Client.Get(ctx, key, dataKey)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err := usable(dataKey, "DataKey", dataKey.Name, v1alpha1.ReasonKeyNotReady); err != nil {
			return err
		}
		if err != nil || dataKey.Status.CiphertextBlob == "" {
			return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf("DataKey %s does not exist or has no data key yet. See its conditions.", key))
		}
		if err := s.checkTarget(dataKey); err != nil {
			return err
		}
		text, s.context = dataKey.Status.CiphertextBlob, encryptionContext(dataKey.Spec.EncryptionContext)
		s.dataKey = known(dataKey).identity()
		if err := approveDataKey(approved, spec.DataKeyRef.Digest, s.dataKey, key.String()); err != nil {
			return err
		}
		s.master = masterRefOf(dataKey)
	}
	// Before anything is read: a start may meet many exports that are new.
	if !ready(s.object.Status.Conditions) {
		if err := r.opening(ctx, s.master); err != nil {
			return err
		}
	}
	if s.blob, err = kms.ParseBlob(text); err == nil && s.dataKey == "" {
		s.dataKey = blobDigest(s.blob.String())
	}
	return err
}

// checkTarget refuses the Secret in which the DataKey keeps its blob. Both are named after their objects by default, so
// an export that is named as its DataKey would write that one.
func (s *exportScope) checkTarget(dataKey *v1alpha1.DataKey) error {
	if s.object.Spec.DeliversInStatus() {
		return nil
	}
	kept, err := dataKeyTarget(dataKey)
	if err != nil || kept.Ref != s.target.Ref {
		return nil //nolint:nilerr // the DataKey's own conditions say what is wrong with its target
	}
	return reconciler.Stall(v1alpha1.ReasonTargetNotOwned, fmt.Sprintf(
		"The DataKey %s keeps its ciphertextBlob in the %s, so the export cannot be written there. "+
			"Delete this ExportedDataKey and create it with another spec.target.name, or with a name other than %s.",
		dataKey.Name, s.target, s.target.Name()))
}

func exportTarget(object *v1alpha1.ExportedDataKey) (secrets.Target, error) {
	t, err := secrets.NewTarget(exportSecrets, object, secretTarget(object))
	t.Immutable = object.Spec.Target != nil && object.Spec.Target.Immutable
	return t, err
}

func secretTarget(object *v1alpha1.ExportedDataKey) *v1alpha1.SecretTarget {
	if object.Spec.Target == nil {
		return nil
	}
	return &object.Spec.Target.SecretTarget
}

// inputsDigest is the digest of all that an export is made from. The data key is identified by its first blob, so that a
// re-encryption, which does not change it, causes no other export. Earlier releases identified it by its current blob. Their
// digest stays until something else changes.
func (s *exportScope) inputsDigest() string {
	spec := &s.object.Spec
	digest := func(dataKey string, version uuid.UUID) string {
		binding := ciphertext.Bind(version, s.context)
		return secrets.DigestOf(dataKey, string(binding[:]), s.fingerprint, string(spec.WrappingKeySpec), spec.WrappingAlgorithm,
			spec.SM2CiphertextFormat, strconv.FormatBool(s.target.Immutable))
	}
	if former := digest(s.blob.String(), s.blob.KeyVersionID()); s.object.Status.InputsDigest == former {
		return former
	}
	return digest(s.dataKey, uuid.Nil)
}

// compare sets inputs, secret and suspect, and ends the reconcile when nothing is to be exported. While nothing changed it asks the caches only; the Secret is read
// when its version is another than the status says, or the status does not know it yet. Reasons:
// TargetNotOwned, KeyStoreNotReady.
func (r *exportedDataKeyReconciler) compare(ctx context.Context, s *exportScope) error {
	s.inputs = s.inputsDigest()
	if s.object.Spec.DeliversInStatus() {
		return r.compareStatus(ctx, s)
	}
	status := &s.object.Status
	m, err := r.secrets.Look(ctx, s.target.Ref)
	if err != nil {
		return err
	}
	if m == nil && status.SecretRef == nil {
		return nil // the first export
	}
	if status.InputsDigest == s.inputs && s.target.IsAsLeft(m, status.SecretRef) {
		if s.suspect, err = r.isSuspect(ctx, s.holder.Store(), status.ExportTime); err != nil {
			return err
		}
		if !s.suspect {
			s.finish()
			return reconciler.ErrDone
		}
	}
	// The cache may lag behind: only the Secret itself says whether it still exists, or is another one.
	if s.secret, err = r.secrets.Own(ctx, s.target); err != nil || s.secret == nil {
		return err
	}
	if s.suspect || !metav1.IsControlledBy(s.secret, s.object) || !s.holdsExport() {
		return nil
	}
	if s.suspect, err = r.isSuspect(ctx, s.holder.Store(), s.exportTime()); err != nil || s.suspect {
		return err
	}
	if err := r.keepSecret(ctx, s); err != nil {
		return err
	}
	return reconciler.ErrDone
}

// known says whether the status speaks of an export of these inputs.
func (s *exportScope) known() bool {
	return s.object.Status.SecretRef != nil && s.object.Status.InputsDigest == s.inputs
}

// holdsExport says whether the Secret's content is what these inputs were exported to. The status says it;
// while it does not yet, the Secret's own annotations do.
func (s *exportScope) holdsExport() bool {
	content := secrets.Digest(s.target.Content(s.secret))
	if s.known() {
		return content == s.object.Status.SecretRef.Digest
	}
	own := s.secret.Annotations
	return own[annotationInputs] == s.inputs && own[annotationData] == content && isUUID(own[annotationRequestID])
}

// isUUID reports whether a text is a UUID in its canonical form, which fits into a status.
func isUUID(text string) bool {
	id, err := uuid.Parse(text)
	return err == nil && id.String() == text
}

// exportTime returns when the export in the Secret was made, or nil if that is not known.
func (s *exportScope) exportTime() *metav1.Time {
	if s.known() {
		return s.object.Status.ExportTime
	}
	// Anyone who may write Secrets can write it: a time that a status cannot have is left out.
	at, err := time.Parse(time.RFC3339, s.secret.Annotations[annotationTime])
	if err != nil || at.UTC().Year() <= 1970 || at.UTC().Year() > 9999 {
		return nil
	}
	return &metav1.Time{Time: at.UTC()}
}

// keepSecret takes the export that is in the Secret over into a status that does not know it, and repairs
// labels and annotations without exporting anew. Anyone who may write Secrets can write their annotations, so
// the key's identifiers are those that consent was asked for, and custody is not known.
func (r *exportedDataKeyReconciler) keepSecret(ctx context.Context, s *exportScope) error {
	status := &s.object.Status
	if !s.known() {
		own := s.secret.Annotations
		status.KeyID = s.holder.ID()
		status.KeyVersionID = s.blob.KeyVersionID().String()
		status.RequestID = own[annotationRequestID]
		status.Custody = v1alpha1.CustodyUnknown
		status.ExportTime = s.exportTime()
	}
	return r.ensureSecret(ctx, s, s.target.Content(s.secret), status.RequestID, status.ExportTime)
}

// ensureSecret writes the Secret, where it is not as it should be, and sets what the status says of the inputs. What the
// status says of the export is on the Secret too. Reasons: TargetNotOwned, APIServer.
func (r *exportedDataKeyReconciler) ensureSecret(ctx context.Context, s *exportScope, data map[string][]byte, requestID string, at *metav1.Time) error {
	notes := map[string]string{annotationInputs: s.inputs, annotationData: secrets.Digest(data), annotationRequestID: requestID}
	if at != nil {
		notes[annotationTime] = at.UTC().Format(time.RFC3339)
	}
	ref, err := r.secrets.Ensure(ctx, secrets.Desired{Target: s.target, Data: data, Notes: notes}, s.secret)
	if err != nil {
		return err
	}
	s.object.Status.SecretRef = &ref
	s.finish()
	return nil
}

// finish sets what the status says of the inputs.
func (s *exportScope) finish() {
	status := &s.object.Status
	status.InputsDigest = s.inputs
	status.RecipientFingerprint = s.fingerprint
	status.RecipientVersion = s.source
}

// deliver writes the export to its Secret, or sets it in the status, and sets what the status says of it. Reasons: those
// of ensureSecret.
func (r *exportedDataKeyReconciler) deliver(ctx context.Context, s *exportScope, approved approval, exported kms.ExportedDataKey) error {
	if s.object.Spec.DeliversInStatus() {
		s.setExported(exported)
	} else if err := r.writeSecret(ctx, s, approved, exported); err != nil {
		return err
	}
	status := &s.object.Status
	status.KeyID = exported.KeyID.String()
	status.KeyVersionID = exported.KeyVersionID.String()
	status.RequestID = exported.RequestID.String()
	status.Custody = v1alpha1.Custody(exported.Custody)
	status.ExportTime = &s.exported
	return nil
}

// writeSecret writes the Secret. Reasons: those of ensureSecret.
func (r *exportedDataKeyReconciler) writeSecret(ctx context.Context, s *exportScope, approved approval, exported kms.ExportedDataKey) error {
	return r.ensureSecret(ctx, s, map[string][]byte{
		entryExportedDataKey:      exported.ExportedDataKey,
		entryKeyID:                []byte(exported.KeyID.String()),
		entryKeyVersionID:         []byte(exported.KeyVersionID.String()),
		entryWrappingKeySpec:      []byte(s.object.Spec.WrappingKeySpec),
		entryWrappingAlgorithm:    []byte(s.object.Spec.WrappingAlgorithm),
		entryRecipientFingerprint: []byte(approved.fingerprint),
	}, exported.RequestID.String(), &s.exported)
}
