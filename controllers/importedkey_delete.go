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
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// errStoreGone reports that there is no key store left in which anything could be cleaned up.
var errStoreGone = errors.New("the key store no longer exists")

// reconcileDelete destroys the key's wrapping pairs, and the key itself where the policy says so. It can
// always finish: where the key store no longer exists, it leaves the module as it is and says so.
func (r *importedKeyReconciler) reconcileDelete(ctx context.Context, object *v1alpha1.ImportedKey) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(object, finalizerKey) {
		return ctrl.Result{}, nil
	}
	phaseCtx, cancel := reconciler.PhaseContext(ctx)
	defer cancel()
	destroyed, err := r.cleanUp(phaseCtx, object)
	if err != nil && !errors.Is(err, errStoreGone) {
		blocked := reconciler.RetryAfter(err, lookAgainInterval)
		blocked.Message = "Deletion is waiting for the key store, because the import key pairs (and the key, if deletionPolicy is Delete) " +
			"must be destroyed first. " + blocked.Message
		return r.Finish(ctx, object.DeepCopy(), object, reconciler.Outcome{Err: blocked, After: lookAgainInterval})
	}
	left := err != nil && hasInModule(object)
	if left {
		if patchErr := r.sayLeft(ctx, object); patchErr != nil {
			return ctrl.Result{}, patchErr
		}
	}
	if patchErr := r.removeFinalizer(ctx, object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	if left {
		r.leftInModule.Inc()
		log.FromContext(ctx).Info("Left a key or its import key pairs in a module that can no longer be reached",
			"keyStore", storeName(object), "keyVersionID", object.Status.KeyVersionID, "token", object.Status.Token)
		r.Recorder.Eventf(object, nil, corev1.EventTypeWarning, "LeftInModule", "Delete",
			"%s no longer exists, so key %s was left in the module.", storeName(object), object.Status.KeyVersionID)
	} else if destroyed {
		r.Recorder.Eventf(object, nil, corev1.EventTypeNormal, "KeyDestroyed", "Delete",
			"The key %s was destroyed in its module.", object.Status.KeyVersionID)
	}
	return ctrl.Result{}, nil
}

// sayLeft says in the status what stays in the module, before the object goes: a namespace that is being deleted takes
// no events.
func (r *importedKeyReconciler) sayLeft(ctx context.Context, object *v1alpha1.ImportedKey) error {
	left := reconciler.Stall(v1alpha1.ReasonLeftInModule, fmt.Sprintf(
		"%s or its PIN no longer exists, so key version %s or its import key pairs are left in the module. To destroy them, "+
			"create a key store for the token again and adopt the key with deletionPolicy Delete.",
		storeName(object), object.Status.KeyVersionID))
	before := object.DeepCopy()
	object.Status.ObservedGeneration = object.Generation
	object.Status.Conditions = reconciler.Summarize(object.Status.Conditions, object.Generation, left, "")
	return client.IgnoreNotFound(reconciler.PatchStatus(ctx, r.Client, before, object))
}

// cleanUp reports whether it destroyed the key. It needs no consent: a namespace that may no longer use a key store may still take out what it put in.
func (r *importedKeyReconciler) cleanUp(ctx context.Context, object *v1alpha1.ImportedKey) (destroyed bool, err error) {
	store, err := keystore.Get(ctx, r.Client, storeOf(object))
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
	err = r.stores.CleanUp(ctx, store.ID, func(ops keystore.Session) error {
		key, err := keyring.Of(object).KMS()
		if err != nil {
			return err
		}
		if err := r.destroyPairs(ctx, ops, object, key); err != nil {
			return err
		}
		if !destroysKey(object) {
			return nil
		}
		if err := r.stillSo(ctx, object); err != nil {
			return err
		}
		r.Announce(object, r.noteUse(ctx, object))
		destroyed, err = r.destroyKey(ctx, ops, object, key, audit.DestroyKey)
		return err
	})
	return destroyed, err
}

// storeOf returns the key store that has an object's key.
func storeOf(object *v1alpha1.ImportedKey) keystore.ID { return keyring.Of(object).Store() }

// hasInModule says whether something of an object's is or may be in its module: a key or pairs.
func hasInModule(object *v1alpha1.ImportedKey) bool {
	s := object.Status
	return s.MaterialFingerprint != "" || s.ImportParameters != nil || s.FormerParametersExpireTime != nil
}

// destroysKey reports whether the key is destroyed with the object. A key whose adoption never succeeded belongs to someone
// else: deletionPolicy does not apply.
func destroysKey(object *v1alpha1.ImportedKey) bool {
	return object.Spec.DeletionPolicy == v1alpha1.DeletionDelete && keyring.Of(object).Holds()
}

func storeName(object *v1alpha1.ImportedKey) string {
	return fmt.Sprintf("%s %q", object.Spec.KeyStoreRef.Kind, object.Spec.KeyStoreRef.Name)
}
