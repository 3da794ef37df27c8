package controllers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// crashShown is how long a key store says that the process of its library ended.
const crashShown = 10 * time.Minute

// noteCrash reports, in a condition and an event, that the process of the key store's library ended, and removes the condition
// later. written must be called when the status is written.
func (r *keyStoreReconciler) noteCrash(s *keyStoreScope) (events []reconciler.Event, written func()) {
	conditions := &s.Status.Conditions
	loss := r.stores.Loss(s.ID)
	if loss == nil {
		c := meta.FindStatusCondition(*conditions, v1alpha1.ConditionModuleCrashed)
		if c != nil && !r.clock.Now().Before(c.LastTransitionTime.Add(crashShown)) {
			meta.RemoveStatusCondition(conditions, v1alpha1.ConditionModuleCrashed)
		}
		return nil, func() {}
	}
	message := sentence(loss.Detail) + " The operator starts it again and opens the module again. Calls that were in progress are repeated. See docs/hardware-modules.md."
	meta.RemoveStatusCondition(conditions, v1alpha1.ConditionModuleCrashed) // so that the time is that of the last crash
	meta.SetStatusCondition(conditions, metav1.Condition{
		Type: v1alpha1.ConditionModuleCrashed, Status: metav1.ConditionTrue, Reason: v1alpha1.ConditionModuleCrashed, Message: message,
		ObservedGeneration: s.GetGeneration(), LastTransitionTime: metav1.NewTime(r.clock.Now()),
	})
	return []reconciler.Event{{Type: corev1.EventTypeWarning, Reason: "ModuleCrashed", Action: "Check", Message: message}},
		func() { r.stores.Reported(s.ID, loss) }
}
