package controllers

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// findRecipient sets fingerprint and source, and recipient unless the public key is in an object that
// has not changed since it was last read. Reasons: SourceNotFound, KeyNotReady, InvalidParameter.
//
// A fingerprint without a recipient tells only whether an export is up to date. An export itself takes the
// key that readRecipient returns: see approve.
func (r *exportedDataKeyReconciler) findRecipient(ctx context.Context, s *exportScope) error {
	kind, ref := recipientEntry(s.object)
	if ref == nil {
		return r.readRecipient(ctx, s)
	}
	source := r.secrets.Ref(s.object, kind, string(ref.Name))
	m, err := r.secrets.Look(ctx, source)
	if err != nil {
		return err
	}
	if m == nil {
		return missingSource(source, ref, "PublicKey")
	}
	status := &s.object.Status
	if s.source = secrets.Version(m) + "/" + string(ref.Key); s.source == status.RecipientVersion {
		s.fingerprint = status.RecipientFingerprint
		return nil
	}
	return r.readRecipient(ctx, s)
}

// recipientEntry returns the entry of a Secret or ConfigMap that holds the recipient's public key, or nil.
func recipientEntry(object *v1alpha1.ExportedDataKey) (secrets.Kind, *v1alpha1.EntryReference) {
	from := &object.Spec.PublicKey
	if from.SecretKeyRef != nil {
		return secrets.Secret, from.SecretKeyRef
	}
	return secrets.ConfigMap, from.ConfigMapKeyRef
}

// readRecipient reads the public key live, and sets recipient, fingerprint and source from what it read. recipient
// stays zero where an ImportedKey no longer publishes the key that was exported to. Reasons: as findRecipient.
func (r *exportedDataKeyReconciler) readRecipient(ctx context.Context, s *exportScope) error {
	kind, ref := recipientEntry(s.object)
	from := &s.object.Spec.PublicKey
	switch {
	case ref != nil:
		return r.readRecipientEntry(ctx, s, r.secrets.Ref(s.object, kind, string(ref.Name)), ref)
	case from.ImportedKeyRef != nil:
		return r.readRecipientParameters(ctx, s, string(from.ImportedKeyRef.Name))
	}
	return s.setRecipient([]byte(from.Blob))
}

func (r *exportedDataKeyReconciler) readRecipientEntry(ctx context.Context, s *exportScope, source secrets.Ref, ref *v1alpha1.EntryReference) error {
	value, version, err := r.secrets.Entry(ctx, source, string(ref.Key))
	if err != nil {
		return err
	}
	// The entry may be a private key, put there by mistake.
	defer clear(value)
	if value == nil {
		return missingSource(source, ref, "PublicKey")
	}
	s.source = version + "/" + string(ref.Key)
	return s.setRecipient(value)
}

// readRecipientParameters takes the import public key of an ImportedKey. A key that has its material
// no longer publishes one; what was exported to it stays.
//
// The source names the ImportedKey, so that a public key from elsewhere is not taken for its.
func (r *exportedDataKeyReconciler) readRecipientParameters(ctx context.Context, s *exportScope, name string) error {
	imported := &v1alpha1.ImportedKey{}
	err := r.Client.Get(ctx, inNamespace(s.object, name), imported)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	s.source = "ImportedKey/" + name
	if err == nil {
		if err := approveRecipient(s.object.Status.Approved, imported); err != nil {
			return err
		}
	}
	if err == nil && imported.Status.ImportParameters != nil {
		return s.setRecipient([]byte(imported.Status.ImportParameters.PublicKey))
	}
	if s.source == s.object.Status.RecipientVersion {
		s.fingerprint = s.object.Status.RecipientFingerprint
		return nil
	}
	return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf("The ImportedKey %s does not exist or publishes no import parameters: its conditions say why.", name))
}

// setRecipient sets recipient and fingerprint from one text: the fingerprint is always that of the recipient.
func (s *exportScope) setRecipient(text []byte) error {
	key, err := wrapping.ParsePublicKey(text)
	if err != nil {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "PublicKeyBlob", Detail: err.Error()}
	}
	s.recipient, err = kms.NewRecipient(key, wrapping.KeySpec(s.object.Spec.WrappingKeySpec), wrapping.Algorithm(s.object.Spec.WrappingAlgorithm))
	s.fingerprint = key.Fingerprint()
	return err
}
