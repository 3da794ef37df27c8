package controllers_test

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestExportedDataKey_aForeignSecretIsLeftAlone(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	theirs := map[string][]byte{"exportedDataKey": []byte("theirs")}
	for name, s := range map[string]*corev1.Secret{
		"of-another-type": {Data: theirs},
		"of-our-type":     {Type: v1alpha1.SecretTypeExportedDataKey, Data: theirs},
		"of-another-export": {Type: v1alpha1.SecretTypeExportedDataKey, Data: theirs, ObjectMeta: metav1.ObjectMeta{
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: "ExportedDataKey", Name: "of-another-export", UID: "another", Controller: ptr.To(true),
			}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s.Name = name
			o.makeSecret(t, s)
			e := newExport(name)
			o.Make(t, e)
			o.Stalls(t, e, v1alpha1.ReasonTargetNotOwned, "Secret "+o.Namespace+"/"+name, "already exists", "Choose another target.name, or delete the Secret")
			o.Event(t, e, v1alpha1.ReasonTargetNotOwned)
			if got := o.secretOf(t, name); got.ResourceVersion != s.ResourceVersion {
				t.Error("the Secret was touched")
			}
			o.Remove(t, s)
			o.Ready(t, e)
			o.checkExport(t, e, rsaRecipient())
		})
	}
}

func TestExportedDataKey_aSecretThatComesJustBeforeTheWriteIsNotAdopted(t *testing.T) {
	t.Parallel()
	for name, theirs := range map[string]*corev1.Secret{
		"of another type": {},
		"of our type":     {Type: v1alpha1.SecretTypeExportedDataKey},
	} {
		for when, again := range map[string]bool{"at the first export": false, "in place of the former Secret": true} {
			t.Run(name+", "+when, func(t *testing.T) {
				o := startWithKey(t)
				o.dataKey(t, "dek")
				e := newExport("e")
				theirs := theirs.DeepCopy()
				theirs.Name, theirs.Data = "e", map[string][]byte{"x": []byte("theirs")}
				if again {
					o.Make(t, e)
					o.Ready(t, e)
				}
				o.Module(t).Before("ExportDataKey", func() {
					o.Module(t).Before("ExportDataKey", nil)
					if again {
						o.Remove(t, o.secretOf(t, "e"))
					}
					o.makeSecret(t, theirs)
				})
				if again {
					o.Change(t, e, func() { toBlob(otherRSARecipient().public.Base64())(&e.Spec) })
				} else {
					o.Make(t, e)
				}
				o.Stalls(t, e, v1alpha1.ReasonTargetNotOwned)
				if got := o.secretOf(t, "e"); got.ResourceVersion != theirs.ResourceVersion {
					t.Errorf("the Secret was touched: %+v", got)
				}
				o.Remove(t, theirs)
				o.Ready(t, e)
			})
		}
	}
}

func TestExportedDataKey_driftIsRepaired(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	for name, c := range map[string]struct {
		drift func(*corev1.Secret)
		anew  bool // the data key is exported again
	}{
		"the-export-changed":    {func(s *corev1.Secret) { s.Data["exportedDataKey"][7] ^= 1 }, true},
		"the-export-is-empty":   {func(s *corev1.Secret) { s.Data["exportedDataKey"] = nil }, true},
		"an-entry-changed":      {func(s *corev1.Secret) { s.Data["wrappingAlgorithm"] = []byte("RSAES_OAEP_SHA_1") }, true},
		"an-entry-removed":      {func(s *corev1.Secret) { delete(s.Data, "keyId") }, true},
		"all-entries-removed":   {func(s *corev1.Secret) { s.Data = nil }, true},
		"labels-removed":        {func(s *corev1.Secret) { s.Labels = nil }, false},
		"a-label-changed":       {func(s *corev1.Secret) { s.Labels["app"] = "z" }, false},
		"annotations-removed":   {func(s *corev1.Secret) { s.Annotations = nil }, false},
		"the-inputs-changed":    {func(s *corev1.Secret) { s.Annotations["keyconvoy.io/inputs-digest"] = "x" }, false},
		"a-user-added-a-label":  {func(s *corev1.Secret) { s.Labels["theirs"] = "x" }, false},
		"a-user-added-an-entry": {func(s *corev1.Secret) { s.Data["theirs"] = []byte("x") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			e := o.export(t, name, withExportTarget(v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{
				Labels: map[string]v1alpha1.MetadataValue{"app": "a"}, Annotations: map[string]v1alpha1.MetadataValue{"note": "n"},
			}}))
			first := o.checkExport(t, e, rsaRecipient())
			before := e.DeepCopy().Status
			drifted := first.DeepCopy()
			c.drift(drifted)
			if err := o.Update(t.Context(), drifted); err != nil {
				t.Fatal(err)
			}
			o.Until(t, e, func() string {
				if got := o.secretOf(t, name).ResourceVersion; e.Status.SecretRef.ResourceVersion != got {
					return "the status does not know the Secret as it shall be"
				}
				return ""
			})
			s := o.checkExport(t, e, rsaRecipient())
			if s.Labels["app"] != "a" || s.Annotations["note"] != "n" {
				t.Errorf("it is marked %v %v", s.Labels, s.Annotations)
			}
			if again := !bytes.Equal(s.Data["exportedDataKey"], first.Data["exportedDataKey"]); again != c.anew || (e.Status.RequestID != before.RequestID) != c.anew {
				t.Errorf("exported again: %t, want %t", again, c.anew)
			}
			if e.Status.Custody != before.Custody || e.Status.InputsDigest != before.InputsDigest {
				t.Errorf("the status was %+v, is %+v", before, e.Status)
			}
			if !bytes.Equal(o.openExport(t, e, rsaRecipient()), want) {
				t.Error("it is another data key")
			}
		})
	}
}

