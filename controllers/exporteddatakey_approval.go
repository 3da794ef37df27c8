package controllers

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// approvalLifetime is how old an approval may be when the export is written.
const approvalLifetime = 5 * time.Second

// approval is what the owners of the master key and of its key store consented to: one data key for one
// recipient key. An export uses these values and no others, so it cannot go to a key that was not approved.
// Only approve makes an approval.
type approval struct {
	holder      *keyring.Key // the master key's object, as it was when it consented
	key         kms.Key
	blob        kms.Blob
	context     kms.EncryptionContext
	recipient   kms.Recipient
	fingerprint string // the recipient's
	inputs      string // the digest of all inputs
	at          time.Time
}

// exportApproved exports what is approved now, and writes it. Reasons: those of approve, export and deliver.
func (r *exportedDataKeyReconciler) exportApproved(ctx context.Context, s *exportScope) error {
	approved, err := r.approve(ctx, s)
	if err != nil {
		return err
	}
	exported, err := r.export(ctx, s, approved)
	if err != nil {
		return err
	}
	s.exported = metav1.NewTime(r.clock.Now().UTC())
	if approved, err = r.confirm(ctx, s, approved); err != nil {
		return err
	}
	return r.deliver(ctx, s, approved, exported)
}

// approve reads the recipient's key live, unless this reconcile has read it already, and asks for consent to that
// key. Reasons: those of findRecipient and askConsent, and of ExportDataKey's states.
func (r *exportedDataKeyReconciler) approve(ctx context.Context, s *exportScope) (approval, error) {
	at := s.began
	if s.recipient.IsZero() {
		at = r.clock.Now()
		if err := r.readRecipient(ctx, s); err != nil {
			return approval{}, err
		}
	}
	if s.recipient.IsZero() {
		return approval{}, reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf(
			"The ImportedKey %s no longer publishes import parameters. Request new ones with its annotation %s.",
			s.object.Spec.PublicKey.ImportedKeyRef.Name, v1alpha1.AnnotationRenewImportParameters))
	}
	if err := r.askConsent(ctx, s); err != nil {
		return approval{}, err
	}
	key, err := s.holder.KMS()
	if err != nil {
		return approval{}, err
	}
	// An approval is renewed without another call into the module, which would decide this.
	if err := kms.Permit(kms.OpExportDataKey, key.Origin, key.StateAt(r.clock.Now())); err != nil {
		return approval{}, err
	}
	s.inputs = s.inputsDigest()
	return approval{
		holder: s.holder, key: key, blob: s.blob, context: s.context,
		recipient: s.recipient, fingerprint: s.fingerprint, inputs: s.inputs, at: at,
	}, nil
}

// confirm returns an approval that may be acted on now: the same one, or, where that is too old or its owner has
// changed since, a new one for the same inputs. Ages are measured by the monotonic clock, so a process that was
// stopped meanwhile does not take an old approval for a new one. Reasons: those of approve, KeyNotReady.
func (r *exportedDataKeyReconciler) confirm(ctx context.Context, s *exportScope, approved approval) (approval, error) {
	unchanged, err := r.keys.Unchanged(ctx, approved.holder)
	if err != nil {
		return approval{}, err
	}
	if unchanged && r.clock.Since(approved.at) < approvalLifetime {
		return approved, nil
	}
	s.recipient, s.live = kms.Recipient{}, true
	again, err := r.approve(ctx, s)
	if err != nil {
		return approval{}, err
	}
	if again.inputs != approved.inputs {
		superseded := reconciler.Wait(v1alpha1.ReasonKeyNotReady, "The inputs changed while the data key was exported. The operator exports it again.")
		superseded.After = time.Second
		return approval{}, superseded
	}
	return again, nil
}

// export calls ExportDataKey. Reasons: those of operations, and the codes of ExportDataKey.
func (r *exportedDataKeyReconciler) export(ctx context.Context, s *exportScope, approved approval) (exported kms.ExportedDataKey, err error) {
	spec := &s.object.Spec
	request := kms.ExportDataKeyRequest{
		Key:                 approved.key,
		CiphertextBlob:      approved.blob,
		EncryptionContext:   approved.context,
		Recipient:           approved.recipient,
		SM2CiphertextFormat: wrapping.SM2Format(spec.SM2CiphertextFormat),
		DryRun:              spec.DryRun,
	}
	err = r.stores.Use(ctx, approved.holder.Ref().Namespace, approved.holder.StoreRef(), func(ops keystore.Session) error {
		return r.recorded(s.exportLine(audit.ExportDataKey), func(line *audit.Record) (err error) {
			exported, err = ops.ExportDataKey(ctx, request)
			if line.Custody = exported.Custody; err == nil {
				line.RequestID = exported.RequestID.String()
			}
			return err
		})
	})
	return exported, err
}
