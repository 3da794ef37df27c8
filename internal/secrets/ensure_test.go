package secrets_test

import (
	"bytes"
	"errors"
	"maps"
	"sync"
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

const ourType corev1.SecretType = "keyconvoy.io/test"

var (
	controlledClass = &secrets.Class{Type: ourType, Mark: "keyconvoy.io/test-object", Entries: []string{"a", "b"}, Owner: "ExportedDataKey"}
	// remainingClass differs in that its Secrets remain when their objects are deleted.
	remainingClass = &secrets.Class{Type: ourType, Mark: controlledClass.Mark, Entries: controlledClass.Entries}
)

const (
	objectUID = "5e0a3b0e-3c0c-4a80-8a4a-7a1f3ff2b0aa"
	otherUID  = "7b4e2b3c-5b5e-4d2c-9b39-1f2f6d5b8a11"
)

// object is an object whose Secret has its name.
func (f fixture) object(name string) *v1alpha1.ExportedDataKey {
	return &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: f.ns, Name: name, UID: objectUID}}
}

// desired is the Secret of an object.
func (f fixture) desired(class *secrets.Class, name string, labels map[string]v1alpha1.MetadataValue) secrets.Desired {
	f.t.Helper()
	target, err := secrets.NewTarget(class, f.object(name), &v1alpha1.SecretTarget{
		Labels: labels, Annotations: map[string]v1alpha1.MetadataValue{"note": "n"},
	})
	f.Expect(err).NotTo(HaveOccurred())
	return secrets.Desired{
		Target: target, Data: map[string][]byte{"a": []byte("1"), "b": {0xff, 0}}, Notes: map[string]string{"keyconvoy.io/test-note": "1"},
	}
}

var appLedger = map[string]v1alpha1.MetadataValue{"app": "ledger"}

// counted is the fixture's client, and a counter of its requests.
func (f fixture) counted() (*secrets.Client, *testenv.Counter) {
	f.t.Helper()
	cfg, counter := f.env.Counting()
	c, err := client.New(cfg, client.Options{Scheme: f.env.Scheme})
	f.Expect(err).NotTo(HaveOccurred())
	return secrets.New(c, c, nil, f.ns), counter
}

// change changes a Secret as another client would.
func (f fixture) change(name string, change func(*corev1.Secret)) {
	f.t.Helper()
	s := f.read(name)
	change(s)
	f.Expect(f.env.Client.Update(f.t.Context(), s, client.FieldOwner("other"))).To(Succeed())
}

func TestEnsure_createsASecret_andReturnsWhatTheStatusSays(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]*secrets.Class{"controlled": controlledClass, "remaining": remainingClass} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			c, counter := f.counted()
			want := f.desired(class, "s", appLedger)
			ref, err := c.Ensure(t.Context(), want, nil)
			f.Expect(err).NotTo(HaveOccurred())
			f.Expect(counter.All().Writes).To(Equal(map[string]int{"apply secrets": 1}))
			f.Expect(counter.All().Reads).To(BeEmpty())

			got := f.read("s")
			f.Expect(got.Type).To(Equal(ourType))
			f.Expect(got.Data).To(Equal(want.Data))
			f.Expect(got.Labels).To(Equal(map[string]string{"app": "ledger", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}))
			f.Expect(got.Annotations).To(HaveLen(4))
			f.Expect(got.Annotations).To(HaveKeyWithValue("note", "n"))
			f.Expect(got.Annotations).To(HaveKeyWithValue("keyconvoy.io/test-object", "s"))
			f.Expect(got.Annotations).To(HaveKeyWithValue("keyconvoy.io/test-note", "1"))
			f.Expect(got.Annotations).To(HaveKeyWithValue("keyconvoy.io/target-digest", MatchRegexp("^[0-9a-f]{64}$")))
			f.Expect(got.Immutable).To(BeNil())
			f.Expect(metav1.IsControlledBy(got, f.object("s"))).To(Equal(class.Owner != ""))
			f.Expect(got.OwnerReferences).To(HaveLen(map[bool]int{true: 1}[class.Owner != ""]))
			f.Expect(got.ManagedFields).To(HaveLen(1))
			f.Expect(got.ManagedFields[0].Manager).To(Equal(v1alpha1.ManagedBy))
			f.Expect(got.ManagedFields[0].Operation).To(Equal(metav1.ManagedFieldsOperationApply))
			f.Expect(ref).To(Equal(v1alpha1.SecretReference{
				Name: "s", UID: string(got.UID), ResourceVersion: got.ResourceVersion, Digest: secrets.Digest(want.Data),
			}))
		})
	}
}

