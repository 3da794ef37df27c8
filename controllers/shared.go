package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// lookAgainInterval is how long an object waits for what is repaired outside the cluster, where nothing can be watched.
const lookAgainInterval = time.Minute

// shared is what every reconciler needs.
type shared struct {
	reconciler.Frame

	live    client.Reader // reads from the API server
	secrets *secrets.Client
	stores  *keystore.Lane
	keys    *keyring.Ring
	clock   clock.PassiveClock
	audit   *audit.Log
	observe func(kind string, object types.NamespacedName) func() // nil for nothing

	namespaces Namespaces // that are served
	// operatorNamespace is where software stores keep their keys, and the PINs of ClusterKeyStores are.
	operatorNamespace string
	// leftInModule counts keys whose objects were deleted while their module could not be reached any more.
	leftInModule prometheus.Counter
}

// withWorkers returns what a reconciler with that many workers needs.
func (s *shared) withWorkers(workers int) *shared {
	own := *s
	own.stores = s.stores.Lane(workers)
	return &own
}

// observed lets Options.Observe see the reconciles of a kind.
func (s *shared) observed(kind string, inner reconcile.Reconciler) reconcile.Reconciler {
	if s.observe == nil {
		return inner
	}
	return reconcile.Func(func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		defer s.observe(kind, req.NamespacedName)()
		return inner.Reconcile(ctx, req)
	})
}

// opening returns a *keystore.NotReadyError for a master key whose key store is still being opened.
func (s *shared) opening(ctx context.Context, ref keyring.Ref) error {
	key, err := s.keys.Get(ctx, ref, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil || key == nil {
		return err
	}
	if err := s.stores.Probe(ctx, key.Store()); isUnsettled(err) {
		return err
	}
	return nil
}

// isUnsettled reports whether a reconcile ended because its key store is still being opened, or is busy.
func isUnsettled(err error) bool {
	var notReady *keystore.NotReadyError
	return errors.As(err, &notReady) && !notReady.Settled()
}

// encryptionContext converts the API's form of an EncryptionContext.
func encryptionContext(in map[string]v1alpha1.ContextValue) kms.EncryptionContext {
	out := make(kms.EncryptionContext, len(in))
	for k, v := range in {
		out[k] = string(v)
	}
	return out
}

func inNamespace(o client.Object, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: name}
}

// entryOf says which entry a source names.
func entryOf(from *v1alpha1.EntrySource) (secrets.Kind, *v1alpha1.EntryReference) {
	if from.ConfigMapKeyRef != nil {
		return secrets.ConfigMap, from.ConfigMapKeyRef
	}
	return secrets.Secret, from.SecretKeyRef
}

func missingSource(source secrets.Ref, ref *v1alpha1.EntryReference, what string) error {
	return reconciler.Wait(v1alpha1.ReasonSourceNotFound, fmt.Sprintf(
		"%s: entry %s of %s does not exist. The operator continues when it is created.", what, ref.Key, source))
}
