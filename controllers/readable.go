package controllers

import (
	"fmt"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
)

// decoded is an object that says which of its fields could not be decoded.
type decoded interface {
	client.Object
	Invalid() []v1alpha1.InvalidField
}

// readable refuses to work on an object with a field that could not be decoded: without the field the object would
// mean something else (a key without its expireTime never ends). Nothing tells when a field of the status is corrected,
// so the operator looks again by itself for those. Reasons: InvalidParameter.
func readable(o decoded) error {
	invalid := o.Invalid()
	if len(invalid) == 0 {
		return nil
	}
	err := &kms.Error{Code: kms.InvalidParameter, Parameter: invalid[0].Path, Detail: fmt.Sprintf(
		"The value of the field is not %s. Correct it, or delete the object.", invalid[0].Want)}
	if strings.HasPrefix(invalid[0].Path, "spec.") {
		return err
	}
	return reconciler.RetryAfter(err, lookAgainInterval)
}

// usable refuses to use what an object says for the sake of another one. Reasons: the one that is given.
func usable(o interface {
	Invalid() []v1alpha1.InvalidField
}, kind, name, reason string) error {
	if len(o.Invalid()) == 0 {
		return nil
	}
	return reconciler.Wait(reason, fmt.Sprintf("%s %q has a field that is invalid. Its conditions name the field.", kind, name))
}
