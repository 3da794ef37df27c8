package reconciler

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// maxMessage limits the message of a condition. It is far below the limit of the API, because people read messages.
const maxMessage = 1024

// Summarize returns the conditions with those that follow from the end of a reconcile. It alone makes them. Ready is
// always there; Reconciling and Stalled are there only while True, and never both.
func Summarize(was []metav1.Condition, generation int64, err error, readyMessage string) []metav1.Condition {
	conditions := slices.Clone(was)
	set := func(conditionType string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&conditions, metav1.Condition{
			Type: conditionType, Status: status, Reason: reason, Message: bounded(message), ObservedGeneration: generation,
		})
	}
	e := From(err)
	switch {
	case e == nil:
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonSucceeded, readyMessage)
	case e.Class == Terminal:
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, e.Reason, e.Message)
		set(v1alpha1.ConditionStalled, metav1.ConditionTrue, e.Reason, e.Message)
	default:
		set(v1alpha1.ConditionReady, metav1.ConditionFalse, e.Reason, e.Message)
		set(v1alpha1.ConditionReconciling, metav1.ConditionTrue, e.Reason, e.Message)
	}
	if e == nil || e.Class == Terminal {
		meta.RemoveStatusCondition(&conditions, v1alpha1.ConditionReconciling)
	}
	if e == nil || e.Class != Terminal {
		meta.RemoveStatusCondition(&conditions, v1alpha1.ConditionStalled)
	}
	return conditions
}

func bounded(message string) string {
	if runes := []rune(message); len(runes) > maxMessage {
		return string(runes[:maxMessage-1]) + "…"
	}
	return message
}

// PatchStatus writes the changes of the status since before. If nothing changed, it makes no request. The operator is
// the only writer of the status, so the patch needs no lock.
func PatchStatus(ctx context.Context, c client.Client, before, after Object) error {
	return patchStatus(ctx, c, before, after, false)
}

// patchStatus is PatchStatus. If onlyIfUnchanged is set, it fails for an object that was changed since before.
func patchStatus(ctx context.Context, c client.Client, before, after Object, onlyIfUnchanged bool) error {
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	patch, err := statusPatch(before, after, onlyIfUnchanged)
	if err != nil {
		return err
	}
	return c.Status().Patch(ctx, after, client.RawPatch(types.JSONPatchType, patch))
}

// operation is one operation of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// statusPatch contains the changed fields of the status. It begins with a test of the UID, so that another object
// that meanwhile got the name does not get this status.
func statusPatch(before, after Object, onlyIfUnchanged bool) ([]byte, error) {
	was, err := statusFields(before)
	if err != nil {
		return nil, err
	}
	is, err := statusFields(after)
	if err != nil {
		return nil, err
	}
	patch := []operation{{"test", "/metadata/uid", after.GetUID()}}
	if onlyIfUnchanged {
		patch = append(patch, operation{"test", "/metadata/resourceVersion", before.GetResourceVersion()})
	}
	if len(before.GetConditions()) == 0 { // which every status has: the object may have none yet
		return json.Marshal(append(patch, operation{"add", "/status", is}))
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		if _, ok := is[name]; !ok {
			patch = append(patch, operation{"remove", "/status/" + name, nil})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(is)) {
		if !bytes.Equal(was[name], is[name]) {
			patch = append(patch, operation{"add", "/status/" + name, is[name]})
		}
	}
	return json.Marshal(patch)
}

// statusFields are the fields of an object's status, as JSON.
func statusFields(o Object) (map[string]json.RawMessage, error) {
	text, err := json.Marshal(o.GetStatus())
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	err = json.Unmarshal(text, &fields)
	return fields, err
}
