package controllers_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// consenting sets the owner's consent: exports in these namespaces.
func consenting(from string) func(*v1alpha1.ImportedKeySpec) {
	return func(s *v1alpha1.ImportedKeySpec) {
		s.ExportPolicy = &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: from}}
	}
}

// startToSpread starts an operator with a data key, named dek, that may be exported in that namespaces.
func startToSpread(t *testing.T, from string, options ...harness.Option) *operator {
	t.Helper()
	o := startOperator(t, options...)
	o.store(t, onSoftware)
	o.enabledKey(t, "key", nil, consenting(from))
	o.dataKey(t, "dek")
	return o
}

const labelTeam = "team"

// team is the label that selects the test's namespaces.
func (o *operator) team() map[string]string { return map[string]string{labelTeam: o.OwnNamespace} }

// teamNamespaces makes namespaces that are selected.
func (o *operator) teamNamespaces(t testing.TB, n int) []string {
	t.Helper()
	names := make([]string, n)
	for i := range names {
		names[i] = o.Env.NamespaceWith(t, o.team())
	}
	return names
}

// relabel puts a namespace into the team, or takes it out.
func (o *operator) relabel(t testing.TB, namespace, team string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: named(namespace)}
	o.Change(t, ns, func() { ns.Labels[labelTeam] = team })
}

type clusterChange = func(*v1alpha1.ClusterExportedDataKeySpec)

// newClusterExport exports the data key dek to the team's namespaces, to the RSA recipient, unless it is
// changed.
func (o *operator) newClusterExport(change ...clusterChange) *v1alpha1.ClusterExportedDataKey {
	e := &v1alpha1.ClusterExportedDataKey{ObjectMeta: named(o.OwnNamespace)}
	e.Spec.NamespaceSelector.MatchLabels = map[string]v1alpha1.LabelValue{labelTeam: v1alpha1.LabelValue(o.OwnNamespace)}
	e.Spec.Template = v1alpha1.ExportTemplate{
		DataKeyRef:        v1alpha1.NamespacedReference{Namespace: v1alpha1.NamespaceName(o.Namespace), Name: "dek"},
		PublicKey:         v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceBlob, Blob: rsaRecipient().public.Base64()},
		WrappingKeySpec:   "RSA_2048",
		WrappingAlgorithm: "RSAES_OAEP_SHA_256",
	}
	for _, c := range change {
		c(&e.Spec)
	}
	return e
}

func (o *operator) clusterExport(t testing.TB, change ...clusterChange) *v1alpha1.ClusterExportedDataKey {
	t.Helper()
	e := o.newClusterExport(change...)
	o.Make(t, e)
	return e
}

// toEachConfigMap takes each namespace's recipient from its ConfigMap recipient.
func toEachConfigMap(s *v1alpha1.ClusterExportedDataKeySpec) {
	s.Template.PublicKey = v1alpha1.DistributedPublicKeySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: "recipient", Key: "key"}}
}

// counts waits until the status counts that many namespaces.
func (o *operator) counts(t testing.TB, e *v1alpha1.ClusterExportedDataKey, all, ready, failed int32) {
	t.Helper()
	o.Until(t, e, func() string {
		s := e.Status
		if s.ObservedGeneration == e.Generation && s.SelectedNamespaces == all && s.ReadyNamespaces == ready && s.FailedNamespaces == failed {
			return ""
		}
		return fmt.Sprintf("want %d namespaces, %d ready, %d failed: %s", all, ready, failed, harness.StatusJSON(e))
	})
}

// exportIn is the ExportedDataKey of one namespace.
func (o *operator) exportIn(t testing.TB, namespace string) *v1alpha1.ExportedDataKey {
	t.Helper()
	e := &v1alpha1.ExportedDataKey{}
	if err := o.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: o.OwnNamespace}, e); err != nil {
		t.Fatal(err)
	}
	return e
}

// secretIn is a Secret of any namespace, or nil.
func (o *operator) secretIn(t testing.TB, namespace, name string) *corev1.Secret {
	t.Helper()
	s := &corev1.Secret{}
	err := o.Get(t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, s)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// opensIn opens what a namespace got.
func (o *operator) opensIn(t testing.TB, namespace string, to recipient) []byte {
	t.Helper()
	s := o.secretIn(t, namespace, o.OwnNamespace)
	if s == nil {
		t.Fatalf("%s has no Secret", namespace)
	}
	plain, err := to.private.Unwrap(wrapping.Algorithm(s.Data["wrappingAlgorithm"]), "", s.Data["exportedDataKey"])
	if err != nil {
		t.Fatalf("the recipient in %s cannot open its export: %v", namespace, err)
	}
	o.Hide("data key", plain)
	return plain
}
