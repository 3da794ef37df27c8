package gateway

import (
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/keyconvoy/keyconvoy/internal/gateway/wire"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// unavailable turns a failure of a request to the API server into one that the client retries. It returns nil for nil.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return &kms.Error{Code: kms.ServiceUnavailableTemporary, Err: err, Detail: "The Kubernetes API did not respond as expected."}
}

// explained gives every error a code of the documented API.
func explained(err error) error {
	var operation *kms.Error
	var protocol *wire.Error
	var notReady *keystore.NotReadyError
	var status apierrors.APIStatus
	switch {
	case err == nil, errors.As(err, &operation), errors.As(err, &protocol):
		return err
	case errors.As(err, &notReady):
		return &kms.Error{Code: kms.ServiceUnavailableTemporary, Detail: notReady.Message(), Err: err}
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err):
		return &kms.Error{Code: kms.ForbiddenNoPermission, Err: err, Detail: "The Kubernetes API refused to write the key's object: " +
			"a quota or an admission policy of the namespace forbids it."}
	case apierrors.IsNotFound(err):
		return keyNotFound()
	case errors.As(err, &status):
		return unavailable(err)
	}
	return err
}

// keyNotFound is the one answer for a key that does not exist and for one that the caller may not see.
func keyNotFound() error { return &kms.Error{Code: kms.ForbiddenKeyNotFound} }

func noPermission(who account, verb string, e *entry) error {
	return &kms.Error{Code: kms.ForbiddenNoPermission, Detail: fmt.Sprintf(
		"ServiceAccount %s in namespace %s does not have the verb %s on %s %s.", who.name, who.namespace, verb, e.ref.Kind, e.ref.Name)}
}

func invalid(parameter, format string, args ...any) error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: parameter, Detail: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &kms.Error{Code: kms.UnsupportedOperation, Detail: fmt.Sprintf(format, args...)}
}
