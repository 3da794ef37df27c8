package controllers

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// findSuspect sets suspect. Reasons: KeyStoreNotReady.
func (r *dataKeyReconciler) findSuspect(ctx context.Context, s *dataKeyScope) (err error) {
	s.suspect, err = r.isSuspect(ctx, s.master.Store(), doneAt(s.object))
	return err
}

// doneAt returns when the module generated the data key or opened it last; nil if that is not known.
func doneAt(k *v1alpha1.DataKey) *metav1.Time {
	if k.Status.VerificationTime != nil {
		return k.Status.VerificationTime
	}
	return k.Status.GenerationTime
}

// verify checks that the blob is a data key as the spec describes it, and that one from the Secret has the operator's tag.
func (r *dataKeyReconciler) verify(ctx context.Context, s *dataKeyScope) error {
	err := r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) error {
		if s.suspect && !s.fromSecret {
			return r.verifySuspect(ctx, ops, s)
		}
		return r.verifyIn(ctx, ops, s)
	})
	if err == nil {
		s.verified = r.doneNow()
	}
	return err
}

// verifySuspect says whether the blob, which the operator generated or verified before, opens.
func (r *dataKeyReconciler) verifySuspect(ctx context.Context, ops kms.Service, s *dataKeyScope) error {
	err := ops.VerifyDataKey(ctx, s.source, s.blob, s.request().EncryptionContext)
	if kms.CodeOf(err) != kms.InvalidParameter {
		return err
	}
	damaged := &reconciler.Error{Class: reconciler.Terminal, Reason: v1alpha1.ReasonDataKeyDamaged, Err: err,
		Message: "The data key does not open: the module returned wrong results when it generated or re-encrypted the data key. The operator does not replace a data key " +
			"that may be in use. Create another DataKey, export that one instead, and delete this one with its Secret."}
	if s.previous != nil {
		damaged.Message += fmt.Sprintf(" To keep the data key, set spec.ciphertextBlob of the other DataKey to the blob before the re-encryption: it is in your backups, and in the entry %s of %s, unless someone has changed that.", entryPreviousBlob, s.target)
	}
	return damaged
}

// doneNow returns the time for a status.
func (r *dataKeyReconciler) doneNow() *metav1.Time {
	now := metav1.NewTime(r.clock.Now().UTC())
	return &now
}

func (r *dataKeyReconciler) verifyIn(ctx context.Context, ops kms.Service, s *dataKeyScope) error {
	if s.fromSecret {
		err := ops.CheckBlobTag(ctx, s.assigned(), s.tag)
		given, _ := parseIfGiven(s.object.Spec.CiphertextBlob) // findBlob has parsed it
		switch {
		case kms.CodeOf(err) == kms.InvalidParameter && given.String() == s.blob.String():
			// The spec names the blob, as after the loss of the module with its tags. What the Secret says of it does not count.
			if err := s.set(heldBlob{text: s.blob.String()}); err != nil {
				return err
			}
		case kms.CodeOf(err) == kms.InvalidParameter:
			return s.untagged(err)
		case err != nil:
			return err
		}
	}
	asked := s.request()
	err := r.recorded(keyLine(audit.TakeOverDataKey, s.object, s.key), func(*audit.Record) error {
		if err := ops.VerifyDataKey(ctx, s.source, s.blob, asked.EncryptionContext); err != nil {
			return err
		}
		return asked.CheckBlob(s.blob)
	})
	if kms.CodeOf(err) == kms.InvalidParameter {
		return s.unreadable(err)
	}
	return err
}

// unreadable adds that the Secret with the blob is not replaced.
func (s *dataKeyScope) unreadable(err error) error {
	e := reconciler.From(err)
	if s.object.Spec.CiphertextBlob == "" || s.fromSecret {
		e.Message += fmt.Sprintf(" It is in %s, which is not replaced. To generate a new data key, move the Secret away.", s.target)
	}
	return e
}

// untagged explains what to do about a blob in the Secret that may be another data key's.
func (s *dataKeyScope) untagged(err error) error {
	e := reconciler.From(err)
	e.Message += fmt.Sprintf(" It is in %s. The operator does not use it and does not replace it. To use it, put it into spec.ciphertextBlob, "+
		"which requires the verb export on the %s %s. To make another data key, move the Secret away.", s.target, s.master.Ref().Kind, s.master.Ref().Name)
	return e
}
