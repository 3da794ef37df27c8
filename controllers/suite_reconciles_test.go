package controllers_test

import (
	"fmt"
	"io"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// observe implements controllers.Options.Observe.
func (o *operator) observe(kind string, name types.NamespacedName) (over func()) {
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

// hear keeps the log.
func (o *operator) hear(prefix, line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Fprintln(io.MultiWriter(&o.log, o.says), prefix, line)
}

// reconciles are how many reconciles of an object began since the operator's start, and how many of them
// are over.
func (o *operator) reconciles(t testing.TB, object client.Object) (begun, done int) {
	t.Helper()
	of := o.reconcileOf(t, object)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.begun[of], o.done[of]
}

// reconcileOf is by what the reconciles of an object are counted.
func (o *operator) reconcileOf(t testing.TB, object client.Object) string {
	t.Helper()
	kind, err := o.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	return kind.Kind + "/" + client.ObjectKeyFromObject(object).String()
}

// settled waits until each object has been reconciled since the operator's start and no more is.
func (o *operator) settled(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		o.reconciledSince(t, object, 0)
	}
}

// again does something that has an object reconciled, and waits until that is over.
func (o *operator) again(t testing.TB, object client.Object, cause func()) {
	t.Helper()
	begun, _ := o.reconciles(t, object)
	cause()
	o.reconciledSince(t, object, begun)
}

func (o *operator) reconciledSince(t testing.TB, object client.Object, before int) {
	t.Helper()
	eventually(t, func() string {
		if begun, done := o.reconciles(t, object); begun == before || done != begun {
			return fmt.Sprintf("%T %s: %d reconciles began before, %d now, %d are over", object, object.GetName(), before, begun, done)
		}
		return ""
	})
}
