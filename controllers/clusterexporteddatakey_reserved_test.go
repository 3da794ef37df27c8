package controllers_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Users who may write ClusterExportedDataKeys must not take the names of the operator's own Secrets, such as the record
// of PINs and the root keys of stores that are yet to be created.
func TestClusterExport_selectingTheOperatorsNamespace_writesNothingThere(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "All")
	ns := &corev1.Namespace{ObjectMeta: named(o.OwnNamespace)}
	o.Change(t, ns, func() {
		ns.Labels = merged(ns.Labels, map[string]string{labelTeam: o.OwnNamespace})
	})
	other := o.teamNamespaces(t, 1)[0]
	e := o.clusterExport(t, func(s *v1alpha1.ClusterExportedDataKeySpec) {
		s.Template.Target = &v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{Name: "keyconvoy-pin-record"}}
	})
	o.Ready(t, e)
	if e.Status.SelectedNamespaces != 1 {
		t.Errorf("%d namespaces are selected, want %s only", e.Status.SelectedNamespaces, other)
	}
	err := o.Get(t.Context(), types.NamespacedName{Namespace: o.OwnNamespace, Name: "keyconvoy-pin-record"}, &corev1.Secret{})
	if err == nil {
		t.Error("the export took the name of the operator's record of PINs")
	}
}
