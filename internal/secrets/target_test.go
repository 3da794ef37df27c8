package secrets_test

import (
	"testing"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

func TestRef_namesWhatAnObjectMayUse(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	c := secrets.New(nil, nil, nil, "operator")
	namespaced := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "store"}}
	ref := c.Ref(namespaced, secrets.Secret, "pin")
	g.Expect(ref.String()).To(Equal("Secret team-a/pin"))
	g.Expect(ref.Namespace()).To(Equal("team-a"))
	g.Expect(ref.Name()).To(Equal("pin"))
	cluster := &v1alpha1.ClusterKeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}}
	g.Expect(c.Ref(cluster, secrets.ConfigMap, "pin").String()).To(Equal("ConfigMap operator/pin"))
}

func TestNewTarget_namesTheSecret_evenIfItsMetadataIsInvalid(t *testing.T) {
	t.Parallel()
	type values = map[string]v1alpha1.MetadataValue
	object := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "dek"}}
	for name, c := range map[string]struct {
		spec *v1alpha1.SecretTarget
		ref  string
		says string // empty when it is valid
	}{
		"nothing":               {nil, "Secret team-a/dek", ""},
		"no name":               {&v1alpha1.SecretTarget{Labels: values{"app": "a"}}, "Secret team-a/dek", ""},
		"a name":                {&v1alpha1.SecretTarget{Name: "kept"}, "Secret team-a/kept", ""},
		"an invalid label":      {&v1alpha1.SecretTarget{Name: "kept", Labels: values{"a": "no spaces"}}, "Secret team-a/kept", "a valid label must"},
		"an invalid annotation": {&v1alpha1.SecretTarget{Annotations: values{"no spaces": "a"}}, "Secret team-a/dek", "no spaces"},
		"a reserved label":      {&v1alpha1.SecretTarget{Labels: values{"keyconvoy.io/x": "a"}}, "Secret team-a/dek", "are Keyconvoy's own"},
		"a reserved annotation": {&v1alpha1.SecretTarget{Annotations: values{"keyconvoy.io/x": "a"}}, "Secret team-a/dek", "are Keyconvoy's own"},
		"the operator's label":  {&v1alpha1.SecretTarget{Labels: values{v1alpha1.LabelManagedBy: "a"}}, "Secret team-a/dek", "are Keyconvoy's own"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			target, err := secrets.NewTarget(remainingClass, object, c.spec)
			g.Expect(target.Ref.String()).To(Equal(c.ref))
			if c.says == "" {
				g.Expect(err).NotTo(HaveOccurred())
				return
			}
			g.Expect(kms.CodeOf(err)).To(Equal(kms.InvalidParameter))
			g.Expect(err).To(MatchError(ContainSubstring(c.says)))
		})
	}
}

// The owner decides, where there is one, because anyone who may write Secrets can write an annotation.
func TestOwns(t *testing.T) {
	t.Parallel()
	object := &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "s", UID: objectUID}}
	marked := map[string]string{controlledClass.Mark: "s"}
	for name, c := range map[string]struct {
		secret     corev1.Secret
		controlled bool // whether the object owns it, if it controls its Secrets
		remaining  bool // and if not
	}{
		"controlled by the object":                    {corev1.Secret{Type: ourType, ObjectMeta: controlled(objectUID)}, true, false},
		"controlled by another object":                {corev1.Secret{Type: ourType, ObjectMeta: controlled(otherUID)}, false, false},
		"controlled by another object, with the mark": {corev1.Secret{Type: ourType, ObjectMeta: withMark(controlled(otherUID), marked)}, false, true},
		"with the mark":                               {corev1.Secret{Type: ourType, ObjectMeta: metav1.ObjectMeta{Annotations: marked}}, true, true},
		"with the mark, of another type":              {corev1.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: marked}}, false, false},
		"with the mark of another object":             {corev1.Secret{Type: ourType, ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{controlledClass.Mark: "other"}}}, false, false},
		"without a mark":                              {corev1.Secret{Type: ourType}, false, false},
		"of the operator, as its label says, no mark": {corev1.Secret{Type: ourType, ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			for class, want := range map[*secrets.Class]bool{controlledClass: c.controlled, remainingClass: c.remaining} {
				target, err := secrets.NewTarget(class, object, nil)
				g.Expect(err).NotTo(HaveOccurred())
				g.Expect(target.Owns(&c.secret)).To(Equal(want), "owner %q", class.Owner)
			}
		})
	}
}

func TestIsAsLeft_onlyForTheVersionAndMetadataThatTheOperatorWrote(t *testing.T) {
	t.Parallel()
	object := &v1alpha1.DataKey{ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "dek"}}
	spec := &v1alpha1.SecretTarget{Labels: map[string]v1alpha1.MetadataValue{"app": "a"}, Annotations: map[string]v1alpha1.MetadataValue{"note": "n"}}
	target, err := secrets.NewTarget(remainingClass, object, spec)
	g := NewWithT(t)
	g.Expect(err).NotTo(HaveOccurred())
	status := &v1alpha1.SecretReference{Name: "dek", UID: "u", ResourceVersion: "7"}
	secret := func(change func(*metav1.PartialObjectMetadata)) *metav1.PartialObjectMetadata {
		m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: "dek", UID: "u", ResourceVersion: "7",
			Labels: map[string]string{"app": "a", v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
			Annotations: map[string]string{
				// Other values would make the operator write every Secret again after an update.
				"note": "n", "keyconvoy.io/target-digest": "18a0495704509116f55234f2dacd178b8c9922cb9cb8749a8a816d85131dabbb",
			},
		}}
		change(m)
		return m
	}
	g.Expect(target.IsAsLeft(secret(func(*metav1.PartialObjectMetadata) {}), status)).To(BeTrue())
	g.Expect(target.IsAsLeft(secret(func(m *metav1.PartialObjectMetadata) { m.Labels["theirs"] = "x" }), status)).To(BeTrue())
	g.Expect(target.IsAsLeft(nil, status)).To(BeFalse())
	g.Expect(target.IsAsLeft(secret(func(*metav1.PartialObjectMetadata) {}), nil)).To(BeFalse())
	for name, change := range map[string]func(*metav1.PartialObjectMetadata){
		"another UID":         func(m *metav1.PartialObjectMetadata) { m.UID = "x" },
		"another version":     func(m *metav1.PartialObjectMetadata) { m.ResourceVersion = "8" },
		"another label":       func(m *metav1.PartialObjectMetadata) { m.Labels["app"] = "x" },
		"another annotation":  func(m *metav1.PartialObjectMetadata) { m.Annotations["note"] = "x" },
		"another target":      func(m *metav1.PartialObjectMetadata) { m.Annotations["keyconvoy.io/target-digest"] = "x" },
		"not the operator's":  func(m *metav1.PartialObjectMetadata) { delete(m.Labels, v1alpha1.LabelManagedBy) },
		"without annotations": func(m *metav1.PartialObjectMetadata) { m.Annotations = nil },
	} {
		g.Expect(target.IsAsLeft(secret(change), status)).To(BeFalse(), name)
	}
}
