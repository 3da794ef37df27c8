package controllers_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestClusterExport_selectorThatIsNone_isRefused_andLeavesWhatIsThere(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	ns := o.teamNamespaces(t, 1)[0]
	e := o.clusterExport(t)
	o.Ready(t, e)
	o.Change(t, e, func() {
		e.Spec.NamespaceSelector.MatchLabels["the name of no label"] = "x"
	})
	o.Stalls(t, e, "InvalidParameter", "namespaceSelector", "In, NotIn, Exists and DoesNotExist")
	if export := o.exportIn(t, ns); !export.DeletionTimestamp.IsZero() {
		t.Error("the export goes")
	}
}

func TestClusterExport_toNoNamespace_saysSo(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	e := o.clusterExport(t)
	o.Ready(t, e)
	o.counts(t, e, 0, 0, 0)
	if message := meta.FindStatusCondition(e.Status.Conditions, v1alpha1.ConditionReady).Message; !strings.Contains(message, "No namespace matches spec.namespaceSelector") {
		t.Errorf("the message is %q", message)
	}
	// kubectl prints the counts, which must not be missing.
	raw := &unstructured.Unstructured{}
	raw.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ClusterExportedDataKey"))
	if err := o.Env.Client.Get(t.Context(), client.ObjectKeyFromObject(e), raw); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"selectedNamespaces", "readyNamespaces", "failedNamespaces"} {
		if count, found, err := unstructured.NestedInt64(raw.Object, "status", name); !found || count != 0 || err != nil {
			t.Errorf("status.%s is %d, %t, %v", name, count, found, err)
		}
	}

	o.teamNamespaces(t, 1)
	o.counts(t, e, 1, 1, 0)
	o.Ready(t, e)
	if message := meta.FindStatusCondition(e.Status.Conditions, v1alpha1.ConditionReady).Message; !strings.Contains(message, "exported to every selected namespace") {
		t.Errorf("the message is %q", message)
	}
}

func TestClusterExport_ownerWhoDoesNotConsent_isNotAskedTwice_andMayConsentLater(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	namespaces := o.teamNamespaces(t, 12)
	e := o.clusterExport(t)
	o.counts(t, e, 12, 0, 12)
	o.Stalls(t, e, v1alpha1.ReasonNamespacesFailed, "failed in all of the selected namespaces (ForbiddenNoPermission)", "status.failures")
	// The first few by name, and no more: a status is bounded.
	slices.Sort(namespaces)
	var want []v1alpha1.NamespaceFailure
	for _, ns := range namespaces[:10] {
		want = append(want, v1alpha1.NamespaceFailure{Namespace: v1alpha1.NamespaceName(ns), Reason: "ForbiddenNoPermission"})
	}
	if !slices.Equal(e.Status.Failures, want) {
		t.Errorf("the failures are %v", e.Status.Failures)
	}
	if n := o.Calls()["ExportDataKey"]; n != 0 {
		t.Errorf("the module was asked %d times", n)
	}
	o.Event(t, e, v1alpha1.ReasonNamespacesFailed)

	key := importedKey("key")
	key.Namespace = o.Namespace
	o.Change(t, key, func() { consenting("All")(&key.Spec) })
	o.Ready(t, e)
	o.counts(t, e, 12, 12, 0)
	if len(e.Status.Failures) != 0 {
		t.Errorf("there are still failures: %v", e.Status.Failures)
	}
}

