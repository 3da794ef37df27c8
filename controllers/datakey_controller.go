package controllers

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=datakeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=datakeys/status,verbs=patch

// dataKeyReconciler generates data keys and keeps their blobs.
//
// A data key that is lost cannot be made again. So its Secret has no owner and outlives the object, a
// blob that is found is taken over, and a blob that cannot be read is never replaced.
type dataKeyReconciler struct {
	*shared
}

// dataKeyScope is what the phases hand on.
type dataKeyScope struct {
	object   *v1alpha1.DataKey
	target   secrets.Target   // set by findKey
	master   *keyring.Key     // set by findKey
	key      kms.Key          // set by findKey
	secret   *corev1.Secret   // set by findBlob; nil if it does not exist; without content where left is set
	blob     kms.Blob         // set by findBlob, generate or reencrypt
	custody  v1alpha1.Custody // set with blob
	accepted string           // set by findBlob: the digest of a later blob that the spec names
	digest   string           // set by findBlob or reencrypt: identifies a data key that was re-encrypted
	tag      string           // set by findBlob or tagBlob: the module's, over blob, object, digest, accepted and custody
	suspect  bool             // set by findSuspect: the module may have returned a wrong result for the blob

	left       bool    // set by findUnchanged: the Secret has the blob that is in the status
	fromSecret bool    // set by findBlob: blob is that of the Secret
	source     kms.Key // set by findBlob with blob: the key that it is under
	previous   []byte  // set by findBlob or reencrypt: the blob before the last re-encryption

	generated, verified *metav1.Time // set by generate, and by findBlob and reencrypt: when the module did that
}

// Reconcile finds the data key or generates it, and keeps it in the Secret and in the status.
func (r *dataKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.DataKey{}
	if err := r.Client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}

	scope := &dataKeyScope{object: object}
	return reconciler.Run(ctx, r.Frame, object, scope, []reconciler.Phase[*dataKeyScope]{
		r.findKey, r.findSuspect, r.findUnchanged, r.findBlob, r.generate, r.reencrypt, r.tagBlob, r.keepBlob, r.markMade,
	}, func(err error) reconciler.Outcome {
		return reconciler.Outcome{
			Err: explained(err), ReadyMessage: "The data key is in status.ciphertextBlob and in its Secret.", Events: noteVerification(scope, err),
		}
	})
}

// noteVerification reports that a data key opens which was generated while the module returned wrong results.
func noteVerification(s *dataKeyScope, err error) []reconciler.Event {
	if !s.suspect || err != nil {
		return nil
	}
	return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "DataKeyVerified", Action: "Verify", Message: "A check found that the module " +
		"returned wrong results when it generated or last opened the data key. The data key opens. If it was generated then, it may be less random than it should be: create another one."}}
}
