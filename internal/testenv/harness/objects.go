package harness

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Make makes objects, in the test's namespace unless they say another, with the operator's mark.
func (o *Operator) Make(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if object.GetNamespace() == "" {
			object.SetNamespace(o.Namespace)
		}
		switch object.(type) {
		case *v1alpha1.ClusterKeyStore, *v1alpha1.ClusterExportedDataKey:
			object.SetNamespace("")
		}
		all := maps.Clone(object.GetLabels())
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, o.Mark())
		object.SetLabels(all)
		if err := o.Create(t.Context(), object); err != nil {
			t.Fatalf("Making a %T: %v", object, err)
		}
	}
}

// Change reads an object, changes it and writes what changed.
func (o *Operator) Change(t testing.TB, object client.Object, change func()) {
	t.Helper()
	o.Read(t, object)
	before := object.DeepCopyObject().(client.Object)
	change()
	if err := o.Patch(t.Context(), object, client.MergeFrom(before)); err != nil {
		t.Fatalf("Changing a %T: %v", object, err)
	}
}

// Annotate sets an annotation.
func (o *Operator) Annotate(t testing.TB, object client.Object, name, value string) {
	t.Helper()
	o.Change(t, object, func() {
		all := maps.Clone(object.GetAnnotations())
		if all == nil {
			all = map[string]string{}
		}
		all[name] = value
		object.SetAnnotations(all)
	})
}

// Touch has an object reconciled that is woken by its annotations, and waits until that is over.
func (o *Operator) Touch(t testing.TB, object client.Object) {
	t.Helper()
	o.Again(t, object, func() { o.Annotate(t, object, AnnotationTouched, object.GetResourceVersion()) })
}

// Remove asks for the deletion of an object.
func (o *Operator) Remove(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Delete(t.Context(), object); client.IgnoreNotFound(err) != nil {
		t.Fatalf("Deleting a %T: %v", object, err)
	}
}

// RemoveUnseen deletes objects while the operator does not run. It watches each kind for itself, so it may hear of
// a Secret's end before that of the Secret's owner, and make the Secret again.
func (o *Operator) RemoveUnseen(t *testing.T, objects ...client.Object) {
	t.Helper()
	o.Stop(t)
	for _, object := range objects {
		o.Remove(t, object)
	}
	o.Start(t)
}

func (o *Operator) Read(t testing.TB, object client.Object) {
	t.Helper()
	if err := o.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		t.Fatalf("Reading a %T: %v", object, err)
	}
}

// Until reads an object until it is as wanted; problem says why it is not yet, or nothing.
func (o *Operator) Until(t testing.TB, object client.Object, problem func() string) {
	t.Helper()
	Eventually(t, func() string {
		o.Read(t, object)
		return problem()
	})
}

// Ready waits until an object is Ready as it is now.
func (o *Operator) Ready(t testing.TB, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		o.Condition(t, object, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonSucceeded)
	}
}

// Waits waits until an object says that it waits for something else, and returns its words.
func (o *Operator) Waits(t testing.TB, object client.Object, reason string, says ...string) string {
	t.Helper()
	message := o.Condition(t, object, v1alpha1.ConditionReconciling, metav1.ConditionTrue, reason)
	WantWords(t, message, says)
	return message
}

// Stalls waits until an object says that a user must change something, and returns the message.
func (o *Operator) Stalls(t testing.TB, object client.Object, reason string, says ...string) string {
	t.Helper()
	message := o.Condition(t, object, v1alpha1.ConditionStalled, metav1.ConditionTrue, reason)
	WantWords(t, message, says)
	return message
}

// Condition waits until a condition speaks of the object as it is now, with that status and reason.
func (o *Operator) Condition(t testing.TB, object client.Object, conditionType string, status metav1.ConditionStatus, reason string) (message string) {
	t.Helper()
	o.Until(t, object, func() string {
		conditions, observed := StatusOf(object)
		c := meta.FindStatusCondition(conditions, conditionType)
		if observed == object.GetGeneration() && c != nil && c.Status == status && c.Reason == reason {
			message = c.Message
			return ""
		}
		return fmt.Sprintf("%T %s: want %s=%s %s; generation %d, observed %d: %s",
			object, object.GetName(), conditionType, status, reason, object.GetGeneration(), observed, JSON(conditions))
	})
	return message
}

// Gone waits until an object does not exist any more.
func (o *Operator) Gone(t testing.TB, object client.Object) {
	t.Helper()
	Eventually(t, func() string {
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

// Events are the reasons and notes of an object's events, as "Reason: note".
func (o *Operator) Events(t testing.TB, object client.Object) []string {
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

// Event waits for an object's event with that reason, and returns its note.
func (o *Operator) Event(t testing.TB, object client.Object, reason string) (note string) {
	t.Helper()
	Eventually(t, func() string {
		all := o.Events(t, object)
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