func TestClusterExport_oneNamespaceThatFails_doesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	namespaces := o.teamNamespaces(t, 3)
	for i, text := range []string{"no key at all", string(rsaRecipient().pem())} { // the third has none
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[i], Name: "recipient"}, Data: map[string]string{"key": text}}
		o.Make(t, m)
	}
	e := o.clusterExport(t, toEachConfigMap)
	o.counts(t, e, 3, 1, 1)
	o.Stalls(t, e, v1alpha1.ReasonNamespacesFailed, "failed in some of the selected namespaces (InvalidParameter)")
	if want := (v1alpha1.NamespaceFailure{Namespace: v1alpha1.NamespaceName(namespaces[0]), Reason: "InvalidParameter"}); e.Status.Failures[0] != want {
		t.Errorf("the failure is %v", e.Status.Failures)
	}
	o.opensIn(t, namespaces[1], rsaRecipient())

	broken := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[0], Name: "recipient"}}
	o.Change(t, broken, func() { broken.Data["key"] = string(otherRSARecipient().pem()) })
	o.counts(t, e, 3, 2, 0)
	o.Waits(t, e, v1alpha1.ReasonNamespacesPending)
	o.Make(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[2], Name: "recipient"}, Data: map[string]string{"key": string(rsaRecipient().pem())}})
	o.Ready(t, e)
	// One data key, under the key that each namespace has.
	first := o.opensIn(t, namespaces[0], otherRSARecipient())
	for _, ns := range namespaces[1:] {
		if !bytes.Equal(o.opensIn(t, ns, rsaRecipient()), first) {
			t.Errorf("%s got another data key", ns)
		}
	}
}

func TestClusterExport_takesEachNamespacesSecret(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	namespaces := o.teamNamespaces(t, 2)
	for i, r := range []recipient{rsaRecipient(), otherRSARecipient()} {
		o.Make(t, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespaces[i], Name: "tls"}, Data: map[string][]byte{"tls.crt": r.certificate(t, 1)},
		})
	}
	e := o.clusterExport(t, func(s *v1alpha1.ClusterExportedDataKeySpec) {
		s.Template.PublicKey = v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceSecret, SecretKeyRef: &v1alpha1.EntryReference{Name: "tls", Key: "tls.crt"}}
	})
	o.Ready(t, e)
	if !bytes.Equal(o.opensIn(t, namespaces[0], rsaRecipient()), o.opensIn(t, namespaces[1], otherRSARecipient())) {
		t.Error("the namespaces got different data keys")
	}
}

func TestClusterExport_followsNamespaces(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	staying, leaving, coming := o.teamNamespaces(t, 1)[0], o.teamNamespaces(t, 1)[0], o.Env.Namespace(t)
	e := o.clusterExport(t)
	o.Ready(t, e)
	o.counts(t, e, 2, 2, 0)

	o.relabel(t, coming, o.OwnNamespace)
	o.counts(t, e, 3, 3, 0)
	left := o.exportIn(t, leaving)
	o.relabel(t, leaving, "other")
	o.counts(t, e, 2, 2, 0)
	o.Gone(t, left)
	// The test's API server has no namespace controller: one that is deleted stays, marked for deletion.
	ended := o.exportIn(t, coming)
	o.Remove(t, &corev1.Namespace{ObjectMeta: named(coming)})
	o.counts(t, e, 1, 1, 0)
	o.Gone(t, ended)
	newest := o.teamNamespaces(t, 1)[0]
	o.counts(t, e, 2, 2, 0)
	o.Ready(t, e)
	for _, ns := range []string{staying, newest} {
		export := o.exportIn(t, ns)
		if !metav1.IsControlledBy(export, e) {
			t.Errorf("the export in %s would not go with what made it: %v", ns, export.OwnerReferences)
		}
	}

	o.Change(t, e, func() { e.Spec.NamespaceSelector.MatchLabels[labelTeam] = "no-such-team" })
	o.counts(t, e, 0, 0, 0)
	o.Ready(t, e)
}

