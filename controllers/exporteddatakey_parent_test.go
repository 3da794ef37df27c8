package controllers

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
)

// Editors of exports can write owner references. The status keeps the ClusterExportedDataKey that was known first.
func TestRememberParent(t *testing.T) {
	t.Parallel()
	owner := func(apiVersion, kind, name, uid string) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, UID: types.UID(uid), Controller: ptr.To(true)}}
	}
	const parent, other = "b0c1d2e3-0000-4000-8000-00000000000a", "b0c1d2e3-0000-4000-8000-00000000000b"
	version := v1alpha1.GroupVersion.String()
	for sentence, c := range map[string]struct {
		known  string
		owners []metav1.OwnerReference
		want   string
	}{
		"the first one is remembered":                  {"", owner(version, "ClusterExportedDataKey", "e", parent), parent},
		"another one does not take its place":          {parent, owner(version, "ClusterExportedDataKey", "e", other), parent},
		"no owner does not remove it":                  {parent, nil, parent},
		"a kind of another group is not ours":          {"", owner("example.com/v1", "ClusterExportedDataKey", "e", other), ""},
		"one of another name did not make the export":  {"", owner(version, "ClusterExportedDataKey", "f", other), ""},
		"an odd UID is not a ClusterExportedDataKey's": {"", owner(version, "ClusterExportedDataKey", "e", "urn:uuid:"+other), ""},
		"another kind does not make exports":           {"", owner(version, "ExportedDataKey", "e", other), ""},
	} {
		e := &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Name: "e", OwnerReferences: c.owners}}
		e.Status.Parent = c.known
		if rememberParent(e); e.Status.Parent != c.want {
			t.Errorf("%s: %q, want %q", sentence, e.Status.Parent, c.want)
		}
	}
}