func TestEnsure_writesOnlyWhatIsNotAsDesired(t *testing.T) {
	t.Parallel()
	none, apply, replace := map[string]int{}, map[string]int{"apply secrets": 1}, map[string]int{"delete secrets": 1, "apply secrets": 1}
	otherContent := func(d *secrets.Desired) { d.Data = map[string][]byte{"a": []byte("2"), "b": {}} }
	for name, c := range map[string]struct {
		class     *secrets.Class // controlledClass if nil
		immutable bool
		change    func(*corev1.Secret)              // by another client
		labels    map[string]v1alpha1.MetadataValue // that are asked for, if others
		desire    func(*secrets.Desired)            // what else is desired
		writes    map[string]int
		refused   bool
	}{
		"nothing changed": {writes: none},
		"another client added entries, labels and annotations": {writes: none, change: func(s *corev1.Secret) {
			s.Data["theirs"], s.Labels["theirs"], s.Annotations["theirs"] = []byte("x"), "x", "x"
		}},
		"an entry is changed":                 {writes: apply, change: func(s *corev1.Secret) { s.Data["a"] = []byte("x") }},
		"an entry is removed":                 {writes: apply, change: func(s *corev1.Secret) { delete(s.Data, "b") }},
		"all entries are removed":             {writes: apply, change: func(s *corev1.Secret) { s.Data = nil }},
		"a label is changed":                  {writes: apply, change: func(s *corev1.Secret) { s.Labels["app"] = "x" }},
		"all labels are removed":              {writes: apply, change: func(s *corev1.Secret) { s.Labels = nil }},
		"all annotations are removed":         {writes: apply, change: func(s *corev1.Secret) { s.Annotations = nil }},
		"a note is changed":                   {writes: apply, change: func(s *corev1.Secret) { s.Annotations["keyconvoy.io/test-note"] = "x" }},
		"the controller is removed":           {writes: apply, change: func(s *corev1.Secret) { s.OwnerReferences = nil }},
		"another label is asked for":          {writes: apply, labels: map[string]v1alpha1.MetadataValue{"team": "a"}},
		"a label is no longer asked for":      {writes: apply, labels: map[string]v1alpha1.MetadataValue{}},
		"the content is another":              {writes: apply, desire: otherContent},
		"the content of one that remains":     {writes: apply, class: remainingClass, desire: otherContent},
		"a note is another":                   {writes: apply, desire: func(d *secrets.Desired) { d.Notes = map[string]string{"keyconvoy.io/test-note": "2"} }},
		"immutable, and nothing changed":      {writes: none, immutable: true},
		"immutable, and a label is changed":   {writes: apply, immutable: true, change: func(s *corev1.Secret) { s.Labels["app"] = "x" }},
		"immutable, and a note is another":    {writes: apply, immutable: true, desire: func(d *secrets.Desired) { d.Notes = map[string]string{"keyconvoy.io/test-note": "2"} }},
		"immutable, and content is another":   {writes: replace, immutable: true, desire: otherContent},
		"another client made it immutable":    {writes: none, change: func(s *corev1.Secret) { s.Immutable = ptr.To(true) }},
		"made immutable, content is another":  {writes: replace, change: func(s *corev1.Secret) { s.Immutable = ptr.To(true) }, desire: otherContent},
		"no longer immutable, other content":  {writes: replace, immutable: true, desire: func(d *secrets.Desired) { otherContent(d); d.Immutable = false }},
		"immutable, and one that must remain": {writes: apply, immutable: true, class: remainingClass, desire: otherContent, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			class := c.class
			if class == nil {
				class = controlledClass
			}
			d := f.desired(class, "s", appLedger)
			d.Immutable = c.immutable
			_, err := f.secrets.Ensure(t.Context(), d, nil)
			f.Expect(err).NotTo(HaveOccurred())
			if c.change != nil {
				f.change("s", c.change)
			}
			if c.labels != nil {
				d = f.desired(class, "s", c.labels)
			}
			if c.desire != nil {
				c.desire(&d)
			}
			before := f.read("s")
			known, err := f.secrets.Own(t.Context(), d.Target)
			f.Expect(err).NotTo(HaveOccurred())

			counting, counter := f.counted()
			ref, err := counting.Ensure(t.Context(), d, known)
			f.Expect(counter.All().Writes).To(Equal(c.writes))
			f.Expect(counter.All().Reads).To(BeEmpty())
			got := f.read("s")
			if c.refused {
				f.Expect(apierrors.IsInvalid(err)).To(BeTrue(), "%v", err)
				f.Expect(got).To(Equal(before))
				return
			}
			f.Expect(err).NotTo(HaveOccurred())
			f.Expect(got.UID == before.UID).To(Equal(c.writes["delete secrets"] == 0), "it is the same Secret, unless it must be replaced")
			f.Expect(ref).To(Equal(v1alpha1.SecretReference{
				Name: "s", UID: string(got.UID), ResourceVersion: got.ResourceVersion, Digest: secrets.Digest(d.Data),
			}))
			f.Expect(maps.EqualFunc(d.Content(got), d.Data, bytes.Equal)).To(BeTrue(), "%v", got.Data)
			f.Expect(got.Data["theirs"]).To(Equal(before.Data["theirs"]))
			f.Expect(metav1.IsControlledBy(got, f.object("s"))).To(Equal(class.Owner != ""))
			f.Expect(got.Annotations).To(HaveKeyWithValue("note", "n"))
			if c.labels != nil {
				f.Expect(got.Labels).NotTo(HaveKey("app"))
			}
			m, err := f.secrets.Look(t.Context(), d.Ref)
			f.Expect(err).NotTo(HaveOccurred())
			f.Expect(d.IsAsLeft(m, &ref)).To(BeTrue())
			counter.Reset()
			again, err := counting.Ensure(t.Context(), d, got)
			f.Expect(err).NotTo(HaveOccurred())
			f.Expect(again).To(Equal(ref))
			f.Expect(counter.Requests()).To(BeEmpty())
		})
	}
}

