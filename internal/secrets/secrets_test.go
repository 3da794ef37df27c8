package secrets_test

import (
	"maps"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

const ourType corev1.SecretType = "keyconvoy.io/test"

// target is a Secret as an ExportedDataKey with that UID writes one.
func (f fixture) target(name string, owner types.UID) secrets.Target {
	return secrets.Target{
		Key: f.key(name), Type: ourType, Data: map[string][]byte{"a": []byte("1"), "b": {0xff, 0}},
		Labels: map[string]string{"app": "ledger"}, Annotations: map[string]string{"note": "n"},
		Owner: metav1ac.OwnerReference().WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("ExportedDataKey").
			WithName(name).WithUID(owner).WithController(true).WithBlockOwnerDeletion(true),
	}
}

func TestApply_neverTouchesASecretThatTookTheName(t *testing.T) {
	t.Parallel()
	theirs := map[string][]byte{"theirs": []byte("x")}
	for name, c := range map[string]struct {
		there *corev1.Secret // nil when there is none
		uid   types.UID      // what the caller believes is there
	}{
		"a Secret of another type":                   {there: &corev1.Secret{Data: theirs}},
		"one of our type, without an owner":          {there: &corev1.Secret{Type: ourType, Data: theirs}},
		"one of our type with other values":          {there: &corev1.Secret{Type: ourType, Data: map[string][]byte{"a": []byte("2")}}},
		"one with the very same content":             {there: &corev1.Secret{Type: ourType, Data: map[string][]byte{"a": []byte("1"), "b": {0xff, 0}}}},
		"another one than was read":                  {there: &corev1.Secret{Type: ourType, Data: theirs}, uid: "7b4e2b3c-5b5e-4d2c-9b39-1f2f6d5b8a11"},
		"none any more where one was read":           {uid: "7b4e2b3c-5b5e-4d2c-9b39-1f2f6d5b8a11"},
		"an immutable one":                           {there: &corev1.Secret{Type: ourType, Data: theirs, Immutable: ptr.To(true)}},
		"one that another object controls":           {there: &corev1.Secret{Type: ourType, Data: theirs, ObjectMeta: controlled("9a1cf4ae-49a0-4c2c-8c1f-2a7bd5e0b6b1")}},
		"one that a backup brought back with labels": {there: &corev1.Secret{Type: ourType, Data: theirs, ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			if c.there != nil {
				there := c.there.DeepCopy()
				there.Name = "s"
				f.make(there)
			}
			want := f.target("s", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
			want.UID = c.uid
			_, err := f.secrets.Apply(t.Context(), want)
			f.Expect(secrets.IsTaken(err)).To(BeTrue(), "%v", err)
			got, err := f.secrets.Read(t.Context(), f.key("s"))
			f.Expect(err).NotTo(HaveOccurred())
			if c.there == nil {
				f.Expect(got).To(BeNil())
				return
			}
			f.Expect(got.Data).To(Equal(c.there.Data))
			f.Expect(got.Labels).To(Equal(c.there.Labels))
			f.Expect(got.OwnerReferences).To(HaveLen(len(c.there.OwnerReferences)))
		})
	}
}

func controlled(uid types.UID) metav1.ObjectMeta {
	return metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "ExportedDataKey", Name: "other", UID: uid, Controller: ptr.To(true),
	}}}
}

// Two who write under the same field manager see no conflict of fields, so that would not keep them apart.
func TestApply_makesASecretOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first := f.target("s", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
	first.Owner = nil
	_, err := f.secrets.Apply(t.Context(), first)
	f.Expect(err).NotTo(HaveOccurred())
	second := first
	second.Data = map[string][]byte{"a": []byte("2")}
	_, err = f.secrets.Apply(t.Context(), second)
	f.Expect(secrets.IsTaken(err)).To(BeTrue(), "%v", err)
	f.Expect(f.read("s").Data).To(Equal(first.Data))
}

