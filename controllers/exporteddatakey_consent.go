package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// keepConsent asks anew whether the owner consents to an export that stands. It comes first, so that
// nothing else that is wrong (a recipient that went missing, a DataKey that is gone) keeps a Secret alive
// whose consent was withdrawn. Reasons: ForbiddenNoPermission.
func (r *exportedDataKeyReconciler) keepConsent(ctx context.Context, s *exportScope) error {
	status := &s.object.Status
	if status.SecretRef == nil {
		return nil
	}
	is := func(k *v1alpha1.ImportedKey) bool { return string(k.UID) == status.KeyID }
	key, err := r.holderOf(ctx, status.KeyVersionID, is)
	if err == nil && key == nil { // an object that took the key over since
		key, err = r.holderOf(ctx, status.KeyVersionID, func(*v1alpha1.ImportedKey) bool { return true })
	}
	if err != nil || key == nil || !holdsKey(key) {
		return err // the owner is gone, and nobody else has a say
	}
	return r.consentOrWithdraw(ctx, s.object, key, status.RecipientFingerprint)
}

// askConsent sets imported and asks whether its owner consents to the export as it is wanted now.
// Reasons: ForbiddenKeyVersionNotFound, ForbiddenNoPermission, RejectedPendingImport.
func (r *exportedDataKeyReconciler) askConsent(ctx context.Context, s *exportScope) error {
	var err error
	if s.imported, err = r.holderOf(ctx, s.version.String(), s.mayHold); err != nil {
		return err
	}
	if s.imported == nil {
		return &kms.Error{Code: kms.ForbiddenKeyVersionNotFound, Detail: fmt.Sprintf(
			"No ImportedKey has the key version %s that the blob names. It is looked for again when one is created.", s.version)}
	}
	if !holdsKey(s.imported) {
		// It may yet be the owner. Until then it has no say, and exports nothing.
		return &kms.Error{Code: kms.RejectedPendingImport, Detail: fmt.Sprintf(
			"The ImportedKey %s asks to adopt the key version that the blob names: its conditions say why it has not.", client.ObjectKeyFromObject(s.imported))}
	}
	if s.object.Spec.DryRun { // which changes nothing
		return r.consent(ctx, s.object, s.imported, s.fingerprint)
	}
	return r.consentOrWithdraw(ctx, s.object, s.imported, s.fingerprint)
}

// mayHold says which ImportedKey can be the data key's: the one that its DataKey names, or, for an inline
// blob, any: a blob names its key, so it does not go round the consent of the key's owner.
func (s *exportScope) mayHold(k *v1alpha1.ImportedKey) bool {
	return s.keyName == "" || (k.Namespace == s.namespace && k.Name == s.keyName)
}

// holderOf finds the ImportedKey of a key version among those that may hold it, or nil: one that holds it
// before one that only asks to adopt it, then the one whose version it is by its UID, which nobody can forge,
// then the oldest. So nobody answers for the owner who brought a token of their own with a key of that name.
func (r *exportedDataKeyReconciler) holderOf(ctx context.Context, version string, may func(*v1alpha1.ImportedKey) bool) (*v1alpha1.ImportedKey, error) {
	var keys v1alpha1.ImportedKeyList
	if err := r.client.List(ctx, &keys, client.MatchingFields{indexVersion: version}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	var holder *v1alpha1.ImportedKey
	for i := range keys.Items {
		key := &keys.Items[i]
		switch {
		case !may(key):
		case holder == nil:
			holder = key
		case holdsKey(key) != holdsKey(holder):
			if holdsKey(key) {
				holder = key
			}
		case (key.Spec.Adopt == nil) != (holder.Spec.Adopt == nil):
			if key.Spec.Adopt == nil {
				holder = key
			}
		case older(key, holder):
			holder = key
		}
	}
	return holder, nil
}

// consentOrWithdraw deletes the export's Secret when the owner does not consent to it (any more).
func (r *exportedDataKeyReconciler) consentOrWithdraw(ctx context.Context, object *v1alpha1.ExportedDataKey, key *v1alpha1.ImportedKey, recipient string) error {
	err := r.consent(ctx, object, key, recipient)
	if kms.CodeOf(err) != kms.ForbiddenNoPermission {
		return err
	}
	if withdrawErr := r.withdraw(ctx, object); withdrawErr != nil {
		return withdrawErr
	}
	return err
}

// consent asks the owner of the key store, and then the owner of the key.
func (r *exportedDataKeyReconciler) consent(ctx context.Context, object *v1alpha1.ExportedDataKey, key *v1alpha1.ImportedKey, recipient string) error {
	store, err := getStore(ctx, r.client, idOf(key.Namespace, key.Spec.KeyStoreRef))
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	if !apierrors.IsNotFound(err) { // a key store that is gone forbids nothing, and serves nothing
		if err := r.allowed(ctx, store, key.Namespace); err != nil {
			return err
		}
	}
	use := kms.Use{
		SameNamespace:     object.Namespace == key.Namespace,
		Recipient:         recipient,
		WrappingAlgorithm: object.Spec.WrappingAlgorithm,
	}
	policy, selector := exportPolicyOf(key)
	if selector != nil && !use.SameNamespace {
		if use.Selected, err = r.selects(ctx, selector, object.Namespace); err != nil {
			return err
		}
	}
	return policy.Consent(use)
}

// exportPolicyOf converts the API's form of an export policy.
func exportPolicyOf(key *v1alpha1.ImportedKey) (kms.ExportPolicy, *metav1.LabelSelector) {
	var policy kms.ExportPolicy
	spec := key.Spec.ExportPolicy
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

// selects says whether a namespace's labels are as a selector wants them. A selector that is none is an
// error, and no withdrawal: a slip of its owner must not take Secrets away. Reasons: InvalidParameter.
func (s *shared) selects(ctx context.Context, selector *metav1.LabelSelector, namespace string) (bool, error) {
	wanted, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return false, &kms.Error{Code: kms.InvalidParameter, Parameter: "selector", Err: err,
			Detail: "The label selector of the key or of its key store is none: an operator is In, NotIn, Exists or DoesNotExist, and its values fit it."}
	}
	ns := &metav1.PartialObjectMetadata{}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	if err := s.client.Get(ctx, client.ObjectKey{Name: namespace}, ns); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return wanted.Matches(labels.Set(ns.Labels)), nil
}

// withdraw deletes the export's Secret, if it is the export's, and says in the status that there is none.
func (r *exportedDataKeyReconciler) withdraw(ctx context.Context, object *v1alpha1.ExportedDataKey) error {
	t, _ := exportTargetOf(object) // its name is right, also when labels that are no labels are wanted
	secret, err := r.secrets.Read(ctx, t.key)
	if err != nil {
		return err
	}
	if secret != nil && isSecretOf(secret, object) {
		if err := r.secrets.Delete(ctx, t.key, secret.UID); err != nil {
			return err
		}
	}
	status := &object.Status
	status.SecretRef, status.ExportTime = nil, nil
	status.InputsDigest, status.RecipientVersion, status.RequestID, status.Custody = "", "", "", ""
	return nil
}
