package secrets

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// reservedPrefix begins the names of the labels and annotations that are the operator's own.
const reservedPrefix = "keyconvoy.io/"

// annotationTarget is the digest of the labels and annotations that the user asks for. It shows when the user no longer
// asks for one of them.
const annotationTarget = reservedPrefix + "target-digest"

// Class is what the Secrets of all objects of a kind have in common.
type Class struct {
	Type corev1.SecretType
	// Mark is the annotation with the name of the object that a Secret belongs to.
	Mark string
	// Entries are those that the operator writes. Others may add entries of their own.
	Entries []string
	// Owner is the kind of the objects, if they control their Secrets: a Secret is then deleted with its object, and may
	// be deleted to be created again. It is empty for Secrets that remain.
	Owner string
}

// Target is the Secret of one object, with the labels and annotations that it must have.
type Target struct {
	Ref
	// Immutable is whether the content of the Secret must not be changed.
	Immutable bool

	class       *Class
	object      client.Object
	labels      map[string]string
	annotations map[string]string
}

// TargetName returns the name of the Secret that an object asks for. spec may be nil.
func TargetName(object client.Object, spec *v1alpha1.SecretTarget) string {
	if spec == nil || spec.Name == "" {
		return object.GetName()
	}
	return string(spec.Name)
}

// NewTarget returns the Secret that a namespaced object asks for. spec may be nil. The error is a *kms.Error with
// InvalidParameter for labels and annotations that no Secret can have; the Target then still names the Secret.
func NewTarget(class *Class, object client.Object, spec *v1alpha1.SecretTarget) (Target, error) {
	t := Target{
		Ref:   Ref{Secret, types.NamespacedName{Namespace: object.GetNamespace(), Name: TargetName(object, spec)}},
		class: class, object: object, labels: map[string]string{}, annotations: map[string]string{},
	}
	if spec != nil {
		for name, value := range spec.Labels {
			t.labels[name] = string(value)
		}
		for name, value := range spec.Annotations {
			t.annotations[name] = string(value)
		}
	}
	errs := append(metav1validation.ValidateLabels(t.labels, field.NewPath("labels")),
		apivalidation.ValidateAnnotations(t.annotations, field.NewPath("annotations"))...)
	if len(errs) > 0 {
		return t, &kms.Error{Code: kms.InvalidParameter, Parameter: "target", Detail: errs[0].Error()}
	}
	for _, names := range []map[string]string{t.labels, t.annotations} {
		for name := range names {
			if strings.HasPrefix(name, reservedPrefix) || name == v1alpha1.LabelManagedBy {
				return t, &kms.Error{Code: kms.InvalidParameter, Parameter: "target",
					Detail: "Labels and annotations that begin with " + reservedPrefix + ", and " + v1alpha1.LabelManagedBy + ", are Keyconvoy's own: use other names."}
			}
		}
	}
	t.annotations[annotationTarget] = t.digest()
	return t, nil
}

func (t Target) digest() string {
	var parts []string
	for kind, values := range map[string]map[string]string{"label": t.labels, "annotation": t.annotations} {
		for name, value := range values {
			parts = append(parts, DigestOf(kind, name, value))
		}
	}
	slices.Sort(parts)
	return DigestOf(parts...)
}

// Owns reports whether a Secret belongs to the target's object. Backup tools restore Secrets without their owners, so
// the mark says to which object a Secret without a controller belongs.
func (t Target) Owns(s *corev1.Secret) bool {
	if owner := metav1.GetControllerOf(s); owner != nil && t.class.Owner != "" {
		return owner.UID == t.object.GetUID()
	}
	return s.Type == t.class.Type && s.Annotations[t.class.Mark] == t.object.GetName()
}

// Content returns the entries of a Secret that the operator writes, without those that others added.
func (t Target) Content(s *corev1.Secret) map[string][]byte {
	content := map[string][]byte{}
	for _, entry := range t.class.Entries {
		if value, ok := s.Data[entry]; ok {
			content[entry] = value
		}
	}
	return content
}

// IsAsLeft reports whether a Secret, of which the metadata suffices, is as the status says that the operator left it, and
// as the target asks for. Both can be nil.
func (t Target) IsAsLeft(s *metav1.PartialObjectMetadata, status *v1alpha1.SecretReference) bool {
	return s != nil && status != nil && string(s.UID) == status.UID && s.ResourceVersion == status.ResourceVersion && t.isCarriedBy(s)
}

// Left returns a Secret that is as the operator left it, without its content. The status, which only the operator writes, says that
// the Secret belongs to the object. Ensure replaces the content if the Secret was not changed meanwhile.
func (t Target) Left(status v1alpha1.SecretReference) *corev1.Secret {
	return &corev1.Secret{Type: t.class.Type, ObjectMeta: metav1.ObjectMeta{
		UID: types.UID(status.UID), ResourceVersion: status.ResourceVersion, Annotations: map[string]string{t.class.Mark: t.object.GetName()},
	}}
}

// isCarriedBy reports whether a Secret has the target's labels and annotations.
func (t Target) isCarriedBy(s metav1.Object) bool {
	return isManaged(s) && contains(s.GetLabels(), t.labels) && contains(s.GetAnnotations(), t.annotations)
}

// empty returns the target's Secret as it is applied, without labels, annotations and content.
func (t Target) empty() *corev1ac.SecretApplyConfiguration {
	s := corev1ac.Secret(t.Name(), t.Namespace()).WithType(t.class.Type)
	if t.Immutable {
		s.WithImmutable(true)
	}
	if t.class.Owner != "" {
		s.WithOwnerReferences(metav1ac.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind(t.class.Owner).
			WithName(t.object.GetName()).WithUID(t.object.GetUID()).
			WithController(true))
	}
	return s
}

// Desired is a target's Secret with its content.
type Desired struct {
	Target
	// Data are entries of the target's Class.
	Data map[string][]byte
	// Notes are annotations of the operator.
	Notes map[string]string
}

// isIn reports whether a Secret is as desired. Others may have added to it.
func (d Desired) isIn(s *corev1.Secret) bool {
	owned := d.class.Owner == "" || metav1.IsControlledBy(s, d.object)
	return owned && d.isContentOf(s) && d.isCarriedBy(s) && contains(s.Annotations, d.notes())
}

func (d Desired) isContentOf(s *corev1.Secret) bool {
	return maps.EqualFunc(d.Content(s), d.Data, bytes.Equal)
}

// notes returns the operator's annotations.
func (d Desired) notes() map[string]string {
	notes := map[string]string{d.class.Mark: d.object.GetName()}
	maps.Copy(notes, d.Notes)
	return notes
}

// contains reports whether all of want is in have.
func contains(have, want map[string]string) bool {
	for name, value := range want {
		if got, ok := have[name]; !ok || got != value {
			return false
		}
	}
	return true
}
