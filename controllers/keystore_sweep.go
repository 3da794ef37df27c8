package controllers

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// sweepInterval is how often an open module is looked through for what has outlived its owner. It is also looked
// through after each opening.
const sweepInterval = 24 * time.Hour

// maxListed is how many key versions a status or a message lists.
const maxListed = 10

// sweep destroys the wrapping pairs that have expired, and publishes the master keys without an object and those that
// the module lacks. The first are never destroyed: they may be another cluster's, or wait to be adopted. The second are never
// created again. A sweep that fails is tried again with the next health check; it does not make the key store less ready.
func (r *keyStoreReconciler) sweep(ctx context.Context, s *keyStoreScope) {
	ctx, cancel := reconciler.PhaseContext(ctx)
	defer cancel()
	state := r.stores.LastSweep(s.ID)
	// A status patch that failed may have left a report that is out of date.
	if state.At.IsZero() || state.Missing > 0 || s.Status.MissingKeys != nil || !r.clock.Now().Before(state.At.Add(sweepInterval)) {
		missing, err := r.sweepModule(ctx, s.ID, &state)
		if err != nil {
			log.FromContext(ctx).Error(err, "The sweep of the module failed", "keyStore", s.ID.String())
			return
		}
		state.Missing = len(missing)
		s.publishMissing(missing)
	}
	unheld, err := r.withoutHolder(ctx, state.Unheld)
	if err != nil {
		log.FromContext(ctx).Error(err, "The keys without a holder are not known", "keyStore", s.ID.String())
		return
	}
	state.Unheld = unheld
	r.stores.SetSweep(s.ID, state)
	s.Status.KeysWithoutHolder = unheldStatus(s.ID, unheld)
}

// sweepModule destroys the pairs that have expired, sets the master keys in the module, and returns the versions that it
// lacks: those that must be there before the list and after it, because keys are imported and destroyed meanwhile. It sets
// the time of the sweep, unless pairs could not be destroyed, which is then tried again with the next health check.
func (r *keyStoreReconciler) sweepModule(ctx context.Context, id keystore.ID, state *keystore.Sweep) (missing []string, err error) {
	before, err := r.versionsInModule(ctx, id)
	if err != nil {
		return nil, err
	}
	err = r.stores.CleanUp(ctx, id, func(ops keystore.Session) (err error) {
		if state.Unheld, err = ops.MasterKeys(ctx); err != nil {
			return err
		}
		state.At = r.clock.Now()
		destroyed, err := ops.Sweep(ctx)
		if err != nil {
			state.At = time.Time{}
			log.FromContext(ctx).Error(err, "Import key pairs that have expired could not be destroyed", "keyStore", id.String())
		}
		if destroyed > 0 {
			log.FromContext(ctx).Info("Destroyed import key pairs that had expired", "keyStore", id.String(), "pairs", destroyed)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	after, err := r.versionsInModule(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, key := range state.Unheld {
		delete(after, key.KeyVersionID.String())
	}
	maps.DeleteFunc(after, func(version string, _ bool) bool { return !before[version] })
	return slices.Sorted(maps.Keys(after)), nil
}

// versionsInModule are the key versions that the module of a key store must have.
func (r *keyStoreReconciler) versionsInModule(ctx context.Context, id keystore.ID) (map[string]bool, error) {
	keys, err := r.keys.InStore(ctx, id, client.DisableReadYourWritesConsistency)
	if err != nil {
		return nil, err
	}
	versions := map[string]bool{}
	for _, key := range keys {
		if key.InModule(r.clock.Now()) {
			for _, version := range key.Versions() {
				versions[version] = true
			}
		}
	}
	return versions, nil
}

// publishMissing says which keys the module lacks, and how to get them back.
func (s *keyStoreScope) publishMissing(versions []string) {
	s.Status.MissingKeys = keyVersions(versions)
	if len(versions) == 0 {
		meta.RemoveStatusCondition(&s.Status.Conditions, v1alpha1.ConditionKeysMissing)
		return
	}
	message := fmt.Sprintf("The module does not have %d of the keys that objects hold in this key store: %s. The operator does not create them again, "+
		"and data keys under them cannot be used. If the HSM was replaced, restore its backup into the new token; without a backup, import the material of each imported key again into its ImportedKey. "+
		"If spec.pkcs11 was changed by mistake, change it back.", len(versions), listed(versions))
	was := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionKeysMissing)
	isNew := was == nil || was.Message != message
	meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionKeysMissing, Status: metav1.ConditionTrue, Reason: v1alpha1.ConditionKeysMissing,
		Message: message, ObservedGeneration: s.GetGeneration(),
	})
	if isNew {
		s.events = append(s.events, reconciler.Event{Type: corev1.EventTypeWarning, Reason: "KeysMissing", Action: "Sweep", Message: message})
	}
}

// dropOldReport removes a report of missing keys about another spec, whose module may be another one.
func (s *keyStoreScope) dropOldReport() {
	c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionKeysMissing)
	if c != nil && c.ObservedGeneration != s.GetGeneration() {
		s.publishMissing(nil)
	}
}

// listed are the first key versions, for a sentence.
func listed(versions []string) string {
	if len(versions) > maxListed {
		return strings.Join(versions[:maxListed], ", ") + ", …"
	}
	return strings.Join(versions, ", ")
}

// withoutHolder returns the keys that no object holds, as the cache has them. It is a report, so it does not wait
// for the operator's own writes to keys: one that the API server does not answer would hold up the key store.
func (r *keyStoreReconciler) withoutHolder(ctx context.Context, keys []hsm.Key) ([]hsm.Key, error) {
	var unheld []hsm.Key
	for _, key := range keys {
		held, err := r.keys.Held(ctx, key.KeyVersionID.String())
		if err != nil {
			return nil, err
		}
		if !held {
			unheld = append(unheld, key)
		}
	}
	return unheld, nil
}

// unheldStatus is what a status says of keys without a holder. A KeyStore speaks of its own namespace's only: its users
// learn nothing of other tenants of the token.
func unheldStatus(id keystore.ID, keys []hsm.Key) *v1alpha1.KeyVersions {
	var ids []string
	for _, key := range keys {
		if id.Kind == keystore.KindClusterKeyStore || key.Owner.Namespace == id.Namespace {
			ids = append(ids, key.KeyVersionID.String())
		}
	}
	slices.Sort(ids)
	return keyVersions(ids)
}

// keyVersions are key versions in their order, for a status; nil for none.
func keyVersions(ids []string) *v1alpha1.KeyVersions {
	if len(ids) == 0 {
		return nil
	}
	return &v1alpha1.KeyVersions{Count: int32(len(ids)), KeyVersionIDs: ids[:min(len(ids), maxListed)]} //nolint:gosec // a token's keys
}
