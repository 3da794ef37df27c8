package harness

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	kstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Hide names bytes that no status, event or log line may show, in any usual encoding.
func (o *Operator) Hide(name string, secret []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hidden[name] = bytes.Clone(secret)
}

// HideAllOf hides what another operator hides.
func (o *Operator) HideAllOf(another *Operator) {
	another.mu.Lock()
	defer another.mu.Unlock()
	for name, secret := range another.hidden {
		o.Hide(name, secret)
	}
}

// Objects are all that the operator serves.
func (o *Operator) Objects(t testing.TB) []client.Object {
	t.Helper()
	var all []client.Object
	for _, list := range []client.ObjectList{
		&v1alpha1.KeyStoreList{}, &v1alpha1.ClusterKeyStoreList{}, &v1alpha1.ImportedKeyList{}, &v1alpha1.GeneratedKeyList{},
		&v1alpha1.DataKeyList{}, &v1alpha1.ExportedDataKeyList{}, &v1alpha1.ClusterExportedDataKeyList{},
		&v1alpha1.AccessKeyList{},
	} {
		// The test's own context has ended when its cleanup runs.
		if err := o.List(context.Background(), list, client.MatchingLabels(o.Mark())); err != nil {
			t.Fatal(err)
		}
		if err := meta.EachListItem(list, func(item runtime.Object) error {
			all = append(all, item.(client.Object))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// checkStatuses checks the rules of every status, once the operator has seen each object.
func (o *Operator) checkStatuses(t *testing.T) {
	t.Helper()
	if o.stopped == nil || t.Failed() {
		return
	}
	Eventually(t, func() string {
		for _, object := range o.Objects(t) {
			if problem := statusProblem(object); problem != "" {
				return fmt.Sprintf("%T %s: %s: %s", object, object.GetName(), problem, StatusJSON(object))
			}
		}
		return ""
	})
}

// statusProblem says which rule a status breaks, or nothing.
func statusProblem(object client.Object) string {
	conditions, observed := StatusOf(object)
	if observed != object.GetGeneration() {
		return "observedGeneration is not current"
	}
	for _, c := range conditions {
		switch {
		case c.ObservedGeneration != object.GetGeneration():
			return c.Type + " has another observedGeneration"
		case c.Type != v1alpha1.ConditionReady && c.Status != metav1.ConditionTrue:
			return c.Type + " exists although it is not True"
		case c.Message == "" || len([]rune(c.Message)) > 1024 || !strings.HasSuffix(c.Message, "."):
			return c.Type + "'s message is not a sentence of at most 1024 characters"
		}
	}
	isReady := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	reconciling := meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionReconciling)
	stalled := meta.IsStatusConditionTrue(conditions, v1alpha1.ConditionStalled)
	switch {
	case isReady == nil:
		return "there is no Ready"
	case reconciling && stalled:
		return "Reconciling and Stalled at once"
	}
	want := kstatus.InProgressStatus
	if isReady.Status == metav1.ConditionTrue {
		want = kstatus.CurrentStatus
	} else if stalled {
		want = kstatus.FailedStatus
	}
	if got := kstatusOf(object); got != want {
		return fmt.Sprintf("kstatus computes %s, and Ready is %s", got, isReady.Status)
	}
	return ""
}

// kstatusOf returns what Flux, Argo CD and kubectl wait make of a status.
func kstatusOf(object client.Object) kstatus.Status {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		panic(err)
	}
	result, err := kstatus.Compute(&unstructured.Unstructured{Object: content})
	if err != nil {
		panic(err)
	}
	return result.Status
}

// CheckHidden looks for secrets in all that the operator said.
func (o *Operator) CheckHidden(t *testing.T) {
	t.Helper()
	said := map[string]string{"the log": o.Log.String(), "the audit log": o.Audit.String()}
	uids := map[string]bool{}
	for _, object := range o.Objects(t) {
		uids[string(object.GetUID())] = true
		said[fmt.Sprintf("the status of %T %s", object, object.GetName())] = StatusJSON(object)
	}
	var list eventsv1.EventList
	if err := o.List(context.Background(), &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if uids[string(e.Regarding.UID)] {
			said["the event "+e.Reason] = e.Note
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, secret := range o.hidden {
		for where, text := range said {
			for _, shape := range []string{
				string(secret), strings.TrimRight(base64.StdEncoding.EncodeToString(secret), "="), hex.EncodeToString(secret),
				strings.Trim(JSON(string(secret)), `"`),
			} {
				if strings.Contains(text, shape) {
					t.Errorf("%s shows the %s", where, name)
				}
			}
		}
	}
}

// checkCaches checks that Secrets and ConfigMaps were never watched whole.
func (o *Operator) checkCaches(t *testing.T) {
	t.Helper()
	for _, r := range o.Requests.Requests() {
		if r.Verb == "watch" && (r.Resource == "secrets" || r.Resource == "configmaps") && !r.Metadata {
			t.Errorf("The operator watches whole %s", r.Resource)
		}
	}
}

// StatusOf returns what all kinds have in their status.
func StatusOf(object client.Object) (conditions []metav1.Condition, observedGeneration int64) {
	switch o := object.(type) {
	case *v1alpha1.KeyStore:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ClusterKeyStore:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ImportedKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.GeneratedKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.DataKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ExportedDataKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.ClusterExportedDataKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	case *v1alpha1.AccessKey:
		return o.Status.Conditions, o.Status.ObservedGeneration
	}
	panic(fmt.Sprintf("%T has no status of ours", object))
}

// StatusJSON returns an object's status as JSON.
func StatusJSON(object client.Object) string {
	var whole struct{ Status json.RawMessage }
	if err := json.Unmarshal([]byte(JSON(object)), &whole); err != nil {
		panic(err)
	}
	return string(whole.Status)
}
