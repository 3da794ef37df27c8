package controllers

import (
	"context"
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// A check of a module may find that a result was wrong. Results since the check before may have been wrong, too: the key store's
// status says in which period. What was made in it is made again, or verified.

// maxSuspectPeriods is the limit of the API.
const maxSuspectPeriods = 8

// beginSuspectPeriod adds a period, unless the last one lasts. Of too many, the two oldest become one.
func beginSuspectPeriod(periods []v1alpha1.SuspectPeriod, from time.Time) []v1alpha1.SuspectPeriod {
	if n := len(periods); n > 0 && periods[n-1].To == nil {
		return periods
	}
	if len(periods) == maxSuspectPeriods {
		periods[1].From = periods[0].From
		periods = periods[1:]
	}
	return append(periods, v1alpha1.SuspectPeriod{From: seconds(from)})
}

// endSuspectPeriod ends the last period, if it lasts.
func endSuspectPeriod(periods []v1alpha1.SuspectPeriod, to time.Time) {
	if n := len(periods); n > 0 && periods[n-1].To == nil {
		end := seconds(to)
		periods[n-1].To = &end
	}
}

// seconds returns a time as a status keeps it.
func seconds(t time.Time) metav1.Time { return metav1.NewTime(t.UTC().Truncate(time.Second)) }

// suspectPeriod returns the period in which something was done, or nil. Times in a status have whole seconds, so both ends count.
func suspectPeriod(periods []v1alpha1.SuspectPeriod, at *metav1.Time) *v1alpha1.SuspectPeriod {
	if at == nil {
		return nil
	}
	done := seconds(at.Time)
	for i := range periods {
		if p := &periods[i]; !done.Time.Before(p.From.Time) && (p.To == nil || !done.Time.After(p.To.Time)) {
			return p
		}
	}
	return nil
}

// noteWrongResults begins a period in the status after a wrong result, and ends it after a check that found none. written must be
// called when the status is written.
func (r *keyStoreReconciler) noteWrongResults(s *keyStoreScope, err error) (written func()) {
	written = func() {}
	if since := r.stores.WrongSince(s.ID); !since.IsZero() {
		s.Status.SuspectPeriods = beginSuspectPeriod(s.Status.SuspectPeriods, since)
		written = func() { r.stores.WrongReported(s.ID) }
	}
	if err == nil {
		endSuspectPeriod(s.Status.SuspectPeriods, r.stores.Right(s.ID))
	}
	return written
}

// isSuspect returns whether the module of a key store may have returned a wrong result at a time, and returns right ones now, so
// that what was done then can be done again. It asks the cache only. Reasons: KeyStoreNotReady, while the module was not found to
// work again.
func (s *shared) isSuspect(ctx context.Context, id keystore.ID, at *metav1.Time) (bool, error) {
	store, err := keystore.Get(ctx, s.Client, id, client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil {
		return false, client.IgnoreNotFound(err)
	}
	period := suspectPeriod(store.Status.SuspectPeriods, at)
	if period == nil {
		return false, nil
	}
	wait := reconciler.Wait(v1alpha1.ReasonKeyStoreNotReady, fmt.Sprintf(
		"%s %q may have returned a wrong result for this object at %s. The operator repeats the operation when the key store is ready again.",
		id.Kind, id.Name, at.UTC().Format(time.RFC3339)))
	switch {
	case period.To == nil:
		return false, wait
	case !s.clock.Now().UTC().Truncate(time.Second).After(period.To.Time):
		// What is done in this second would count as suspect, too.
		wait.Unsettled, wait.After = true, time.Second
		return false, wait
	}
	return true, nil
}

// noteSuspect marks the versions that the module generated when it may have returned wrong results, and warns of each once. It asks
// the cache only. When an adopted version was generated is not known.
func (r *generatedKeyReconciler) noteSuspect(ctx context.Context, s *generatedScope) error {
	store, err := keystore.Get(ctx, r.Client, s.masterKey.key().Store(), client.UnsafeDisableDeepCopy, client.DisableReadYourWritesConsistency)
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	var found []string
	for i := range s.object.Status.Versions {
		v := &s.object.Status.Versions[i]
		if v.Suspect || v.Custody == v1alpha1.CustodyUnknown || suspectPeriod(store.Status.SuspectPeriods, &v.CreateTime) == nil {
			continue
		}
		v.Suspect = true
		found = append(found, v.KeyVersionID)
	}
	if len(found) > 0 {
		s.notes = append(s.notes, reconciler.Event{Type: corev1.EventTypeWarning, Reason: "KeyVersionSuspect", Action: "Verify", Message: fmt.Sprintf(
			"%s may have returned wrong results when it generated key version %s, which may be less random than it should be. "+
				"Rotate the key and re-encrypt its data keys, or move them to a new key.", s.storeName(), listed(found))})
	}
	return nil
}

// suspectPeriodsChanged lets through what makes results of a key store suspect, and what ends that.
var suspectPeriodsChanged = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false }, // every object is reconciled after a start
	DeleteFunc: func(event.DeleteEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return !reflect.DeepEqual(statusOfStore(e.ObjectOld).SuspectPeriods, statusOfStore(e.ObjectNew).SuspectPeriods)
	},
}

// statusOfStore returns the status of a KeyStore or ClusterKeyStore.
func statusOfStore(o client.Object) *v1alpha1.KeyStoreStatus {
	return o.(keystore.Object).GetStatus().(*v1alpha1.KeyStoreStatus)
}
