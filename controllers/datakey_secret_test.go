package controllers_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestDataKey_aBlobThatIsNotItsOwnIsNeverReplaced(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	other := o.dataKey(t, "other")
	for name, c := range map[string]struct {
		blob string
		says string
	}{
		"garbage":           {"not a blob", "It is not a CiphertextBlob"},
		"cut-short":         {cutShort(t, other.Status.CiphertextBlob), "contain different data keys"},
		"another-data-key":  {other.Status.CiphertextBlob, "contain different data keys"},
		"base64-of-nothing": {"AAAA", "It is not a CiphertextBlob"},
	} {
		t.Run(name, func(t *testing.T) {
			k := o.dataKey(t, name)
			blob := k.Status.CiphertextBlob
			s := o.secretOf(t, name)
			o.Change(t, s, func() { s.Data["ciphertextBlob"] = []byte(c.blob) })
			o.Stalls(t, k, "InvalidParameter", "CiphertextBlob: ", c.says, "Secret "+o.Namespace+"/"+name)
			o.Event(t, k, "InvalidParameter")
			if got := string(o.secretOf(t, name).Data["ciphertextBlob"]); got != c.blob {
				t.Errorf("it was replaced by %q", got)
			}
			if k.Status.CiphertextBlob != blob {
				t.Error("the status has another blob")
			}

			o.Remove(t, s)
			o.Ready(t, k)
			if o.checkSecretOf(t, k, name); k.Status.CiphertextBlob != blob {
				t.Error("it came back with another blob")
			}
		})
	}
}

func TestDataKey_withNothingButABlobThatCannotBeRead_stalls(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	elsewhere := o.enabledKey(t, "elsewhere", nil)
	foreign := o.dataKey(t, "foreign", underKey(elsewhere.Name)).Status.CiphertextBlob
	own := o.dataKey(t, "own").Status.CiphertextBlob
	bound := o.dataKey(t, "bound", withContext(map[string]v1alpha1.ContextValue{"app": "ledger"})).Status.CiphertextBlob
	for name, blob := range map[string]string{
		"garbage": "not a blob", "of-another-key": foreign, "cut": cutShort(t, own), "under-another-context": bound,
	} {
		t.Run(name, func(t *testing.T) {
			s := o.makeSecret(t, o.tagged(t, keptBlob(name, name, blob)))
			k := newDataKey(name)
			o.Make(t, k)
			o.Stalls(t, k, "InvalidParameter", "CiphertextBlob: ", "which is not replaced", "move the Secret away")
			if got := o.secretOf(t, name); got.ResourceVersion != s.ResourceVersion {
				t.Error("the Secret was touched")
			}
			if k.Status.CiphertextBlob != "" || k.Status.SecretRef != nil {
				t.Errorf("the status has a data key: %+v", k.Status)
			}
			o.Remove(t, s)
			o.Ready(t, k)
			o.checkSecretOf(t, k, name)
		})
	}
}

// tagged gives a keptBlob the tag that the operator gives it in the test's namespace.
func (o *operator) tagged(t testing.TB, s *corev1.Secret) *corev1.Secret {
	t.Helper()
	blob, err := kms.ParseBlob(string(s.Data["ciphertextBlob"]))
	if err != nil {
		return s // the operator gives no tag to what is no blob
	}
	ops := kms.Operations{Module: o.Module(t)}
	tag, err := ops.TagBlob(t.Context(), kms.Assigned{Namespace: o.Namespace, Name: s.Annotations["keyconvoy.io/data-key"], Blob: blob})
	if err != nil {
		t.Fatal(err)
	}
	s.Annotations["keyconvoy.io/blob-tag"] = tag
	return s
}

// keptBlob is a Secret as the operator writes one for a data key of that name, but for the tag.
func keptBlob(name, dataKey, blob string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			Annotations: map[string]string{"keyconvoy.io/data-key": dataKey},
		},
		Type: v1alpha1.SecretTypeDataKey, Data: map[string][]byte{"ciphertextBlob": []byte(blob)},
	}
}

func TestDataKey_aForeignSecretIsLeftAlone(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	for name, s := range map[string]*corev1.Secret{
		"of-another-type":     {Data: map[string][]byte{"ciphertextBlob": []byte("theirs")}},
		"of-another-data-key": keptBlob("", "another-owner", "theirs"),
		"without-owner":       {Type: v1alpha1.SecretTypeDataKey, Data: map[string][]byte{"x": []byte("theirs")}},
	} {
		t.Run(name, func(t *testing.T) {
			s.Name = name
			o.makeSecret(t, s)
			k := newDataKey(name)
			o.Make(t, k)
			o.Stalls(t, k, v1alpha1.ReasonTargetNotOwned, "Secret "+o.Namespace+"/"+name, "already exists", "Choose another target.name, or delete the Secret")
			o.Event(t, k, v1alpha1.ReasonTargetNotOwned)
			if got := o.secretOf(t, name); got.ResourceVersion != s.ResourceVersion {
				t.Error("the Secret was touched")
			}
			o.Remove(t, s)
			o.Ready(t, k)
			o.checkSecretOf(t, k, name)
		})
	}
}

