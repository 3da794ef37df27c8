package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// keepConsent asks anew whether the owner consents to an export that stands. It comes first, so that
// nothing else that is wrong (a recipient or a DataKey that no longer exists) keeps an export alive whose consent was
// withdrawn. Reasons: ForbiddenNoPermission.
func (r *exportedDataKeyReconciler) keepConsent(ctx context.Context, s *exportScope) error {
	status := &s.object.Status
	switch {
	case s.object.Spec.DeliversInStatus():
		if status.ExportedDataKey == "" {
			return nil // nothing was exported
		}
	case status.SecretRef == nil:
		return r.keepConsentFound(ctx, s)
	}
	return r.consentToStanding(ctx, s, status.KeyID, status.KeyVersionID, status.RecipientFingerprint)
}

// keepConsentFound is keepConsent for an export that the status does not know: only its Secret, if there is one, says what
// was exported. Reasons: ForbiddenNoPermission.
func (r *exportedDataKeyReconciler) keepConsentFound(ctx context.Context, s *exportScope) error {
	t, _ := exportTarget(s.object) // its name is right, also with labels that are invalid
	m, err := r.secrets.Look(ctx, t.Ref)
	if err != nil || m == nil {
		return err
	}
	secret, err := r.secrets.Read(ctx, t.Ref)
	if err != nil || secret == nil || !t.Owns(secret) {
		return err
	}
	entry := func(name string) string { return string(secret.Data[name]) }
	return r.consentToStanding(ctx, s, entry(entryKeyID), entry(entryKeyVersionID), entry(entryRecipientFingerprint))
}

// consentToStanding asks the owner of a key version for consent to what was exported of it to a recipient.
func (r *exportedDataKeyReconciler) consentToStanding(ctx context.Context, s *exportScope, keyID, version, recipient string) error {
	is := func(k *keyring.Key) bool { return k.ID() == keyID }
	key, err := r.keys.Holder(ctx, version, is)
	if err == nil && key == nil { // an object that took the key over since
		key, err = r.keys.Holder(ctx, version, func(*keyring.Key) bool { return true })
	}
	if err != nil || key == nil || !key.Holds() {
		return err // the owner no longer exists, and no one else has a say
	}
	return r.consentOrWithdraw(ctx, s, key, recipient)
}

// askConsent sets holder and asks whether its owner consents to the export as it is wanted now.
// Reasons: ForbiddenKeyVersionNotFound, InvalidParameter, ForbiddenNoPermission, RejectedPendingImport.
func (r *exportedDataKeyReconciler) askConsent(ctx context.Context, s *exportScope) error {
	var err error
	if s.holder, err = r.keys.Holder(ctx, s.blob.KeyVersionID().String(), s.mayHold); err != nil {
		return err
	}
	if s.holder == nil {
		return s.noHolder()
	}
	if s.live {
		if s.holder, err = r.readLive(ctx, s.holder); err != nil {
			return err
		}
	}
	if err := held(s.holder); err != nil { // until then it has no say, and exports nothing
		return err
	}
	if s.object.Spec.DryRun { // which changes nothing
		return r.consent(ctx, s.object, s.holder, s.fingerprint)
	}
	return r.consentOrWithdraw(ctx, s, s.holder, s.fingerprint)
}

// readLive reads the holder from the API server, where it may differ from the cache. Reasons: KeyNotReady.
func (r *exportedDataKeyReconciler) readLive(ctx context.Context, cached *keyring.Key) (*keyring.Key, error) {
	live, err := r.keys.Live(ctx, cached)
	if err == nil && live == nil {
		err = reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf(
			"%s no longer exists. The operator exports when it is created again.", cached))
	}
	return live, err
}

// mayHold reports whether a master key may be that of the data key. It must be the one that the DataKey names, or keyRef if the blob
// is inline: config/policy has checked the verb export on that one only.
func (s *exportScope) mayHold(k *keyring.Key) bool {
	return k.Ref() == s.master
}

// noHolder says that the named master key is not the one that the blob was made under, or does not exist. Both read
// the same, so that nothing is told of keys that the blob's user may not see.
func (s *exportScope) noHolder() error {
	if s.object.Spec.KeyRef != nil {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
			"%s does not exist, or is not the key that ciphertextBlob was made under. Name the master key of the data key.", s.master)}
	}
	return &kms.Error{Code: kms.ForbiddenKeyVersionNotFound, Detail: fmt.Sprintf(
		"%s, which the DataKey names, does not exist, or does not have the key version %s of the data key, which is being moved to it. "+
			"See the conditions of the DataKey. The operator exports when the data key is under that key.", s.master, s.blob.KeyVersionID())}
}

// consentOrWithdraw withdraws the export when the owner does not consent to it (any more).
func (r *exportedDataKeyReconciler) consentOrWithdraw(ctx context.Context, s *exportScope, key *keyring.Key, recipient string) error {
	err := r.consent(ctx, s.object, key, recipient)
	if kms.CodeOf(err) != kms.ForbiddenNoPermission {
		return err
	}
	if withdrawErr := r.withdraw(ctx, s); withdrawErr != nil {
		return withdrawErr
	}
	return err
}

// consent asks the owners of the key store and of the key. Reasons: KeyNotReady, KeyStoreNotReady,
// ForbiddenNoPermission, InvalidParameter.
func (r *exportedDataKeyReconciler) consent(ctx context.Context, object *v1alpha1.ExportedDataKey, key *keyring.Key, recipient string) error {
	if err := usable(key, key.Ref().Kind, key.Ref().Name, v1alpha1.ReasonKeyNotReady); err != nil {
		return err
	}
	return r.keys.Consent(ctx, key, keyring.Use{
		Namespace: object.Namespace, RecipientFingerprint: recipient, WrappingAlgorithm: object.Spec.WrappingAlgorithm,
	})
}

// withdraw deletes the Secret if it is the export's, or takes the export out of the status, and records in the status that
// it no longer exists.
func (r *exportedDataKeyReconciler) withdraw(ctx context.Context, s *exportScope) error {
	status := &s.object.Status
	if s.object.Spec.DeliversInStatus() {
		if status.ExportedDataKey != "" {
			line := (&exportScope{object: s.object}).exportLine(audit.WithdrawExport)
			s.withdrawn = &line
		}
	} else if err := r.withdrawSecret(ctx, s.object); err != nil {
		return err
	}
	status.ExportedDataKey, status.SecretRef, status.ExportTime = "", nil, nil
	status.InputsDigest, status.RecipientVersion, status.RequestID, status.Custody = "", "", "", ""
	return nil
}

// withdrawSecret deletes the Secret if it is the export's.
func (r *exportedDataKeyReconciler) withdrawSecret(ctx context.Context, object *v1alpha1.ExportedDataKey) error {
	t, _ := exportTarget(object) // its name is right, also with labels that are invalid
	secret, err := r.secrets.Read(ctx, t.Ref)
	if err != nil || secret == nil || (!t.Owns(secret) && !wroteSecret(object, secret)) {
		return err
	}
	line := (&exportScope{object: object}).exportLine(audit.WithdrawExport)
	return r.recorded(line, func(*audit.Record) error { return r.secrets.Destroy(ctx, t, secret) })
}

// wroteSecret reports whether a Secret is the one that the status says was written, whatever its owner is now. When the
// object is deleted that does not count: who took the Secret over keeps it.
func wroteSecret(object *v1alpha1.ExportedDataKey, secret *corev1.Secret) bool {
	return object.DeletionTimestamp.IsZero() && object.Status.SecretRef != nil && object.Status.SecretRef.UID == string(secret.UID)
}