func TestEnsure_neverAdoptsASecret(t *testing.T) {
	t.Parallel()
	theirs := map[string][]byte{"theirs": []byte("x")}
	same := map[string][]byte{"a": []byte("1"), "b": {0xff, 0}}
	marked := map[string]string{controlledClass.Mark: "s"}
	for name, there := range map[string]*corev1.Secret{
		"of another type":                      {Data: theirs},
		"of another type, with the mark":       {Data: theirs, ObjectMeta: metav1.ObjectMeta{Annotations: marked}},
		"without an owner":                     {Type: ourType, Data: theirs},
		"with the same content":                {Type: ourType, Data: same},
		"that is immutable":                    {Type: ourType, Data: theirs, Immutable: ptr.To(true)},
		"that another object controls":         {Type: ourType, Data: theirs, ObjectMeta: controlled("9a1cf4ae-49a0-4c2c-8c1f-2a7bd5e0b6b1")},
		"marked for another object":            {Type: ourType, Data: theirs, ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{controlledClass.Mark: "other"}}},
		"from a backup, with its labels":       {Type: ourType, Data: theirs, ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}}},
		"that another object controls, marked": {Type: ourType, Data: theirs, ObjectMeta: withMark(controlled("9a1cf4ae-49a0-4c2c-8c1f-2a7bd5e0b6b1"), marked)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			there := there.DeepCopy()
			there.Name = "s"
			f.make(there)
			before := f.read("s")
			d := f.desired(controlledClass, "s", appLedger)
			c, counter := f.counted()
			var taken *secrets.TakenError

			_, err := c.Own(t.Context(), d.Target)
			f.Expect(errors.As(err, &taken)).To(BeTrue(), "read: %v", err)
			f.Expect(taken.Ref.String()).To(Equal("Secret " + f.ns + "/s"))
			_, err = c.Ensure(t.Context(), d, before)
			f.Expect(errors.As(err, &taken)).To(BeTrue(), "known: %v", err)
			f.Expect(counter.All().Writes).To(BeEmpty())
			_, err = c.Ensure(t.Context(), d, nil)
			f.Expect(errors.As(err, &taken)).To(BeTrue(), "created since it was looked for: %v", err)
			f.Expect(f.read("s")).To(Equal(before))
		})
	}
}

