package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// healthInterval is how often an open module is checked.
const healthInterval = time.Minute

// opener opens the modules of the key stores of a kind that the operator reports as ready, with sessions of its own. It writes no
// status. So a PIN has been accepted before the gateway tries it, and a key store that the operator does not use is not used here.
type opener struct {
	kind              string
	cached            client.Reader
	registry          *keystore.Registry
	lane              *keystore.Lane
	secrets           *secrets.Client
	deletions         *secrets.Deletions
	pins              *pins.Guard
	operatorNamespace string
}

func (o *opener) setup(mgr ctrl.Manager) error {
	var kind client.Object = &v1alpha1.KeyStore{}
	if o.kind == keystore.KindClusterKeyStore {
		kind = &v1alpha1.ClusterKeyStore{}
	}
	everyReplica := false
	return ctrl.NewControllerManagedBy(mgr).
		Named("gateway-" + o.kind).
		For(kind).
		WatchesRawSource(o.registry.Changes(o.suspects)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 16, // one that hangs holds a worker
			NeedLeaderElection:      &everyReplica,
			ReconciliationTimeout:   3 * time.Minute,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](time.Second, 30*time.Second),
		}).
		Complete(o)
}

func (o *opener) suspects(_ context.Context, change keystore.Change) []reconcile.Request {
	if change.State != keystore.Suspect || change.ID.Kind != o.kind {
		return nil
	}
	return []reconcile.Request{{NamespacedName: change.ID.Key()}}
}

// Reconcile opens, checks or closes the module of a key store.
func (o *opener) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	id := keystore.ID{Kind: o.kind, Namespace: req.Namespace, Name: req.Name}
	store, err := keystore.Get(ctx, o.cached, id)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	defer o.registry.MarkTried(id)
	if err != nil || !store.GetDeletionTimestamp().IsZero() || !served(store) {
		o.registry.Close(id)
		return ctrl.Result{}, nil
	}
	config := configOf(store)
	if o.registry.Config(id) != config {
		o.registry.Close(id)
		if err := o.open(ctx, store, config); err != nil {
			return ctrl.Result{}, fmt.Errorf("opening the module: %w", err)
		}
		log.FromContext(ctx).Info("The module is open", "keyStore", id.String())
	}
	if _, _, err := o.registry.Check(ctx, id); err != nil {
		if hsm.KindOf(err) != hsm.Unavailable {
			o.registry.Close(id) // it is opened again
		}
		return ctrl.Result{}, fmt.Errorf("checking the module: %w", err)
	}
	return ctrl.Result{RequeueAfter: healthInterval}, o.sweep(ctx, store)
}

// served reports whether the operator uses the key store. While its own module fails for a moment, that of the gateway may work.
func served(store keystore.Store) bool {
	ready := meta.FindStatusCondition(store.GetConditions(), v1alpha1.ConditionReady)
	if ready == nil || len(store.Invalid()) > 0 {
		return false
	}
	return ready.Status == metav1.ConditionTrue || store.Status.Module != nil && ready.Reason == kms.ServiceUnavailableTemporary.Reason()
}

// configOf identifies what a module is opened with.
func configOf(store keystore.Store) string {
	spec, _ := json.Marshal(store.Spec) // strings, numbers and flags: it cannot fail
	return string(store.GetUID()) + "/" + secrets.DigestOf(string(spec))
}

func (o *opener) open(ctx context.Context, store keystore.Store, config string) error {
	cfg := keystore.ModuleConfig(store.Spec)
	if store.Spec.PKCS11 != nil && store.Spec.PKCS11.PINSecretRef != nil {
		ref := store.Spec.PKCS11.PINSecretRef
		from := o.secrets.Ref(store, secrets.Secret, string(ref.Name))
		read, _, err := o.secrets.PIN(ctx, from, string(ref.Key))
		if err != nil {
			return err
		}
		if read == nil || len(read.Value) == 0 {
			return fmt.Errorf("entry %s of %s with the PIN does not exist", ref.Key, from)
		}
		defer read.Value.Wipe()
		// Secrets made from a file end in a newline that no PIN has.
		cfg.PIN = redact.WireBytes(bytes.TrimRight(read.Value, "\r\n"))
		cfg.PINOrigin = pins.Origin{Namespace: from.Namespace(), Source: string(read.UID), Administrator: from.Namespace() == o.operatorNamespace}
		cfg.PINs = o.pins
	}
	cfg.Storage = o.secrets.Storage(store.ID.Reference(), store.ID.Namespace, func(string) {}).Shared(o.deletions)
	return o.registry.Open(ctx, store.ID, config, cfg, func(hsm.Description) error { return nil })
}

// sweep destroys the expired import key pairs of a software store. The operator destroys those in tokens; those that the gateway
// has put into a software store are in its own memory.
func (o *opener) sweep(ctx context.Context, store keystore.Store) error {
	if store.Spec.PKCS11 != nil {
		return nil
	}
	return o.lane.CleanUp(ctx, store.ID, func(ops keystore.Session) error {
		_, err := ops.Sweep(ctx)
		return err
	})
}