func TestClusterExport_foreignExportOfItsName_isLeftAlone(t *testing.T) {
	t.Parallel()
	for sentence, make := range map[string]func(*operator, testing.TB, *v1alpha1.ExportedDataKey){
		"without an owner": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) { o.Make(t, e) },
		"of another one of that name": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
			former := o.newClusterExport()
			former.UID = "00000000-0000-4000-8000-000000000000"
			e.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(former, v1alpha1.GroupVersion.WithKind("ClusterExportedDataKey"))}
			o.Make(t, e)
		},
		// Without the operator's mark its cache does not show it, as when it came just now.
		"that the operator does not know of": func(o *operator, t testing.TB, e *v1alpha1.ExportedDataKey) {
			if err := o.Create(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			o := startToSpread(t, "All")
			namespaces := o.teamNamespaces(t, 2)
			foreign := newExport(o.OwnNamespace, func(s *v1alpha1.ExportedDataKeySpec) { s.DryRun = true })
			foreign.Namespace = namespaces[0]
			make(o, t, foreign)
			e := o.clusterExport(t)
			o.Stalls(t, e, v1alpha1.ReasonNamespacesFailed)
			o.counts(t, e, 2, 1, 1)
			if want := (v1alpha1.NamespaceFailure{Namespace: v1alpha1.NamespaceName(namespaces[0]), Reason: v1alpha1.ReasonTargetNotOwned}); e.Status.Failures[0] != want {
				t.Errorf("the failure is %v", e.Status.Failures)
			}
			there := o.exportIn(t, namespaces[0])
			if there.Generation != 1 || metav1.IsControlledBy(there, e) || there.UID != foreign.UID {
				t.Errorf("it was changed: %+v", there)
			}
			if there.Labels[harness.LabelOperator] == "" { // the operator is not notified of its deletion either
				o.relabel(t, namespaces[0], "other")
				o.counts(t, e, 1, 1, 0)
				o.Remove(t, there)
				o.relabel(t, namespaces[0], o.OwnNamespace)
			} else {
				o.Remove(t, there)
			}
			o.Ready(t, e)
			o.counts(t, e, 2, 2, 0)
		})
	}
}

func TestClusterExport_changesByHand_areRepaired(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	ns := o.teamNamespaces(t, 1)[0]
	e := o.clusterExport(t, func(s *v1alpha1.ClusterExportedDataKeySpec) {
		s.Template.Target = &v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"a": "b"}}}
	})
	o.Ready(t, e)
	want := o.exportIn(t, ns).Spec
	for sentence, change := range map[string]func(*v1alpha1.ExportedDataKeySpec){
		"another recipient":            toBlob(otherRSARecipient().public.Base64()),
		"a recipient of another sort":  toConfigMap("mine", "key"),
		"a field that was not there":   func(s *v1alpha1.ExportedDataKeySpec) { s.DryRun = true },
		"another data key":             ofDataKey("other"),
		"another algorithm":            withRSA("RSAES_OAEP_SHA_1"),
		"one more label on the Secret": func(s *v1alpha1.ExportedDataKeySpec) { s.Target.Labels["c"] = "d" },
		"no label on the Secret":       func(s *v1alpha1.ExportedDataKeySpec) { s.Target = nil },
	} {
		export := o.exportIn(t, ns)
		o.Change(t, export, func() { change(&export.Spec) })
		changed := export.Generation
		o.Until(t, export, func() string {
			if export.Generation > changed && equality.Semantic.DeepEqual(export.Spec, want) {
				return ""
			}
			return sentence + " stays"
		})
		o.Ready(t, export)
		o.opensIn(t, ns, rsaRecipient())
	}

	export := o.exportIn(t, ns)
	o.Remove(t, export)
	harness.Eventually(t, func() string {
		there := &v1alpha1.ExportedDataKey{}
		if err := o.Get(t.Context(), client.ObjectKeyFromObject(export), there); err != nil || there.UID == export.UID {
			return fmt.Sprintf("it is not made again: %v", err)
		}
		return ""
	})
	// The Secret of the former one goes with it, but nothing collects garbage here.
	o.Remove(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: export.Name}})
	o.Ready(t, e)
}