func withMark(m metav1.ObjectMeta, annotations map[string]string) metav1.ObjectMeta {
	m.Annotations = annotations
	return m
}

func controlled(uid types.UID) metav1.ObjectMeta {
	return metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: "ExportedDataKey", Name: "other", UID: uid, Controller: ptr.To(true),
	}}}
}

// Between Own and Ensure, other clients may write.
func TestEnsure_doesNotWriteToASecretThatReplacedTheKnownOne(t *testing.T) {
	t.Parallel()
	theirs := map[string][]byte{"theirs": []byte("x")}
	for name, c := range map[string]struct {
		immutable bool
		there     *corev1.Secret // instead of the known one; nil for none
	}{
		"another Secret":          {false, &corev1.Secret{Data: theirs}},
		"another one of our type": {false, &corev1.Secret{Type: ourType}},
		"none":                    {false, nil},
		"another Secret instead of an immutable one": {true, &corev1.Secret{Data: theirs}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			d := f.desired(controlledClass, "s", appLedger)
			d.Immutable = c.immutable
			_, err := f.secrets.Ensure(t.Context(), d, nil)
			f.Expect(err).NotTo(HaveOccurred())
			known := f.read("s")
			f.Expect(f.env.Client.Delete(t.Context(), f.read("s"))).To(Succeed())
			if c.there != nil {
				there := c.there.DeepCopy()
				there.Name = "s"
				f.make(there)
			}
			d.Data = map[string][]byte{"a": []byte("2")}
			_, err = f.secrets.Ensure(t.Context(), d, known)
			f.Expect(isOutdated(err)).To(BeTrue(), "%v", err)
			got, err := f.secrets.Read(t.Context(), d.Ref)
			f.Expect(err).NotTo(HaveOccurred())
			if c.there == nil {
				f.Expect(got).To(BeNil())
				return
			}
			f.Expect(got.Data).To(Equal(c.there.Data))
			f.Expect(got.Labels).To(BeEmpty())
			f.Expect(got.OwnerReferences).To(BeEmpty())
		})
	}
}

// isOutdated reports whether the API server refused a write because the Secret is not the one that was read.
func isOutdated(err error) bool { return apierrors.IsConflict(err) || apierrors.IsInvalid(err) }

// An immutable Secret that is deleted to be created again may be kept by a finalizer.
func TestEnsure_doesNotWriteToASecretThatIsBeingReplaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.desired(controlledClass, "s", appLedger)
	d.Immutable = true
	_, err := f.secrets.Ensure(t.Context(), d, nil)
	f.Expect(err).NotTo(HaveOccurred())
	f.change("s", func(s *corev1.Secret) { s.Finalizers = []string{"example.com/keep"} })
	former := d.Data
	d.Data = map[string][]byte{"a": []byte("2")}
	_, err = f.secrets.Ensure(t.Context(), d, f.read("s"))
	var taken *secrets.TakenError
	f.Expect(errors.As(err, &taken)).To(BeTrue(), "%v", err)
	f.Expect(f.read("s").Data).To(Equal(former))
	f.change("s", func(s *corev1.Secret) { s.Finalizers = nil })
	_, err = f.secrets.Ensure(t.Context(), d, nil)
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(f.read("s").Data).To(Equal(d.Data))
}

