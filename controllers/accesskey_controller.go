package controllers

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=accesskeys,verbs=get;list;watch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=accesskeys/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=serviceaccounts,verbs=get

// accessKeyReconciler generates access keys for the gateway.
type accessKeyReconciler struct {
	*shared
}

// accessKeyScope is what the phases hand on.
type accessKeyScope struct {
	object *v1alpha1.AccessKey
	target secrets.Target // set by identify
	secret *corev1.Secret // set by findSecret: nil for none
}

// Reconcile generates the secret of an access key, unless its Secret has one.
func (r *accessKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	object := &v1alpha1.AccessKey{}
	if err := r.Client.Get(ctx, req.NamespacedName, object); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !object.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // the gateway rejects it already, and the Secret goes with its owner
	}
	scope := &accessKeyScope{object: object}
	return reconciler.Run(ctx, r.Frame, object, scope, []reconciler.Phase[*accessKeyScope]{
		r.identify, r.bindAccount, r.findSecret, r.ensureSecret,
	}, func(err error) reconciler.Outcome {
		return reconciler.Outcome{Err: accessKeyError(err), ReadyMessage: "The access key is in its Secret.", After: accountInterval}
	})
}
