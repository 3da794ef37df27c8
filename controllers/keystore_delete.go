package controllers

import (
	"context"
	"fmt"
	"strings"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// finalizerStore holds a key store, and with it its open module, until the keys in it are cleaned up. It is set before
// the module is opened, so nothing is ever in a module whose key store can go first.
const finalizerStore = "keyconvoy.io/key-store"

func (r *keyStoreReconciler) addFinalizer(ctx context.Context, store keystore.Store) error {
	before := store.DeepCopyObject().(client.Object)
	if !controllerutil.AddFinalizer(store.Object, finalizerStore) {
		return nil
	}
	return r.Client.Patch(ctx, store.Object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// reconcileDelete lets a key store go once no key needs it any more. Until then the module stays open, or is opened
// again after a restart, and the status says which keys are in the way.
func (r *keyStoreReconciler) reconcileDelete(ctx context.Context, store keystore.Store) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(store.Object, finalizerStore) {
		r.close(ctx, store.ID)
		return ctrl.Result{}, nil
	}
	users, err := r.users(ctx, store)
	if err != nil {
		return ctrl.Result{}, err
	}
	if len(users) == 0 {
		before := store.DeepCopyObject().(reconciler.Object)
		if err := r.release(ctx, store); err != nil {
			return r.Finish(ctx, before, store, reconciler.Outcome{Err: err, After: r.healthInterval})
		}
		return ctrl.Result{}, nil
	}
	scope := &keyStoreScope{Store: store}
	return reconciler.Run(ctx, r.Frame, store.Object, scope, r.serve(), func(problem error) reconciler.Outcome {
		if r.stores.MarkTried(store.ID) || scope.opened || problem != nil {
			r.stores.Announce(ctx, store.ID, stateAfter(problem))
		}
		scope.dropOldReport()
		return reconciler.Outcome{Err: inUse(users, problem), After: r.healthInterval}
	})
}

// maxNamedKeys bounds how many keys a condition names.
const maxNamedKeys = 5

// inUse says which keys keep a key store from being deleted, and why they may not get on.
func inUse(users []string, problem error) error {
	named := users
	more := ""
	if len(named) > maxNamedKeys {
		named, more = named[:maxNamedKeys], fmt.Sprintf(" and %d more", len(users)-maxNamedKeys)
	}
	message := fmt.Sprintf("The deletion is waiting for the master keys in this key store. Delete them: %s%s.", strings.Join(named, ", "), more)
	if problem != nil {
		message += " The module is not available to clean up: " + reconciler.From(problem).Message
	}
	return &reconciler.Error{Class: reconciler.Waiting, Reason: v1alpha1.ReasonKeyStoreInUse, Message: message, After: lookAgainInterval}
}

// users names the master keys that have or may have something in a key store's module, in order. A key whose namespace
// may not use the key store has nothing there, unless it says so.
func (r *keyStoreReconciler) users(ctx context.Context, store keystore.Store) ([]string, error) {
	keys, err := r.keys.InStore(ctx, store.ID)
	if err != nil {
		return nil, err
	}
	var users []string
	for _, key := range keys {
		if key.HasFinalizer(finalizerKey) && (key.Recorded() || store.Allows(ctx, r.Client, key.Ref().Namespace) == nil) {
			users = append(users, key.String())
		}
	}
	return users, nil
}

// withdraw ends the service of a key store whose PIN was deleted. Its module stays open as long as keys are to be
// cleaned up in it: without the PIN it could not be opened again.
func (r *keyStoreReconciler) withdraw(ctx context.Context, store keystore.Store, missing error) error {
	users, err := r.users(ctx, store)
	if err != nil {
		return err
	}
	if len(users) == 0 {
		r.stores.Close(store.ID)
	}
	r.stores.Withdraw(store.ID)
	return missing
}

// release closes the module and lets the key store go. An empty software store takes its root key along.
func (r *keyStoreReconciler) release(ctx context.Context, store keystore.Store) error {
	r.close(ctx, store.ID)
	if store.Spec.Type == v1alpha1.KeyStoreSoftware {
		removed, err := software.Remove(ctx, r.storage(store.ID, func(string) {}))
		if err != nil {
			return err
		}
		if !removed {
			log.FromContext(ctx).Info("The software store still holds keys, so its root key is kept", "keyStore", store.ID.String())
		}
	}
	before := store.DeepCopyObject().(client.Object)
	controllerutil.RemoveFinalizer(store.Object, finalizerStore)
	err := r.Client.Patch(ctx, store.Object, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	return client.IgnoreNotFound(err)
}

// close closes the module of a key store that no longer exists.
func (r *keyStoreReconciler) close(ctx context.Context, id keystore.ID) {
	r.stores.Close(id)
	r.stores.Reported(id, r.stores.Loss(id)) // another key store may get the name
	if r.stores.MarkTried(id) {
		r.stores.Announce(ctx, id, keystore.Absent)
	}
}

// storage is where a software store keeps its keys.
func (r *keyStoreReconciler) storage(id keystore.ID, onRootKey func(secret string)) *secrets.Storage {
	return r.secrets.Storage(id.Reference(), id.Namespace, onRootKey)
}

// outOfReach says that the module of a key store cannot be opened again to clean up in it: the key store is being
// deleted, its PIN is deleted, and the module is not open. In a namespace that is being deleted, no one can put the PIN
// back.
func (s *shared) outOfReach(ctx context.Context, store keystore.Store) (bool, error) {
	ref := pinRef(store.Spec)
	if ref == nil || store.GetDeletionTimestamp().IsZero() || s.stores.Config(store.ID) != "" || !s.stores.Tried(store.ID) {
		return false, nil
	}
	secret, err := s.secrets.Look(ctx, s.pinSecret(store))
	return err == nil && secret == nil, err
}