// Writers under the same field manager have no conflicts of fields, so that would not keep them apart.
func TestEnsure_concurrentWriters_createOneSecret(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var wg sync.WaitGroup
	refs, errs := make([]v1alpha1.SecretReference, 8), make([]error, 8)
	for i := range errs {
		d := f.desired(remainingClass, "s", appLedger)
		d.Data = map[string][]byte{"a": {byte(i)}}
		wg.Go(func() { refs[i], errs[i] = f.secrets.Ensure(t.Context(), d, nil) })
	}
	wg.Wait()
	created := 0
	got := f.read("s")
	for i, err := range errs {
		var taken *secrets.TakenError
		if err != nil {
			f.Expect(errors.As(err, &taken)).To(BeTrue(), "%v", err)
			continue
		}
		created++
		f.Expect(got.Data).To(Equal(map[string][]byte{"a": {byte(i)}}))
		f.Expect(refs[i].ResourceVersion).To(Equal(got.ResourceVersion))
	}
	f.Expect(created).To(Equal(1))
}

func TestMade_reportsOnceWhatEnsureCreated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.desired(controlledClass, "s", appLedger)
	_, err := f.secrets.Ensure(t.Context(), d, nil)
	f.Expect(err).NotTo(HaveOccurred())
	made := f.read("s")
	f.Expect(f.secrets.Made(made)).To(BeTrue())
	f.Expect(f.secrets.Made(made)).To(BeFalse(), "asked again")

	d.Data = map[string][]byte{"a": []byte("2")}
	_, err = f.secrets.Ensure(t.Context(), d, made)
	f.Expect(err).NotTo(HaveOccurred())
	f.Expect(f.secrets.Made(f.read("s"))).To(BeFalse(), "it was repaired, not created")

	_, err = f.secrets.Ensure(t.Context(), f.desired(controlledClass, "other", appLedger), nil)
	f.Expect(err).NotTo(HaveOccurred())
	changed := f.read("other")
	changed.ResourceVersion = "1"
	f.Expect(f.secrets.Made(changed)).To(BeFalse(), "another client changed it")
}

func TestDestroy_leavesNoContentReadable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*corev1.Secret)
		writes map[string]int
		stays  bool
		data   map[string][]byte
	}{
		"an ordinary Secret":            {nil, map[string]int{"delete secrets": 1}, false, nil},
		"one with a finalizer":          {func(s *corev1.Secret) { s.Finalizers = []string{"example.com/keep"} }, map[string]int{"apply secrets": 1, "delete secrets": 1}, true, nil},
		"one whose owner was taken off": {func(s *corev1.Secret) { s.OwnerReferences = nil }, map[string]int{"delete secrets": 1}, false, nil},
		"an immutable one with a finalizer": {func(s *corev1.Secret) {
			s.Finalizers, s.Immutable = []string{"example.com/keep"}, ptr.To(true)
		}, map[string]int{"delete secrets": 1}, true, map[string][]byte{"a": []byte("1"), "b": {0xff, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			d := f.desired(controlledClass, "s", appLedger)
			_, err := f.secrets.Ensure(t.Context(), d, nil)
			f.Expect(err).NotTo(HaveOccurred())
			if c.change != nil {
				f.change("s", c.change)
			}
			s := f.read("s")
			counting, counter := f.counted()
			f.Expect(counting.Destroy(t.Context(), d.Target, s)).To(Succeed())
			f.Expect(counter.All().Writes).To(Equal(c.writes))
			got, err := f.secrets.Read(t.Context(), d.Ref)
			f.Expect(err).NotTo(HaveOccurred())
			f.Expect(got != nil).To(Equal(c.stays))
			if c.stays {
				f.Expect(got.DeletionTimestamp).NotTo(BeNil())
				f.Expect(got.Data).To(Equal(c.data))
				return
			}
			f.Expect(f.secrets.Destroy(t.Context(), d.Target, s)).To(Succeed(), "it no longer exists")
		})
	}
}

func TestDestroy_deletesOnlyTheSecretThatWasRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	d := f.desired(controlledClass, "s", appLedger)
	_, err := f.secrets.Ensure(t.Context(), d, nil)
	f.Expect(err).NotTo(HaveOccurred())
	for _, finalizers := range [][]string{nil, {"example.com/keep"}} {
		other := f.read("s")
		other.UID, other.Finalizers = otherUID, finalizers
		err := f.secrets.Destroy(t.Context(), d.Target, other)
		f.Expect(isOutdated(err)).To(BeTrue(), "%v", err)
		f.Expect(f.read("s").Data).To(Equal(d.Data))
	}
}
