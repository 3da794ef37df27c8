package controllers

import (
	"errors"
	"fmt"
	"strings"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

// explained gives an error about an object's Secret its reason. The owner of the object cannot read the operator's log,
// so the message contains the API server's own words: they are about the Secret that the object asked for, in the
// object's own namespace. Reasons: TargetNotOwned, APIServer.
func explained(err error) error {
	var taken *secrets.TakenError
	if errors.As(err, &taken) {
		return reconciler.Stall(v1alpha1.ReasonTargetNotOwned, fmt.Sprintf(
			"%s already exists and is not managed by this object. Choose another target.name, or delete the Secret.", taken.Ref))
	}
	var refused *secrets.RefusedError
	if errors.As(err, &refused) {
		return &reconciler.Error{Class: reconciler.Transient, Reason: v1alpha1.ReasonAPIServer, Err: refused.Err, Message: fmt.Sprintf(
			"The API server refused to write the %s: %s. Remove the cause, such as a ResourceQuota or an admission policy of the namespace. The operator retries.",
			refused.Ref, shortened(refused.Err.Error()))}
	}
	return err
}

// maxRefusal bounds what is shown of an API server's words.
const maxRefusal = 600

func shortened(text string) string {
	runes := []rune(strings.TrimRight(strings.Join(strings.Fields(text), " "), "."))
	if len(runes) > maxRefusal {
		return string(runes[:maxRefusal-1]) + "…"
	}
	return string(runes)
}
