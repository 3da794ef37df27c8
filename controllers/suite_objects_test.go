package controllers_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// create makes objects, in the test's namespace unless they say another, with the operator's mark.
func (o *operator) create(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if object.GetNamespace() == "" {
			object.SetNamespace(o.namespace)
		}
		switch object.(type) {
		case *v1alpha1.ClusterKeyStore, *v1alpha1.ClusterExportedDataKey:
			object.SetNamespace("")
		}
		all := maps.Clone(object.GetLabels())
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, o.mark())
		object.SetLabels(all)
		if err := o.Create(t.Context(), object); err != nil {
			t.Fatalf("Making a %T: %v", object, err)
		}
	}
}

// change reads an object, changes it and writes what changed.
func (o *operator) change(t testing.TB, object client.Object, change func()) {
	t.Helper()
	o.read(t, object)
	before := object.DeepCopyObject().(client.Object)
	change()
	if err := o.Patch(t.Context(), object, client.MergeFrom(before)); err != nil {
		t.Fatalf("Changing a %T: %v", object, err)
	}
}

// annotate sets an annotation.
func (o *operator) annotate(t testing.TB, object client.Object, name, value string) {
	t.Helper()
	o.change(t, object, func() {
		all := maps.Clone(object.GetAnnotations())
		if all == nil {
			all = map[string]string{}
		}
		all[name] = value
		object.SetAnnotations(all)
	})
}

// touch has an object reconciled that is woken by its annotations, and waits until that is over.
func (o *operator) touch(t testing.TB, object client.Object) {
	t.Helper()
	o.again(t, object, func() { o.annotate(t, object, annotationTouched, object.GetResourceVersion()) })
}

// remove asks for the deletion of an object.
func (o *operator) remove(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Delete(t.Context(), object); client.IgnoreNotFound(err) != nil {
		t.Fatalf("Deleting a %T: %v", object, err)
	}
}

// removeUnseen deletes objects while the operator does not run. It watches each kind for itself, so it may hear of
// a Secret's end before that of the Secret's owner, and make the Secret again.
func (o *operator) removeUnseen(t *testing.T, objects ...client.Object) {
	t.Helper()
	o.stop(t)
	for _, object := range objects {
		o.remove(t, object)
	}
	o.start(t)
}

func (o *operator) read(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		t.Fatalf("Reading a %T: %v", object, err)
	}
}

// until reads an object until it is as wanted; problem says why it is not yet, or nothing.
func (o *operator) until(t testing.TB, object client.Object, problem func() string) {
	t.Helper()
	eventually(t, func() string {
		o.read(t, object)
		return problem()
	})
}

// eventually waits until there is no problem any more.
func eventually(t testing.TB, problem func() string) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		last := problem()
		if last == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("Still not after %s: %s", patience, last)
		case <-tick.C:
		}
	}
}

// ready waits until an object is Ready as it is now.
func (o *operator) ready(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		o.condition(t, object, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonSucceeded)
	}
}

// waits waits until an object says that it waits for something else, and returns its words.
func (o *operator) waits(t testing.TB, object client.Object, reason string, says ...string) string {
	t.Helper()
	message := o.condition(t, object, v1alpha1.ConditionReconciling, metav1.ConditionTrue, reason)
	wantWords(t, message, says)
	return message
}

// stalls waits until an object says that somebody must change something, and returns its words.
func (o *operator) stalls(t testing.TB, object client.Object, reason string, says ...string) string {
	t.Helper()
	message := o.condition(t, object, v1alpha1.ConditionStalled, metav1.ConditionTrue, reason)
	wantWords(t, message, says)
	return message
}

// condition waits until a condition speaks of the object as it is now, with that status and reason.
func (o *operator) condition(t testing.TB, object client.Object, conditionType string, status metav1.ConditionStatus, reason string) (message string) {
	t.Helper()
	o.until(t, object, func() string {
		conditions, observed := statusOf(object)
		c := meta.FindStatusCondition(conditions, conditionType)
		if observed == object.GetGeneration() && c != nil && c.Status == status && c.Reason == reason {
			message = c.Message
			return ""
		}
		return fmt.Sprintf("%T %s: want %s=%s %s; generation %d, observed %d: %s",
			object, object.GetName(), conditionType, status, reason, object.GetGeneration(), observed, toJSON(conditions))
	})
	return message
}

// gone waits until an object does not exist any more.
func (o *operator) gone(t testing.TB, object client.Object) {
	t.Helper()
	eventually(t, func() string {
		err := o.Get(t.Context(), client.ObjectKeyFromObject(object), object)
		if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		if err == nil {
			return fmt.Sprintf("%T %s is still there", object, object.GetName())
		}
		return ""
	})
}

func wantWords(t testing.TB, message string, words []string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("%q does not say %q", message, w)
		}
	}
}

// events are the reasons and notes of an object's events, as "Reason: note".
func (o *operator) events(t testing.TB, object client.Object) []string {
	t.Helper()
	var list eventsv1.EventList
	if err := o.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range list.Items {
		if e.Regarding.UID == object.GetUID() {
			found = append(found, e.Reason+": "+e.Note)
		}
	}
	return found
}

// event waits for an object's event with that reason, and returns its note.
func (o *operator) event(t testing.TB, object client.Object, reason string) (note string) {
	t.Helper()
	eventually(t, func() string {
		all := o.events(t, object)
		for _, e := range all {
			if r, n, _ := strings.Cut(e, ": "); r == reason {
				note = n
				return ""
			}
		}
		return fmt.Sprintf("%T %s has no event %s, only %q", object, object.GetName(), reason, all)
	})
	return note
}
