package controllers

import (
	"context"
	"reflect"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// line begins the audit log's line of an operation that an object asks for.
func line(operation audit.Operation, o client.Object) audit.Record {
	return audit.Record{Operation: operation, Object: audit.Object{
		Kind: reflect.TypeOf(o).Elem().Name(), Namespace: o.GetNamespace(), Name: o.GetName(), UID: string(o.GetUID()),
	}}
}

// keyLine is line, of an operation on a master key.
func keyLine(operation audit.Operation, o client.Object, key kms.Key) audit.Record {
	r := line(operation, o)
	r.KeyID, r.KeyVersionID = key.ID.String(), key.Primary.ID.String()
	return r
}

// recorded runs an operation, which may fill in what it finds, and writes its line. There is none for what the state of the
// key does not permit: nothing was done, and an object that waits for another state is reconciled again and again.
func (s *shared) recorded(r audit.Record, operate func(*audit.Record) error) error {
	r.Time = s.clock.Now()
	r.RequestID = uuid.NewString()
	err := operate(&r)
	switch kms.CodeOf(err) {
	case kms.RejectedPendingImport, kms.RejectedDisabled, kms.RejectedPendingDeletion, kms.RejectedUnavailable:
		return err
	}
	r.Outcome = audit.OutcomeOf(err)
	r.DurationMillis = s.clock.Since(r.Time).Milliseconds()
	s.audit.Write(r)
	return err
}

// use runs an operation on an ImportedKey's key in its module, and writes its line. Reasons: KeyStoreNotFound,
// KeyStoreNotReady, ForbiddenNoPermission, and those of operate.
func (s *shared) use(ctx context.Context, object *v1alpha1.ImportedKey, line audit.Record, operate func(keystore.Session, *audit.Record) error) error {
	return s.stores.Use(ctx, object.Namespace, object.Spec.KeyStoreRef, func(ops keystore.Session) error {
		return s.recorded(line, func(line *audit.Record) error { return operate(ops, line) })
	})
}

// exportLine begins the line of an export, as far as the export's object and the phases so far say.
func (s *exportScope) exportLine(operation audit.Operation) audit.Record {
	r := line(operation, s.object)
	r.KeyID, r.KeyVersionID = s.object.Status.KeyID, s.object.Status.KeyVersionID
	if !s.blob.IsZero() {
		r.KeyID, r.KeyVersionID = "", s.blob.KeyVersionID().String()
	}
	if s.holder != nil {
		r.KeyID = s.holder.ID()
	}
	if r.RecipientFingerprint = s.fingerprint; r.RecipientFingerprint == "" { // it was not read again
		r.RecipientFingerprint = s.object.Status.RecipientFingerprint
	}
	r.Algorithm = wrapping.Algorithm(s.object.Spec.WrappingAlgorithm)
	return r
}

// recordWithdrawal writes the line of an export that was taken out of the status, once the status is written.
func (r *exportedDataKeyReconciler) recordWithdrawal(s *exportScope) {
	if s.withdrawn != nil {
		_ = r.recorded(*s.withdrawn, func(*audit.Record) error { return nil })
	}
}

// recordRefusal writes the line of an export to which an owner does not consent, unless the status said the same
// before. refused is the owner's answer, err the end of the reconcile, which is another for a dry run.
func (r *exportedDataKeyReconciler) recordRefusal(s *exportScope, before []metav1.Condition, refused, err error) {
	if kms.CodeOf(refused) != kms.ForbiddenNoPermission {
		return
	}
	was := meta.FindStatusCondition(before, v1alpha1.ConditionReady)
	is := meta.FindStatusCondition(s.object.Status.Conditions, v1alpha1.ConditionReady)
	if was != nil && was.Reason == is.Reason && was.Message == is.Message && was.ObservedGeneration == is.ObservedGeneration {
		return
	}
	_ = r.recorded(s.exportLine(audit.ExportDataKey), func(*audit.Record) error { return err })
}