func TestExportedDataKey_aSecretThatIsDeletedIsMadeAgain(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	e := o.export(t, "e")
	first := o.checkExport(t, e, rsaRecipient())
	o.Remove(t, first)
	o.secretWith(t, "e", func(s *corev1.Secret) string {
		if s.UID == first.UID {
			return "it is still the former Secret"
		}
		return ""
	})
	o.Until(t, e, func() string {
		if e.Status.SecretRef.UID == string(first.UID) {
			return "the status names the former Secret"
		}
		return ""
	})
	o.checkExport(t, e, rsaRecipient())
	if !bytes.Equal(o.openExport(t, e, rsaRecipient()), want) {
		t.Error("it is another data key")
	}
	if all := o.Events(t, e); len(all) != 0 {
		t.Errorf("a repair is no event: %q", all)
	}
}

// Who takes off the owner and the mark takes the Secret for himself. The owner alone is what backup tools lose.
func TestExportedDataKey_aSecretWhoseOwnerWasTakenOff_isOursByItsMarkOnly(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	e := o.export(t, "e")
	s := o.checkExport(t, e, rsaRecipient())
	o.Change(t, s, func() { s.OwnerReferences = nil })
	o.Until(t, e, func() string {
		if got := o.secretOf(t, "e"); !metav1.IsControlledBy(got, e) || e.Status.SecretRef.ResourceVersion != got.ResourceVersion {
			return "it has no owner, or the status does not know it"
		}
		return ""
	})
	if again := o.checkExport(t, e, rsaRecipient()); again.UID != s.UID || !bytes.Equal(o.openExport(t, e, rsaRecipient()), want) {
		t.Error("it is another Secret or data key")
	}

	s = o.secretOf(t, "e")
	o.Change(t, s, func() {
		s.OwnerReferences = nil
		delete(s.Annotations, "keyconvoy.io/exported-data-key")
	})
	o.Stalls(t, e, v1alpha1.ReasonTargetNotOwned)
	if got := o.secretOf(t, "e"); got.ResourceVersion != s.ResourceVersion {
		t.Error("the Secret was touched")
	}
	o.Remove(t, s)
	o.Ready(t, e)
	o.checkExport(t, e, rsaRecipient())
}

func TestExportedDataKey_otherMetadataIsAskedFor(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	target := func(labels, annotations map[string]v1alpha1.MetadataValue) *v1alpha1.ExportTarget {
		return &v1alpha1.ExportTarget{Immutable: true, SecretTarget: v1alpha1.SecretTarget{Name: "kept", Labels: labels, Annotations: annotations}}
	}
	type values = map[string]v1alpha1.MetadataValue
	e := o.export(t, "e", withExportTarget(*target(values{"app": "a", "old": "x"}, values{"note": "n"})))
	first := o.checkExport(t, e, rsaRecipient())
	o.Change(t, e, func() { e.Spec.Target = target(values{"app": "b", "new": "y"}, nil) })
	o.Ready(t, e)
	s := o.checkExport(t, e, rsaRecipient())
	if harness.JSON(s.Labels) != harness.JSON(map[string]string{"app": "b", "new": "y", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}) || s.Annotations["note"] != "" {
		t.Errorf("it is marked %v %v", s.Labels, s.Annotations)
	}
	if s.UID != first.UID || !bytes.Equal(s.Data["exportedDataKey"], first.Data["exportedDataKey"]) {
		t.Error("it was exported again")
	}
	o.Change(t, e, func() { e.Spec.Target = target(values{"keyconvoy.io/x": "y"}, nil) })
	o.Stalls(t, e, "InvalidParameter", "target: ", "are Keyconvoy's own")
	o.Change(t, e, func() { e.Spec.Target = target(values{"a": "no spaces"}, nil) })
	o.Stalls(t, e, "InvalidParameter", "target: ", "a valid label must")
	if got := o.secretOf(t, "kept"); got.ResourceVersion != s.ResourceVersion {
		t.Error("the Secret was touched")
	}
}

func TestExportedDataKey_immutableSecretIsMadeAnewForOtherInputs(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	want := o.dataKeyBytes(t, o.dataKey(t, "dek"))
	e := o.export(t, "e", withExportTarget(v1alpha1.ExportTarget{Immutable: true}))
	first := o.checkExport(t, e, rsaRecipient())
	if !ptr.Deref(first.Immutable, false) {
		t.Error("it is not immutable")
	}
	o.Change(t, e, func() { toBlob(otherRSARecipient().public.Base64())(&e.Spec) })
	o.Ready(t, e)
	second := o.checkExport(t, e, otherRSARecipient())
	if second.UID == first.UID || !ptr.Deref(second.Immutable, false) {
		t.Error("it was not made anew, or is not immutable")
	}
	if !bytes.Equal(o.openExport(t, e, otherRSARecipient()), want) {
		t.Error("it is another data key")
	}
	o.Change(t, e, func() { e.Spec.Target.Immutable = false })
	o.Ready(t, e)
	if third := o.checkExport(t, e, otherRSARecipient()); third.Immutable != nil {
		t.Error("it is still immutable")
	}
}

func TestExportedDataKey_outlivesItsDataKey(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	e := o.export(t, "e")
	first := o.checkExport(t, e, rsaRecipient())
	o.Remove(t, k)
	o.Waits(t, e, v1alpha1.ReasonKeyNotReady, "DataKey "+o.Namespace+"/dek does not exist")
	o.dataKey(t, "dek") // takes its blob from its Secret
	o.Ready(t, e)
	if s := o.checkExport(t, e, rsaRecipient()); s.ResourceVersion != first.ResourceVersion {
		t.Error("it was exported again")
	}
}
