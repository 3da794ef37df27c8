package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=keystores;clusterkeystores,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=keystores/status;clusterkeystores/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=configmaps;namespaces,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// healthInterval is the default of Options.HealthInterval.
const healthInterval = time.Minute

// keyStoreReconciler opens the modules of KeyStores or ClusterKeyStores and says how they are.
type keyStoreReconciler struct {
	*shared
	kind           string // keystore.KindKeyStore or keystore.KindClusterKeyStore
	pins           *pins.Guard
	healthInterval time.Duration
}

// keyStoreScope is what the phases hand on.
type keyStoreScope struct {
	keystore.Store
	pinVersion string // set by findPIN
	rootKey    string // set by openModule: the Secret with a new root key
	opened     bool   // set by openModule and checkModule: the module did not serve before

	events []reconciler.Event // set by sweep
}

// Reconcile opens the module, checks it, and publishes what it can do.
func (r *keyStoreReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	id := keystore.ID{Kind: r.kind, Namespace: req.Namespace, Name: req.Name}
	store, err := keystore.Get(ctx, r.Client, id)
	if apierrors.IsNotFound(err) {
		r.close(ctx, id)
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	if !store.GetDeletionTimestamp().IsZero() {
		return r.reconcileDelete(ctx, store)
	}
	if err := r.addFinalizer(ctx, store); err != nil {
		return ctrl.Result{}, err
	}

	was := store.Status.DeepCopy()
	scope := &keyStoreScope{Store: store}
	return reconciler.Run(ctx, r.Frame, store.Object, scope, r.serve(), func(err error) reconciler.Outcome {
		// Tell waiting objects when the store becomes ready, before the status patch, which may fail. After a restart tell
		// all: objects that were reconciled earlier have not recorded that they wait.
		first := r.stores.MarkTried(id)
		if first || (err == nil && (scope.opened || !ready(was.Conditions))) {
			r.stores.Announce(ctx, id, stateAfter(err))
		}
		if err == nil {
			r.sweep(ctx, scope)
		}
		scope.dropOldReport()
		crashed, crashWritten := r.noteCrash(scope)
		wrongWritten := r.noteWrongResults(scope, err)
		return reconciler.Outcome{
			Err: err, ReadyMessage: "The module is ready.", After: r.healthInterval,
			Events: slices.Concat(noteService(was, err), crashed, r.noteRootKey(scope.rootKey), scope.events),
			Written: func() {
				crashWritten()
				wrongWritten()
			},
		}
	})
}

// noteRootKey asks for a backup of a new root key.
func (r *keyStoreReconciler) noteRootKey(secret string) []reconciler.Event {
	if secret == "" {
		return nil
	}
	return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "RootKeyCreated", Action: "Create", Message: fmt.Sprintf(
		"A new root key is in Secret %s/%s. Back it up: without it every key of this store is lost.", r.operatorNamespace, secret)}}
}

// stateAfter is the state of a key store whose reconcile ended with err.
func stateAfter(err error) keystore.State {
	if err != nil {
		return keystore.Failing
	}
	return keystore.Ready
}

// serve opens and checks the module.
func (r *keyStoreReconciler) serve() []reconciler.Phase[*keyStoreScope] {
	return []reconciler.Phase[*keyStoreScope]{r.findPIN, r.openModule, r.checkModule}
}

// noteService reports when a key store stops working, and when it works again. Its first success is no change, and the
// frame reports a failure that people must repair.
func noteService(was *v1alpha1.KeyStoreStatus, err error) []reconciler.Event {
	worked, e := ready(was.Conditions), reconciler.From(err)
	switch {
	case worked && e != nil && !e.ForPeople():
		return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "KeyStoreUnavailable", Action: "Check",
			Message: "The module is unavailable. See the Ready condition."}}
	case !worked && e == nil && was.Module != nil: // which is kept from the first success on
		return []reconciler.Event{{Type: corev1.EventTypeNormal, Reason: "KeyStoreAvailable", Action: "Check", Message: "The module is available again."}}
	}
	return nil
}