// Editors of exports can change owner references. The status still says what made the export.
func TestClusterExport_whoseOwnerWasTakenOff_isGivenItBack(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	ns := o.teamNamespaces(t, 1)[0]
	e := o.clusterExport(t)
	o.Ready(t, e)
	export := o.exportIn(t, ns)
	o.Change(t, export, func() { export.OwnerReferences = nil })
	o.Until(t, export, func() string {
		if !metav1.IsControlledBy(export, e) {
			return "it has no owner"
		}
		return ""
	})
	o.Ready(t, e)
	o.counts(t, e, 1, 1, 0)
}

func TestClusterExport_whoseOwnerWasTakenOff_goesWithItsNamespaceAllTheSame(t *testing.T) {
	t.Parallel()
	for sentence, hold := range map[string]func(*v1alpha1.ExportedDataKey){
		"without an owner": func(e *v1alpha1.ExportedDataKey) { e.OwnerReferences = nil },
		"without an owner, and with labels": func(e *v1alpha1.ExportedDataKey) {
			e.OwnerReferences, e.Labels["app.kubernetes.io/managed-by"] = nil, "me"
		},
		"with an owner of their own": func(e *v1alpha1.ExportedDataKey) {
			e.OwnerReferences[0].UID, e.OwnerReferences[0].Name = "00000000-0000-4000-8000-000000000000", "mine"
		},
		"without an owner, and held by a finalizer": func(e *v1alpha1.ExportedDataKey) {
			e.OwnerReferences, e.Finalizers = nil, []string{"example.com/held"}
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			o := startToSpread(t, "All")
			ns := o.teamNamespaces(t, 1)[0]
			e := o.clusterExport(t)
			o.Ready(t, e)
			export := o.exportIn(t, ns)
			o.Stop(t)
			o.Change(t, export, func() { hold(export) })
			o.relabel(t, ns, "other")
			o.Start(t)
			o.Until(t, e, func() string {
				if e.Status.SelectedNamespaces != 0 {
					return "the namespace is still counted"
				}
				return ""
			})
			if len(export.Finalizers) > 0 {
				o.Gone(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: export.Name}})
				o.Change(t, export, func() { export.Finalizers = nil })
			}
			o.Gone(t, export)
			o.counts(t, e, 0, 0, 0)
		})
	}
}

// Ready speaks of the template as it is, from the first moment.
func TestClusterExport_anotherTemplate_isFollowedEverywhere(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	namespaces := o.teamNamespaces(t, 3)
	e := o.clusterExport(t)
	o.Ready(t, e)
	o.Change(t, e, func() { e.Spec.Template.PublicKey.Blob = otherRSARecipient().public.Base64() })
	o.Ready(t, e)
	for _, ns := range namespaces {
		o.opensIn(t, ns, otherRSARecipient())
	}
}

func TestClusterExport_unchanged_costsNothing(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	namespaces := o.teamNamespaces(t, 3)
	foreign := newExport(o.OwnNamespace)
	foreign.Namespace = namespaces[2]
	o.Make(t, foreign)
	e := o.clusterExport(t)
	o.counts(t, e, 3, 2, 1)
	o.Event(t, e, v1alpha1.ReasonNamespacesFailed)
	o.Waits(t, foreign, v1alpha1.ReasonKeyNotReady)
	o.Settled(t, e)
	version := e.ResourceVersion

	o.uncounted(t)
	o.Again(t, e, func() { o.relabel(t, o.Env.Namespace(t), "other") })
	if w := o.Writes(); len(w) != 0 {
		t.Errorf("it wrote: %v", w)
	}
	o.Restart(t)
	o.Settled(t, e)
	o.Again(t, e, func() { o.relabel(t, o.Env.Namespace(t), "other") })
	if w := o.Writes(); len(w) != 0 {
		t.Errorf("the restart wrote: %v", w)
	}
	if calls := o.Calls(); len(calls) != 0 {
		t.Errorf("the restart called the module: %v", calls)
	}
	if o.Read(t, e); e.ResourceVersion != version {
		t.Error("it changed")
	}
}

