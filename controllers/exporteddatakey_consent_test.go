package controllers_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// The key store serves the key's namespace, wherever the export is.
func TestExportedDataKey_keyStoreThatServesTheKeysNamespaceNoMore_isWithdrawnElsewhereToo(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	label := func(value string) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Namespace}}
		o.Change(t, ns, func() { ns.Labels = map[string]string{"keys": value} })
	}
	label("yes")
	store := o.clusterStore(t, onSoftware, func(s *v1alpha1.ClusterKeyStoreSpec) {
		s.AllowedNamespaces = &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"keys": "yes"}}
	})
	o.enabledKey(t, "key", nil, inClusterStore(store.Name), func(s *v1alpha1.ImportedKeySpec) {
		s.ExportPolicy = &v1alpha1.ExportPolicy{Namespaces: &v1alpha1.ExportNamespaces{From: "All"}}
	})
	k := o.dataKey(t, "dek")
	byName, byBlob := newExport("by-name"), newExport("by-blob", ofBlobUnder(o.Namespace, "key", k.Status.CiphertextBlob, nil))
	byName.Spec.DataKeyRef.Namespace = v1alpha1.NamespaceName(o.Namespace)
	elsewhere := o.Env.Namespace(t)
	byName.Namespace, byBlob.Namespace = elsewhere, elsewhere
	o.Make(t, byName, byBlob)
	o.Ready(t, byName, byBlob)

	label("no")
	for _, e := range []*v1alpha1.ExportedDataKey{byName, byBlob} {
		o.Stalls(t, e, "ForbiddenNoPermission", "does not allow this namespace")
		o.Gone(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: elsewhere, Name: e.Name}})
	}
	label("yes")
	o.Ready(t, byName, byBlob)
}