// A backup may be coming back just while the data key is made.
func TestDataKey_aSecretThatComesJustBeforeTheWriteIsNotReplaced(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		secret func(kept *corev1.Secret) *corev1.Secret
		ours   bool
	}{
		"the data key's own, from a backup": {func(kept *corev1.Secret) *corev1.Secret { return kept }, true},
		"another object's": {func(*corev1.Secret) *corev1.Secret {
			return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "dek"}, Data: map[string][]byte{"x": []byte("theirs")}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := startWithKey(t)
			old := o.dataKey(t, "old")
			kept := c.secret(o.tagged(t, keptBlob("dek", "dek", old.Status.CiphertextBlob)))
			o.Module(t).After("GenerateDataKey", func() {
				kept.Namespace = o.Namespace
				if err := o.Create(t.Context(), kept); err != nil {
					t.Error(err)
				}
			})
			k := newDataKey("dek")
			o.Make(t, k)
			if c.ours {
				o.Ready(t, k)
				o.checkSecretOf(t, k, "dek")
				if k.Status.CiphertextBlob != old.Status.CiphertextBlob {
					t.Error("the blob from the backup was replaced")
				}
				return
			}
			o.Stalls(t, k, v1alpha1.ReasonTargetNotOwned)
			if got := o.secretOf(t, "dek"); got.ResourceVersion != kept.ResourceVersion {
				t.Error("the Secret was touched")
			}
		})
	}
}

func TestDataKey_twoForOneSecret_theSecondStalls(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	first := o.dataKey(t, "first", withTarget(v1alpha1.SecretTarget{Name: "shared"}))
	second := newDataKey("second", withTarget(v1alpha1.SecretTarget{Name: "shared"}))
	o.Make(t, second)
	o.Stalls(t, second, v1alpha1.ReasonTargetNotOwned)
	o.checkSecretOf(t, first, "shared")
}

func TestDataKey_aSecretThatIsDeletedIsWrittenAgain(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek", withTarget(v1alpha1.SecretTarget{Name: "kept"}))
	first := o.checkSecretOf(t, k, "kept")
	o.ForgetCounts()
	o.Remove(t, first)
	again := o.secretWith(t, "kept", func(s *corev1.Secret) string {
		if s.UID == first.UID {
			return "it is still the former Secret"
		}
		return ""
	})
	o.secretCaughtUp(t, k)
	o.checkSecretOf(t, k, "kept")
	if string(again.Data["ciphertextBlob"]) != string(first.Data["ciphertextBlob"]) {
		t.Error("it holds another blob")
	}
	wantCounts(t, "writing the Secret again", o.Calls(), map[string]int{})
}

func TestDataKey_changedMetadataIsRepairedWithoutANewDataKey(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	for name, c := range map[string]struct {
		change func(*v1alpha1.DataKey, *corev1.Secret) // one of the two
		labels map[string]string
		notes  map[string]string
	}{
		"other-labels-are-asked-for": {
			func(k *v1alpha1.DataKey, _ *corev1.Secret) {
				k.Spec.Target.Labels = map[string]v1alpha1.MetadataValue{"team": "b"}
			},
			map[string]string{"team": "b"}, map[string]string{"note": "n"},
		},
		"a-label-is-not-asked-for-any-more": {
			func(k *v1alpha1.DataKey, _ *corev1.Secret) { k.Spec.Target.Labels = nil },
			map[string]string{}, map[string]string{"note": "n"},
		},
		"an-annotation-is-not-asked-for-any-more": {
			func(k *v1alpha1.DataKey, _ *corev1.Secret) { k.Spec.Target.Annotations = nil },
			map[string]string{"app": "a"}, map[string]string{},
		},
		"a-user-removed-all-labels": {
			func(_ *v1alpha1.DataKey, s *corev1.Secret) { s.Labels = nil },
			map[string]string{"app": "a"}, map[string]string{"note": "n"},
		},
		"a-user-changed-a-label-and-an-annotation": {
			func(_ *v1alpha1.DataKey, s *corev1.Secret) {
				s.Labels["app"], s.Annotations["note"] = "z", "z"
			},
			map[string]string{"app": "a"}, map[string]string{"note": "n"},
		},
		"a-user-added-a-label": {
			func(_ *v1alpha1.DataKey, s *corev1.Secret) { s.Labels["theirs"] = "x" },
			map[string]string{"app": "a", "theirs": "x"}, map[string]string{"note": "n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := o.dataKey(t, name, withTarget(v1alpha1.SecretTarget{
				Labels: map[string]v1alpha1.MetadataValue{"app": "a"}, Annotations: map[string]v1alpha1.MetadataValue{"note": "n"},
			}))
			first := o.checkSecretOf(t, k, name)
			blob := k.Status.CiphertextBlob
			mine, theirs := k.DeepCopy(), first.DeepCopy()
			if c.change(mine, theirs); harness.JSON(mine) != harness.JSON(k) {
				o.Change(t, k, func() { k.Spec = mine.Spec })
			} else {
				o.Change(t, first, func() { first.Labels, first.Annotations = theirs.Labels, theirs.Annotations })
			}
			o.secretWith(t, name, func(s *corev1.Secret) string {
				labels, notes := s.DeepCopy().Labels, map[string]string{}
				delete(labels, v1alpha1.LabelManagedBy)
				if s.Annotations["note"] != "" {
					notes["note"] = s.Annotations["note"]
				}
				if harness.JSON(labels) != harness.JSON(c.labels) || harness.JSON(notes) != harness.JSON(c.notes) {
					return "labels and annotations are " + harness.JSON(s.Labels) + harness.JSON(s.Annotations)
				}
				return ""
			})
			o.Ready(t, k)
			o.secretCaughtUp(t, k)
			o.checkSecretOf(t, k, name)
			if k.Status.CiphertextBlob != blob {
				t.Error("the data key is another")
			}
		})
	}
}