func TestMade_knowsOnceWhatWasMadeHere(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	target := f.target("s", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
	ref, err := f.secrets.Apply(t.Context(), target)
	f.Expect(err).NotTo(HaveOccurred())
	made := f.read("s")
	f.Expect(f.secrets.Made(made)).To(BeTrue())
	f.Expect(f.secrets.Made(made)).To(BeFalse(), "asked again")

	// What replaces another, or was changed by somebody else since, is none of it.
	target.UID, target.Data = types.UID(ref.UID), map[string][]byte{"a": []byte("2")}
	_, err = f.secrets.Apply(t.Context(), target)
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(f.secrets.Made(f.read("s"))).To(BeFalse())
	other := f.target("other", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
	_, err = f.secrets.Apply(t.Context(), other)
	f.Expect(err).NotTo(HaveOccurred())
	changed := f.read("other")
	changed.ResourceVersion = "1"
	f.Expect(f.secrets.Made(changed)).To(BeFalse())
}

func TestApply_writesTheWholeSecretAndSaysHowItIs(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	want := f.target("s", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
	ref, err := f.secrets.Apply(t.Context(), want)
	f.Expect(err).NotTo(HaveOccurred())

	got := f.read("s")
	f.Expect(got.Type).To(Equal(ourType))
	f.Expect(got.Data).To(Equal(want.Data))
	f.Expect(got.Labels).To(Equal(map[string]string{"app": "ledger", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}))
	f.Expect(got.Annotations).To(Equal(map[string]string{"note": "n"}))
	f.Expect(got.Immutable).To(BeNil())
	f.Expect(metav1.IsControlledBy(got, &metav1.ObjectMeta{UID: *want.Owner.UID})).To(BeTrue())
	f.Expect(got.ManagedFields).To(HaveLen(1))
	f.Expect(got.ManagedFields[0].Manager).To(Equal(v1alpha1.ManagedBy))
	f.Expect(got.ManagedFields[0].Operation).To(Equal(metav1.ManagedFieldsOperationApply))
	f.Expect(ref).To(Equal(secrets.Reference(got)))
}

func TestApply_ofTheSameIsNoChange(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	want := f.target("s", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
	ref, err := f.secrets.Apply(t.Context(), want)
	f.Expect(err).NotTo(HaveOccurred())
	want.UID = types.UID(ref.UID)
	again, err := f.secrets.Apply(t.Context(), want)
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(again).To(Equal(ref))
}

func TestApply_takesBackWhatIsOursAndLeavesWhatOthersAdded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	want := f.target("s", "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa")
	ref, err := f.secrets.Apply(t.Context(), want)
	f.Expect(err).NotTo(HaveOccurred())

	s := f.read("s")
	s.Data["a"], s.Data["theirs"] = []byte("changed"), []byte("x")
	delete(s.Data, "b")
	s.Labels = map[string]string{"theirs": "x"}
	f.Expect(f.env.Client.Update(t.Context(), s, client.FieldOwner("somebody"))).To(Succeed())

	want.UID = types.UID(ref.UID)
	want.Labels = map[string]string{"team": "a"} // app is not wanted any more
	again, err := f.secrets.Apply(t.Context(), want)
	f.Expect(err).NotTo(HaveOccurred())
	got := f.read("s")
	f.Expect(got.Data).To(Equal(map[string][]byte{"a": []byte("1"), "b": {0xff, 0}, "theirs": []byte("x")}))
	f.Expect(got.Labels).To(Equal(map[string]string{"team": "a", "theirs": "x", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}))
	f.Expect(again.ResourceVersion).To(Equal(got.ResourceVersion))
}

func TestDelete_deletesOnlyTheSecretThatWasMeant(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.make(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}})
	f.Expect(f.secrets.Delete(t.Context(), f.key("s"), "7b4e2b3c-5b5e-4d2c-9b39-1f2f6d5b8a11")).NotTo(Succeed())
	s := f.read("s")
	f.Expect(f.secrets.Delete(t.Context(), f.key("s"), s.UID)).To(Succeed())
	f.Expect(f.secrets.Read(t.Context(), f.key("s"))).To(BeNil())
	f.Expect(f.secrets.Delete(t.Context(), f.key("s"), s.UID)).To(Succeed(), "what is gone is gone")
}

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
			got, version, err := f.secrets.Entry(t.Context(), c.kind, f.key(c.object), c.entry)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(got).To(Equal(c.want))
			m, err := f.secrets.Look(t.Context(), c.kind, f.key(c.object))
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
				corev1.LastAppliedConfigAnnotation: `{"data":{"password":"…"}}`, "note": "n", "keyconvoy.io/request-id": "r", "keyconvoy.io/kept": "k",
			},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
			OwnerReferences: []metav1.OwnerReference{{Name: "owner"}},
		}}
	}
	g := NewWithT(t)
	strip := func(in any) metav1.ObjectMeta {
		out, err := secrets.StripMetadata("keyconvoy.io/kept")(in)
		g.Expect(err).NotTo(HaveOccurred())
		return out.(*metav1.PartialObjectMetadata).ObjectMeta
	}
	g.Expect(strip(meta(map[string]string{"app": "x"}))).To(Equal(metav1.ObjectMeta{Name: "s", UID: "u", ResourceVersion: "1"}))
	ours := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, "app": "x"}
	g.Expect(strip(meta(ours))).To(Equal(metav1.ObjectMeta{
		Name: "s", UID: "u", ResourceVersion: "1", Labels: ours, Annotations: map[string]string{"note": "n", "keyconvoy.io/kept": "k"},
	}))
	noted := meta(ours)
	delete(noted.Annotations, "note")
	delete(noted.Annotations, "keyconvoy.io/kept")
	g.Expect(strip(noted).Annotations).To(BeNil())
	g.Expect(secrets.StripMetadata("")("no object")).To(Equal("no object"))
}
