package controllers

import (
	"fmt"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// reservedPrefix begins the names of the labels and annotations that are the operator's own.
const reservedPrefix = "keyconvoy.io/"

// annotationTarget is the digest of the labels and annotations that the user asks for: one that is not
// asked for any more is noticed by it.
const annotationTarget = reservedPrefix + "target-digest"

// target is the Secret that an object writes: the labels and annotations that the user asks for, with
// those that the operator puts on every Secret.
type target struct {
	key         types.NamespacedName
	labels      map[string]string
	annotations map[string]string
}

// targetOf reads an object's target and refuses metadata that no Secret could have. Reasons:
// InvalidParameter.
func targetOf(object client.Object, spec *v1alpha1.SecretTarget) (target, error) {
	t := target{key: client.ObjectKeyFromObject(object), labels: map[string]string{}, annotations: map[string]string{}}
	if spec == nil {
		spec = &v1alpha1.SecretTarget{}
	}
	if spec.Name != "" {
		t.key.Name = string(spec.Name)
	}
	for name, value := range spec.Labels {
		t.labels[name] = string(value)
	}
	for name, value := range spec.Annotations {
		t.annotations[name] = string(value)
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
	t.labels[v1alpha1.LabelManagedBy] = v1alpha1.ManagedBy
	return t, nil
}

func (t target) digest() string {
	var parts []string
	for kind, values := range map[string]map[string]string{"label": t.labels, "annotation": t.annotations} {
		for name, value := range values {
			parts = append(parts, digest(kind, name, value))
		}
	}
	slices.Sort(parts)
	return digest(parts...)
}

// carriedBy says whether a Secret has the target's labels and annotations.
func (t target) carriedBy(secret client.Object) bool {
	return contains(secret.GetLabels(), t.labels) && contains(secret.GetAnnotations(), t.annotations)
}

// taken says that the target's name belongs to another Secret.
func (t target) taken() error {
	return reconciler.Stall(v1alpha1.ReasonTargetNotOwned, fmt.Sprintf(
		"The Secret %s exists and belongs to somebody else; it is left alone. Choose another target.name, or remove the Secret.", t.key))
}

// contains says whether all of want is in have.
func contains(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// custodyOf reads a custody from a Secret's annotation, which others may have changed.
func custodyOf(annotation string) v1alpha1.Custody {
	switch c := v1alpha1.Custody(annotation); c {
	case v1alpha1.Custody(hsm.CustodyModule), v1alpha1.Custody(hsm.CustodyHost), v1alpha1.Custody(hsm.CustodySoftware):
		return c
	}
	return v1alpha1.CustodyUnknown
}