// refusal answers the making of exports in one namespace with a status of its own.
type refusal struct {
	namespace string
	status    atomic.Int32
}

func (r *refusal) option() harness.Option {
	return harness.WithConfig(func(cfg *rest.Config) {
		cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				status := int(r.status.Load())
				if status == 0 || req.Method != http.MethodPost || !strings.HasSuffix(req.URL.Path, "/exporteddatakeys") ||
					!strings.Contains(req.URL.Path, "/"+r.namespace+"/") {
					return next.RoundTrip(req)
				}
				body := harness.JSON(metav1.Status{
					TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(status),
					Reason: map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 422: metav1.StatusReasonInvalid, 500: metav1.StatusReasonInternalError}[status],
				})
				return &http.Response{
					StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Request: req,
					Body: io.NopCloser(strings.NewReader(body)),
				}, nil
			})
		})
	})
}

func TestClusterExport_refusedByTheServerInOneNamespace_isMadeInTheOthers(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		status int32
		reason string
		heals  bool
	}{
		"for good, by a quota or a policy":   {http.StatusForbidden, "ForbiddenNoPermission", false},
		"for good, by a policy of any sort":  {http.StatusUnprocessableEntity, "InvalidParameter", false},
		"for a while, by a server out of it": {http.StatusInternalServerError, v1alpha1.ReasonAPIServer, true},
	} {
		t.Run(sentence, func(t *testing.T) {
			r := &refusal{namespace: "none-yet"}
			o := startToSpread(t, "All", r.option())
			namespaces := o.teamNamespaces(t, 3)
			r.namespace = namespaces[0]
			r.status.Store(tc.status)
			e := o.clusterExport(t)
			o.counts(t, e, 3, 2, 1)
			if want := (v1alpha1.NamespaceFailure{Namespace: v1alpha1.NamespaceName(namespaces[0]), Reason: tc.reason}); e.Status.Failures[0] != want {
				t.Errorf("the failure is %v", e.Status.Failures)
			}
			// Others still come and go.
			o.relabel(t, namespaces[2], "other")
			o.counts(t, e, 2, 1, 1)
			if !tc.heals {
				o.Waits(t, e, v1alpha1.ReasonNamespacesFailed)
				return
			}
			o.Waits(t, e, v1alpha1.ReasonAPIServer)
			o.Restart(t) // it has failed so often that it would wait for a minute before it tries again
			o.Settled(t, e)
			o.ReconciledSince(t, e, 1) // more than once: what it finds at its start may wake it, too
			r.status.Store(0)
			o.Ready(t, e)
		})
	}
}

// What many exports say at once is counted a few times.
func TestClusterExport_toManyNamespaces_isCountedAFewTimes(t *testing.T) {
	t.Parallel()
	const n = 200
	o := startToSpread(t, "All")
	o.teamNamespaces(t, n)
	o.uncounted(t)
	begun := time.Now()
	e := o.clusterExport(t, func(s *v1alpha1.ClusterExportedDataKeySpec) {
		s.Template.PublicKey.Blob = sm2Recipient().public.Base64()
		s.Template.WrappingKeySpec, s.Template.WrappingAlgorithm = "EC_SM2", "SM2PKE"
	})
	o.readyInTheEnd(t, e)
	o.counts(t, e, n, n, 0)
	w, seconds := o.Writes(), int(time.Since(begun)/time.Second)
	if w["create exporteddatakeys"] != n || w["patch exporteddatakeys"] != 0 {
		t.Errorf("to make %d exports it wrote: %v", n, w)
	}
	// Once a second while they come, and a few times more.
	if got := w["patch clusterexporteddatakeys/status"]; got > min(seconds+5, n/2) {
		t.Errorf("it counted %d times in %d seconds", got, seconds)
	}
}
