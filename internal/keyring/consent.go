package keyring

import (
	"context"
	"errors"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// Use is what someone wants to do with a data key under a master key: export it from a namespace to a recipient.
type Use struct {
	Namespace            string
	RecipientFingerprint string
	WrappingAlgorithm    string
}

// Consent returns nil where the administrator of the key store and the owner of the key consent to a use. A key store that
// no longer exists forbids nothing, and serves nothing. Errors: *keystore.NotReadyError where the key store cannot be read,
// *kms.Error with ForbiddenNoPermission or InvalidParameter.
func (r *Ring) Consent(ctx context.Context, key *Key, use Use) error {
	policy, selector := exportPolicyOf(key.policy)
	return r.consent(ctx, key, use, policy, selector)
}

// ConsentTo is Consent to whatever the recipient and the algorithm will be: whether a namespace may do anything with the key.
func (r *Ring) ConsentTo(ctx context.Context, key *Key, namespace string) error {
	policy, selector := exportPolicyOf(key.policy)
	return r.consent(ctx, key, Use{Namespace: namespace}, kms.ExportPolicy{Namespaces: policy.Namespaces}, selector)
}

func (r *Ring) consent(ctx context.Context, key *Key, use Use, policy kms.ExportPolicy, selector *v1alpha1.LabelSelector) error {
	store, err := r.stores.Get(ctx, key.Store())
	var notReady *keystore.NotReadyError
	absent := errors.As(err, &notReady) && notReady.State == keystore.Absent
	if err != nil && !absent {
		return err
	}
	if !absent {
		if err := store.Allows(ctx, r.cached, key.object.GetNamespace()); err != nil {
			return err
		}
	}
	asked := kms.Use{
		SameNamespace:     use.Namespace == key.object.GetNamespace(),
		Recipient:         use.RecipientFingerprint,
		WrappingAlgorithm: use.WrappingAlgorithm,
	}
	if selector != nil && !asked.SameNamespace {
		if asked.Selected, err = keystore.Selects(ctx, r.cached, selector, use.Namespace); err != nil {
			return err
		}
	}
	return policy.Consent(asked)
}

// exportPolicyOf converts the API's form of an export policy.
func exportPolicyOf(spec *v1alpha1.ExportPolicy) (kms.ExportPolicy, *v1alpha1.LabelSelector) {
	var policy kms.ExportPolicy
	if spec == nil {
		return policy, nil
	}
	for _, recipient := range spec.Recipients {
		policy.Recipients = append(policy.Recipients, recipient.Fingerprint)
	}
	for _, algorithm := range spec.WrappingAlgorithms {
		policy.WrappingAlgorithms = append(policy.WrappingAlgorithms, string(algorithm))
	}
	if spec.Namespaces == nil {
		return policy, nil
	}
	policy.Namespaces = kms.ExportNamespaces(spec.Namespaces.From)
	return policy, spec.Namespaces.Selector
}
