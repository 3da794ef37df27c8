package controllers

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// errStoreGone says that there is no key store any more in which something could be cleaned up.
var errStoreGone = errors.New("the key store is gone")

// reconcileDelete destroys the key's wrapping pairs, and the key itself where the policy says so. It can
// always finish: where the key store is gone it leaves the module as it is and says so.
func (r *importedKeyReconciler) reconcileDelete(ctx context.Context, object *v1alpha1.ImportedKey) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(object, finalizerKey) {
		return ctrl.Result{}, nil
	}
	err := r.cleanUp(ctx, object)
	if errors.Is(err, errOpening) {
		return r.result(err, healthInterval, object.Status.Conditions)
	}
	if err != nil && !errors.Is(err, errStoreGone) {
		before := object.DeepCopy()
		blocked := *reconciler.From(err)
		blocked.Message = "The deletion waits for the key store, where the key's pairs (and the key, with deletionPolicy Delete) are destroyed. " + blocked.Message
		r.summarize(object, &blocked)
		if patchErr := reconciler.PatchStatus(ctx, r.client, before, object); patchErr != nil {
			return ctrl.Result{}, patchErr
		}
		return reconciler.Result(&blocked, healthInterval)
	}
	if patchErr := r.removeFinalizer(ctx, object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	if err != nil && hasInModule(object) {
		r.recorder.Eventf(object, nil, corev1.EventTypeWarning, "LeftInModule", "Delete",
			"%s is gone: what the key %s had in its module was left there.", storeName(object), object.Status.KeyVersionID)
	} else if err == nil && destroysKey(object) {
		r.recorder.Eventf(object, nil, corev1.EventTypeNormal, "KeyDestroyed", "Delete",
			"The key %s was destroyed in its module.", object.Status.KeyVersionID)
	}
	return ctrl.Result{}, nil
}

// cleanUp asks nobody's consent: a namespace that may no longer use a key store may still take out what
// it put in.
func (r *importedKeyReconciler) cleanUp(ctx context.Context, object *v1alpha1.ImportedKey) error {
	id := idOf(object.Namespace, object.Spec.KeyStoreRef)
	if _, err := getStore(ctx, r.client, id); apierrors.IsNotFound(err) {
		return errStoreGone
	} else if err != nil {
		return err
	}
	ops, giveBack, err := r.borrow(ctx, id)
	if err != nil {
		return err
	}
	defer giveBack()
	key, err := keyOf(object)
	if err != nil {
		return err
	}
	if _, err := ops.DestroyImportParameters(ctx, key.ID, true); err != nil {
		return err
	}
	if destroysKey(object) {
		r.announce(object, r.noteUse(ctx, object))
		return ops.DeleteKeyMaterial(ctx, key)
	}
	return nil
}

// hasInModule says whether something of an object's is or may be in its module: a key or pairs.
func hasInModule(object *v1alpha1.ImportedKey) bool {
	s := object.Status
	return s.MaterialFingerprint != "" || s.ImportParameters != nil || s.FormerParametersExpireTime != nil
}

// destroysKey says whether the key goes with the object. A key that the object asked to adopt in vain is
// somebody else's, whatever its policy says.
func destroysKey(object *v1alpha1.ImportedKey) bool {
	return object.Spec.DeletionPolicy == v1alpha1.DeletionDelete && holdsKey(object)
}

func storeName(object *v1alpha1.ImportedKey) string {
	return fmt.Sprintf("%s %s", object.Spec.KeyStoreRef.Kind, object.Spec.KeyStoreRef.Name)
}
