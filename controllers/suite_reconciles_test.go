package controllers_test

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// reconcileVerbosity is that at which controller-runtime logs the beginning and end of each reconcile.
const reconcileVerbosity = 5

// reconcileLine matches those lines: the message and whose reconcile it is. One that ended in an error has
// the error in between.
var reconcileLine = regexp.MustCompile(`"msg"="(Reconcil[^"]*)".* "controllerKind"="(\w+)".* "namespace"="([^"]*)" "name"="([^"]+)"`)

// hear keeps the log, and counts reconciles by it.
func (o *operator) hear(prefix, line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := reconcileLine.FindStringSubmatch(line); m != nil {
		of := m[2] + "/" + m[3] + "/" + m[4]
		switch m[1] {
		case "Reconciling":
			o.begun[of]++
		case "Reconcile failed": // says why, and is not the end
		default:
			o.done[of]++
		}
	}
	if !strings.HasPrefix(line, `"level"=`) || strings.HasPrefix(line, `"level"=0`) {
		fmt.Fprintln(io.MultiWriter(&o.log, o.says), prefix, line)
	}
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

// reconcileOf is by what an object's reconciles are counted.
func (o *operator) reconcileOf(t testing.TB, object client.Object) string {
	t.Helper()
	kind, err := o.GroupVersionKindFor(object)
	if err != nil {
		t.Fatal(err)
	}
	return kind.Kind + "/" + object.GetNamespace() + "/" + object.GetName()
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
