package secrets_test

import (
	"maps"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func TestEntry_readsWhatIsThereAndItsVersion(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"k": {0xff}, "empty": {}}})
	f.make(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"k": "text"}, BinaryData: map[string][]byte{"b": {0xff}}})
	for name, c := range map[string]struct {
		kind   secrets.Kind
		object string
		entry  string
		want   []byte
		there  bool // the object
	}{
		"no Secret":                {secrets.Secret, "c", "k", nil, false},
		"no ConfigMap":             {secrets.ConfigMap, "s", "k", nil, false},
		"no entry in a Secret":     {secrets.Secret, "s", "b", nil, true},
		"no entry in a ConfigMap":  {secrets.ConfigMap, "c", "x", nil, true},
		"an entry of a Secret":     {secrets.Secret, "s", "k", []byte{0xff}, true},
		"an empty entry":           {secrets.Secret, "s", "empty", []byte{}, true},
		"a text of a ConfigMap":    {secrets.ConfigMap, "c", "k", []byte("text"), true},
		"binary data of ConfigMap": {secrets.ConfigMap, "c", "b", []byte{0xff}, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewWithT(t)
			ref := f.secrets.Ref(f.object("e"), c.kind, c.object)
			got, version, err := f.secrets.Entry(t.Context(), ref, c.entry)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got).To(Equal(c.want))
			m, err := f.secrets.Look(t.Context(), ref)
			g.Expect(err).NotTo(HaveOccurred())
			if !c.there {
				g.Expect(m).To(BeNil())
				g.Expect(version).To(BeEmpty())
				return
			}
			g.Expect(version).To(Equal(secrets.Version(m)))
			g.Expect(version).To(HavePrefix(string(m.UID) + "/"))
		})
	}
}

func TestVersion_isEmptyForWhatDoesNotExist(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	g.Expect(secrets.Version(&corev1.Secret{})).To(BeEmpty())
}

func TestDigest_tellsEveryTwoContentsApart(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	contents := map[string]map[string][]byte{
		"nothing":                    {},
		"an empty entry":             {"a": {}},
		"an entry with an empty key": {"": []byte("a")},
		"one entry":                  {"a": []byte("b")},
		"key and value swapped":      {"b": []byte("a")},
		"the border moved":           {"ab": {}},
		"two entries":                {"a": []byte("b"), "c": []byte("d")},
		"their values swapped":       {"a": []byte("d"), "c": []byte("b")},
		"both in one":                {"a": []byte("bcd")},
	}
	seen := map[string]string{}
	for name, content := range contents {
		d := secrets.Digest(content)
		g.Expect(d).To(MatchRegexp("^[0-9a-f]{64}$"))
		g.Expect(seen).NotTo(HaveKey(d), "%s is like %s", name, seen[d])
		seen[d] = name
		g.Expect(secrets.Digest(maps.Clone(content))).To(Equal(d))
	}
	g.Expect(secrets.Digest(nil)).To(Equal(secrets.Digest(contents["nothing"])))
}

// The caches hold the metadata of every Secret of the cluster, so what they keep of others' decides how
// much memory the operator needs, and whether it knows what kubectl left in an annotation.
func TestStripMetadata_keepsNothingOfOthersButTheirName(t *testing.T) {
	t.Parallel()
	meta := func(labels map[string]string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: "s", UID: "u", ResourceVersion: "1", Labels: labels,
			Annotations: map[string]string{
				corev1.LastAppliedConfigAnnotation: `{"data":{"password":"…"}}`, "note": "n", "keyconvoy.io/request-id": "r", "keyconvoy.io/target-digest": "k",
			},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
			OwnerReferences: []metav1.OwnerReference{{Name: "owner"}},
		}}
	}
	g := NewWithT(t)
	strip := func(in any) metav1.ObjectMeta {
		out, err := secrets.StripMetadata(in)
		g.Expect(err).NotTo(HaveOccurred())
		return out.(*metav1.PartialObjectMetadata).ObjectMeta
	}
	g.Expect(strip(meta(map[string]string{"app": "x"}))).To(Equal(metav1.ObjectMeta{Name: "s", UID: "u", ResourceVersion: "1"}))
	ours := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, "app": "x"}
	g.Expect(strip(meta(ours))).To(Equal(metav1.ObjectMeta{
		Name: "s", UID: "u", ResourceVersion: "1", Labels: ours, Annotations: map[string]string{"note": "n", "keyconvoy.io/target-digest": "k"},
	}))
	noted := meta(ours)
	delete(noted.Annotations, "note")
	delete(noted.Annotations, "keyconvoy.io/target-digest")
	g.Expect(strip(noted).Annotations).To(BeNil())
	g.Expect(secrets.StripMetadata("no object")).To(Equal("no object"))
}
