package reconciler

import (
	"context"
	"encoding/json"
	"reflect"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// maxMessage bounds a condition's message, far below the API's limit: it is for people.
const maxMessage = 1024

// Summarize sets all conditions from the end of a reconcile. It alone writes them. Ready is always
// there; Reconciling and Stalled are there only while True, and never both.
func Summarize(conditions *[]metav1.Condition, generation int64, err error, readyMessage string) {
	set := func(conditionType string, status metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(conditions, metav1.Condition{
			Type: conditionType, Status: status, Reason: reason, Message: bounded(message), ObservedGeneration: generation,
		})
	}
	e := From(err)
	if e == nil {
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonSucceeded, readyMessage)
		meta.RemoveStatusCondition(conditions, v1alpha1.ConditionReconciling)
		meta.RemoveStatusCondition(conditions, v1alpha1.ConditionStalled)
		return
	}
	set(v1alpha1.ConditionReady, metav1.ConditionFalse, e.Reason, e.Message)
	if e.Class == Terminal {
		set(v1alpha1.ConditionStalled, metav1.ConditionTrue, e.Reason, e.Message)
		meta.RemoveStatusCondition(conditions, v1alpha1.ConditionReconciling)
		return
	}
	set(v1alpha1.ConditionReconciling, metav1.ConditionTrue, e.Reason, e.Message)
	meta.RemoveStatusCondition(conditions, v1alpha1.ConditionStalled)
}

func bounded(message string) string {
	if runes := []rune(message); len(runes) > maxMessage {
		return string(runes[:maxMessage-1]) + "…"
	}
	return message
}

// PatchStatus writes what changed in the status since before was taken, and nothing when nothing did.
// The operator is the status's only writer, so a merge patch needs no lock.
func PatchStatus(ctx context.Context, c client.Client, before, after client.Object) error {
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	patch, err := statusPatch(before, after)
	if err != nil {
		return err
	}
	return c.Status().Patch(ctx, after, client.RawPatch(types.MergePatchType, patch))
}

// statusPatch compares the statuses only. client.MergeFrom would write and read both objects whole, which are several
// times as long.
func statusPatch(before, after client.Object) ([]byte, error) {
	was, err := json.Marshal(statusOf(before))
	if err != nil {
		return nil, err
	}
	is, err := json.Marshal(statusOf(after))
	if err != nil {
		return nil, err
	}
	changed, err := jsonpatch.CreateMergePatch(was, is)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]json.RawMessage{"status": changed})
}

// statusOf returns an object's field Status, which every kind with conditions has.
func statusOf(o client.Object) any {
	return reflect.ValueOf(o).Elem().FieldByName("Status").Interface()
}
