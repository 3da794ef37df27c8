package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=exporteddatakeys,verbs=get;list;watch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=exporteddatakeys/status,verbs=patch

// exportedDataKeyReconciler exports data keys into Secrets, or into the status of its objects.
//
// RSA-OAEP and SM2 are randomised: an export is made again when an input changed, never to compare.
type exportedDataKeyReconciler struct {
	*shared
}

// exportScope is what the phases hand on.
type exportScope struct {
	object      *v1alpha1.ExportedDataKey
	began       time.Time             // when the reconcile began
	live        bool                  // set by confirm: ask the API server for the master key's object, not the cache
	target      secrets.Target        // set by findDataKey, unless the export is delivered in the status
	blob        kms.Blob              // set by findDataKey
	dataKey     string                // set by findDataKey: the digest that identifies the data key
	master      keyring.Ref           // set by findDataKey: the master key, as the DataKey or keyRef names it
	context     kms.EncryptionContext // set by findDataKey
	recipient   kms.Recipient         // set by findRecipient, unless the fingerprint is known from before, and by approve
	fingerprint string                // set with recipient: its fingerprint
	source      string                // set with recipient: the version of the object that it was read from
	holder      *keyring.Key          // set by askConsent: the master key
	inputs      string                // set by compare, and by approve: the digest of all inputs
	secret      *corev1.Secret        // set by compare: the Secret to replace
	suspect     bool                  // set by compare: the module may have returned a wrong result for the export that stands
	exported    metav1.Time           // set by exportApproved: when the module returned the export
	withdrawn   *audit.Record         // set by withdraw: the line of an export that the next write removes from the status
}

// Reconcile exports the data key for the recipient when an input or the Secret is other than it was.
func (r *exportedDataKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.ExportedDataKey{}
	if err := r.Client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		// The Secret goes with its owner. A finalizer may keep the owner, but not the export.
		return ctrl.Result{}, r.withdrawFromDeleted(ctx, object)
	}

	was := object.DeepCopy().Status
	scope := &exportScope{object: object, began: r.clock.Now()}
	phases := []reconciler.Phase[*exportScope]{
		r.rememberParent, r.keepConsent, r.findDataKey, r.findRecipient, r.askConsent, r.compare, r.exportApproved,
	}
	if object.Spec.DryRun {
		phases = []reconciler.Phase[*exportScope]{
			r.rememberParent, r.keepConsent, r.findDataKey, r.findRecipient, r.exportApproved,
		}
	}
	return reconciler.Run(ctx, r.Frame, object, scope, phases, func(answer error) reconciler.Outcome {
		err := answer
		if object.Spec.DryRun && !isUnsettled(err) {
			err = kms.DryRun(err)
		}
		object.Status.DryRunResult = dryRunResult(object.Spec.DryRun, err)
		return reconciler.Outcome{
			Err: explained(err), ReadyMessage: readyMessage(object),
			Events: slices.Concat(noteRotation(object, was.RecipientFingerprint), noteRepetition(scope, err)),
			Written: func() {
				r.recordWithdrawal(scope)
				r.recordRefusal(scope, was.Conditions, answer, err)
			},
		}
	})
}

// readyMessage says where the export is.
func readyMessage(object *v1alpha1.ExportedDataKey) string {
	if object.Spec.DeliversInStatus() {
		return "The exported data key is in status.exportedDataKey."
	}
	return "The exported data key is in its Secret."
}

// dryRunResult returns the result of a dry run that ended with an error, or "" if it has no result yet or is not a dry run.
func dryRunResult(isDryRun bool, err error) v1alpha1.DryRunResult {
	code := kms.CodeOf(err)
	switch {
	case !isDryRun:
	case code == kms.DryRunOperationError:
		return v1alpha1.DryRunWouldSucceed
	case code == kms.ValidationError || code == kms.AccessDeniedError:
		return v1alpha1.DryRunWouldFail
	}
	return ""
}

// rememberParent keeps in the status, which only the operator writes, which ClusterExportedDataKey made an export.
// Editors of exports can change its owner references, so what is known stays.
func (r *exportedDataKeyReconciler) rememberParent(_ context.Context, s *exportScope) error {
	rememberParent(s.object)
	return nil
}

func rememberParent(object *v1alpha1.ExportedDataKey) {
	owner := metav1.GetControllerOf(object)
	if object.Status.Parent == "" && owner != nil && owner.Kind == "ClusterExportedDataKey" && owner.Name == object.Name &&
		owner.APIVersion == v1alpha1.GroupVersion.String() && isUUID(string(owner.UID)) {
		object.Status.Parent = string(owner.UID)
	}
}

// noteRotation reports that a data key was exported again for another recipient key.
func noteRotation(object *v1alpha1.ExportedDataKey, was string) []reconciler.Event {
	is := object.Status.RecipientFingerprint
	if was == "" || was == is {
		return nil
	}
	return []reconciler.Event{{Type: corev1.EventTypeNormal, Reason: "RecipientChanged", Action: "Export", Message: fmt.Sprintf(
		"The data key was exported again, for the recipient key %s instead of %s.", is, was)}}
}

// noteRepetition reports that an export was repeated, because the former one may be wrong.
func noteRepetition(s *exportScope, err error) []reconciler.Event {
	if !s.suspect || err != nil {
		return nil
	}
	return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "ExportRepeated", Action: "Export", Message: "The data key was exported again, because a " +
		"check found that the module returned wrong results at the time of the former export. A recipient that could not open it must read it again."}}
}
