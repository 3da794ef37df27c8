package harness

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// observe implements controllers.Options.Observe.
func (o *Operator) observe(kind string, name types.NamespacedName) (over func()) {
	of := kind + "/" + name.String()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.begun[of]++
	done := o.done // a restart makes another
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		done[of]++
	}
}

// Reconciles returns how many reconciles of an object began since the operator's start, and how many of them are over.
func (o *Operator) Reconciles(t testing.TB, object client.Object) (begun, done int) {
	t.Helper()
	return o.ReconcilesOf(o.ReconcileOf(t, object))
}

// ReconcilesOf is Reconciles for the result of ReconcileOf.
func (o *Operator) ReconcilesOf(of string) (begun, done int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.begun[of], o.done[of]
}

// ReconcileOf returns the name by which the reconciles of an object are counted: its kind, namespace and name.
func (o *Operator) ReconcileOf(t testing.TB, object client.Object) string {
	t.Helper()
	kind, err := o.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	return kind.Kind + "/" + client.ObjectKeyFromObject(object).String()
}

// Settled waits until each object has been reconciled since the operator's start, and none is being reconciled.
func (o *Operator) Settled(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		o.ReconciledSince(t, object, 0)
	}
}

// Again calls cause, which makes the operator reconcile an object, and waits until that is over.
func (o *Operator) Again(t testing.TB, object client.Object, cause func()) {
	t.Helper()
	begun, _ := o.Reconciles(t, object)
	cause()
	o.ReconciledSince(t, object, begun)
}

// ReconciledSince waits until an object has been reconciled, after a number of reconciles that began before, and no more
// is.
func (o *Operator) ReconciledSince(t testing.TB, object client.Object, before int) {
	t.Helper()
	Eventually(t, func() string {
		if begun, done := o.Reconciles(t, object); begun == before || done != begun {
			return fmt.Sprintf("%T %s: %d reconciles began before, %d now, %d are over", object, object.GetName(), before, begun, done)
		}
		return ""
	})
}
