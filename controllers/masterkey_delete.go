package controllers

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// errStoreGone reports that there is no key store left in which anything could be cleaned up.
var errStoreGone = errors.New("the key store no longer exists")

// keyDeletion is how the deletion of a master key's object cleans up.
type keyDeletion struct {
	masterKey

	// what names what is or may be in the module, for messages.
	what string
	// left names what stays in the module if its key store no longer exists; "" for nothing.
	left string
	// cleanUp destroys it, and reports whether it destroyed the key.
	cleanUp func(ctx context.Context, ops keystore.Session) (destroyed bool, err error)
}

// finishDeletion cleans up and lets an object go. It can always finish: where the key store no longer exists, it leaves the
// module as it is and says so.
func (r *shared) finishDeletion(ctx context.Context, d keyDeletion) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(d, finalizerKey) {
		return ctrl.Result{}, nil
	}
	phaseCtx, cancel := reconciler.PhaseContext(ctx)
	defer cancel()
	destroyed, err := r.cleanUp(phaseCtx, d)
	if err != nil && !errors.Is(err, errStoreGone) {
		blocked := reconciler.RetryAfter(err, lookAgainInterval)
		blocked.Message = fmt.Sprintf("Deletion is waiting for the key store, because %s must be destroyed first. ", d.what) + blocked.Message
		before := d.DeepCopyObject().(reconciler.Object)
		return r.Finish(ctx, before, d.Object, reconciler.Outcome{Err: blocked, After: lookAgainInterval})
	}
	left := err != nil && d.left != ""
	if left {
		if patchErr := r.sayLeft(ctx, d); patchErr != nil {
			return ctrl.Result{}, patchErr
		}
	}
	if patchErr := r.removeFinalizer(ctx, d.Object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	if left {
		r.leftInModule.Inc()
		log.FromContext(ctx).Info("Left a key or its import key pairs in a module that can no longer be reached",
			"keyStore", d.storeName(), "keyVersionIDs", d.key().Versions(), "token", *d.token)
		r.Recorder.Eventf(d.Object, nil, corev1.EventTypeWarning, "LeftInModule", "Delete",
			"%s no longer exists, so the operator left %s in the module.", d.storeName(), d.left)
	} else if destroyed {
		r.Recorder.Eventf(d.Object, nil, corev1.EventTypeNormal, "KeyDestroyed", "Delete",
			"The operator destroyed the key in its module: %s.", d.versionNames())
	}
	return ctrl.Result{}, nil
}

// versionNames names the versions of the key that are or were in the module, for messages.
func (m masterKey) versionNames() string {
	versions := m.key().Versions() // none of an object that is not valid, which has nothing in the module
	if len(versions) == 1 {
		return "key version " + versions[0]
	}
	return fmt.Sprintf("%d key versions, %s", len(versions), listed(versions))
}

// sayLeft says in the status what stays in the module, before the object goes: a namespace that is being deleted takes
// no events.
func (r *shared) sayLeft(ctx context.Context, d keyDeletion) error {
	left := reconciler.Stall(v1alpha1.ReasonLeftInModule, fmt.Sprintf(
		"%s or its PIN no longer exists, so the operator leaves %s in the module. To destroy what is left, "+
			"create a key store for the token again and adopt the key with deletionPolicy Delete.",
		d.storeName(), d.left))
	before := d.DeepCopyObject().(reconciler.Object)
	d.SetObservedGeneration(d.GetGeneration())
	d.SetConditions(reconciler.Summarize(d.GetConditions(), d.GetGeneration(), left, ""))
	return client.IgnoreNotFound(reconciler.PatchStatus(ctx, r.Client, before, d.Object))
}

// cleanUp reports whether it destroyed the key. It needs no consent: a namespace that may no longer use a key store may still take
// out what it put in.
func (r *shared) cleanUp(ctx context.Context, d keyDeletion) (destroyed bool, err error) {
	store, err := keystore.Get(ctx, r.Client, d.key().Store())
	if apierrors.IsNotFound(err) {
		return false, errStoreGone
	}
	if err != nil {
		return false, err
	}
	if lost, err := r.outOfReach(ctx, store); err != nil {
		return false, err
	} else if lost {
		return false, errStoreGone
	}
	err = r.stores.CleanUp(ctx, store.ID, func(ops keystore.Session) (err error) {
		destroyed, err = d.cleanUp(ctx, ops)
		return err
	})
	return destroyed, err
}
