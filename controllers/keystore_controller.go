package controllers

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// +kubebuilder:rbac:groups=keyconvoy.io,resources=keystores;clusterkeystores,verbs=get;list;watch
// +kubebuilder:rbac:groups=keyconvoy.io,resources=keystores/status;clusterkeystores/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=configmaps;namespaces,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// healthInterval is how often an open module is asked whether it still works, unless Options say another,
// and how long a wrong configuration is left alone that may be repaired outside the cluster.
const healthInterval = time.Minute

// keyStoreReconciler opens the modules of KeyStores or ClusterKeyStores and says how they are.
type keyStoreReconciler struct {
	*shared
	kind              string // kindKeyStore or kindClusterKeyStore
	open              OpenModule
	operatorNamespace string
	healthInterval    time.Duration
}

// keyStoreScope is what the phases hand on.
type keyStoreScope struct {
	storeObject
	pinVersion string // set by findPIN
	rootKey    string // set by openModule: the Secret with a new root key
	opened     bool   // set by openModule and checkModule: the module did not serve before
}

// Reconcile opens the module, checks it, and publishes what it can do.
func (r *keyStoreReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	id := storeID{kind: r.kind, namespace: req.Namespace, name: req.Name}
	store, err := getStore(ctx, r.client, id)
	if apierrors.IsNotFound(err) || (err == nil && !store.GetDeletionTimestamp().IsZero()) {
		r.modules.drop(id)
		if r.modules.try(id) {
			r.modules.announce(ctx, id.object())
		}
		return ctrl.Result{}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}

	before := store.DeepCopyObject().(client.Object)
	was := store.status.DeepCopy()
	scope := &keyStoreScope{storeObject: store}
	err = r.serve(ctx, scope)

	// Whoever waits for the store must hear of it when it begins to serve, and when it does again: before
	// the patch, which may fail. Who came before the first look at it has not said yet that it waits.
	first := r.modules.try(id)
	if first || (err == nil && (scope.opened || !ready(was.Conditions))) {
		r.modules.announce(ctx, before) // nobody writes to it any more
	}

	store.status.ObservedGeneration = store.GetGeneration()
	reconciler.Summarize(&store.status.Conditions, store.GetGeneration(), err, "The module serves.")
	if patchErr := reconciler.PatchStatus(ctx, r.client, before, store.Object); patchErr != nil {
		return ctrl.Result{}, patchErr
	}
	r.announceStall(store.Object, was.Conditions, store.status.Conditions)
	r.announce(store.Object, noteService(was, store.status))
	if scope.rootKey != "" {
		r.recorder.Eventf(store.Object, nil, corev1.EventTypeWarning, "RootKeyCreated", "Create",
			"A new root key is in Secret %s/%s: back it up. Without it every key of this store is lost.", r.operatorNamespace, scope.rootKey)
	}
	return reconciler.Result(err, r.healthInterval)
}

// saveTime is what is left of a reconcile when a module hangs: to say so.
const saveTime = 30 * time.Second

// serve runs the phases.
func (r *keyStoreReconciler) serve(ctx context.Context, s *keyStoreScope) error {
	ctx, cancel := context.WithTimeout(ctx, reconcileTimeout-saveTime)
	defer cancel()
	for _, phase := range []func(context.Context, *keyStoreScope) error{r.findPIN, r.openModule, r.checkModule} {
		if err := phase(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// noteService tells when a key store stops serving, and when it serves again. Its first success is no
// change, and of an end that somebody must repair the stall tells.
func noteService(was, is *v1alpha1.KeyStoreStatus) []note {
	served, serves := ready(was.Conditions), ready(is.Conditions)
	switch {
	case served && !serves && !meta.IsStatusConditionTrue(is.Conditions, v1alpha1.ConditionStalled):
		return []note{{corev1.EventTypeWarning, "KeyStoreUnavailable", "Check", "The module does not serve any more: the condition Ready says why."}}
	case !served && serves && was.Module != nil: // which is kept from the first success on
		return []note{{corev1.EventTypeNormal, "KeyStoreAvailable", "Check", "The module serves again."}}
	}
	return nil
}
