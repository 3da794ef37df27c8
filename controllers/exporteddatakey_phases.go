package controllers

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Entries of the Secret.
const (
	entryExportedDataKey      = "exportedDataKey"
	entryKeyID                = "keyId"
	entryKeyVersionID         = "keyVersionId"
	entryWrappingKeySpec      = "wrappingKeySpec"
	entryWrappingAlgorithm    = "wrappingAlgorithm"
	entryRecipientFingerprint = "recipientFingerprint"
)

// Annotations of the Secret: what the status says too, for when the operator ended between the two
// writes.
const (
	annotationInputs    = "keyconvoy.io/inputs-digest"
	annotationData      = "keyconvoy.io/data-digest"
	annotationRequestID = "keyconvoy.io/request-id"
	annotationTime      = "keyconvoy.io/export-time"
	// annotationExport names the ExportedDataKey whose export a Secret holds, for when its owner is lost.
	annotationExport = "keyconvoy.io/exported-data-key"
)

// findDataKey sets target, blob, namespace, version and context. Reasons: KeyNotReady, InvalidParameter.
func (r *exportedDataKeyReconciler) findDataKey(ctx context.Context, s *exportScope) error {
	spec := &s.object.Spec
	var err error
	if s.target, err = exportTargetOf(s.object); err != nil {
		return err
	}
	s.blob, s.context = spec.CiphertextBlob, encryptionContext(spec.EncryptionContext)
	s.namespace = s.object.Namespace
	if spec.DataKeyRef != nil {
		key := dataKeyOf(s.object)
		s.namespace = key.Namespace
		dataKey := &v1alpha1.DataKey{}
		err := r.client.Get(ctx, key, dataKey)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err != nil || dataKey.Status.CiphertextBlob == "" {
			return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf("The DataKey %s does not exist or has no data key yet: its conditions say why.", key))
		}
		s.blob, s.context = dataKey.Status.CiphertextBlob, encryptionContext(dataKey.Spec.EncryptionContext)
		s.keyName = string(dataKey.Spec.KeyRef.Name)
		// Before anything is read: a start may meet many exports that are new.
		if !ready(s.object.Status.Conditions) {
			if err := r.opening(ctx, inNamespace(dataKey, s.keyName)); err != nil {
				return err
			}
		}
	}
	if s.blob, err = kms.Canonical(s.blob); err != nil {
		return err
	}
	s.version, err = kms.KeyVersionOf(s.blob)
	return err
}

func exportTargetOf(object *v1alpha1.ExportedDataKey) (target, error) {
	if object.Spec.Target == nil {
		return targetOf(object, nil)
	}
	return targetOf(object, &object.Spec.Target.SecretTarget)
}

// findRecipient sets fingerprint and source, and recipient unless the public key is in an object that
// has not changed since it was last read. Reasons: SourceNotFound, KeyNotReady, InvalidParameter.
func (r *exportedDataKeyReconciler) findRecipient(ctx context.Context, s *exportScope) error {
	from := &s.object.Spec.PublicKey
	switch {
	case from.SecretKeyRef != nil:
		return r.findRecipientEntry(ctx, s, secrets.Secret, from.SecretKeyRef)
	case from.ConfigMapKeyRef != nil:
		return r.findRecipientEntry(ctx, s, secrets.ConfigMap, from.ConfigMapKeyRef)
	case from.ImportedKeyRef != nil:
		return r.findRecipientParameters(ctx, s, string(from.ImportedKeyRef.Name))
	}
	return s.setRecipient([]byte(from.Blob))
}

func (r *exportedDataKeyReconciler) findRecipientEntry(ctx context.Context, s *exportScope, kind secrets.Kind, ref *v1alpha1.EntryReference) error {
	key := inNamespace(s.object, string(ref.Name))
	m, err := r.secrets.Look(ctx, kind, key)
	if err != nil {
		return err
	}
	if m == nil {
		return missingSource(kind, key, ref, "PublicKey")
	}
	status := &s.object.Status
	if s.source = secrets.Version(m) + "/" + string(ref.Key); s.source == status.RecipientVersion {
		s.fingerprint = status.RecipientFingerprint
		return nil
	}
	return r.readRecipient(ctx, s, kind, key, ref)
}

// readRecipient reads the public key live.
func (r *exportedDataKeyReconciler) readRecipient(ctx context.Context, s *exportScope, kind secrets.Kind, key types.NamespacedName, ref *v1alpha1.EntryReference) error {
	value, version, err := r.secrets.Entry(ctx, kind, key, string(ref.Key))
	if err != nil {
		return err
	}
	// The entry may be a private key, put there by mistake.
	defer clear(value)
	if value == nil {
		return missingSource(kind, key, ref, "PublicKey")
	}
	s.source = version + "/" + string(ref.Key)
	return s.setRecipient(value)
}

// findRecipientParameters takes the import public key of an ImportedKey. A key that has its material
// publishes none any more; what was exported to it stays.
//
// The source names the ImportedKey, so that a public key from elsewhere is not taken for its.
func (r *exportedDataKeyReconciler) findRecipientParameters(ctx context.Context, s *exportScope, name string) error {
	imported := &v1alpha1.ImportedKey{}
	err := r.client.Get(ctx, inNamespace(s.object, name), imported)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	s.source = "ImportedKey/" + name
	if err == nil && imported.Status.ImportParameters != nil {
		return s.setRecipient([]byte(imported.Status.ImportParameters.PublicKey))
	}
	if s.source == s.object.Status.RecipientVersion {
		s.fingerprint = s.object.Status.RecipientFingerprint
		return nil
	}
	return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf("The ImportedKey %s does not exist or publishes no import parameters: its conditions say why.", name))
}

func (s *exportScope) setRecipient(text []byte) error {
	key, err := wrapping.ParsePublicKey(text)
	if err != nil {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "PublicKeyBlob", Detail: err.Error()}
	}
	s.recipient, s.fingerprint = key, key.Fingerprint()
	return kms.CheckRecipient(key, wrapping.KeySpec(s.object.Spec.WrappingKeySpec), wrapping.Algorithm(s.object.Spec.WrappingAlgorithm))
}

// inputsDigest is the digest of all that an export is made from.
func (s *exportScope) inputsDigest() string {
	spec := &s.object.Spec
	binding := ciphertext.Bind(s.version, s.context)
	immutable := spec.Target != nil && spec.Target.Immutable
	return digest(s.blob, string(binding[:]), s.fingerprint, string(spec.WrappingKeySpec), spec.WrappingAlgorithm,
		spec.SM2CiphertextFormat, strconv.FormatBool(immutable))
}

// compare sets inputs, done and secret. While nothing changed it asks the caches only; the Secret is read
// when its version is another than the status says, or the status does not know it yet. Reasons:
// TargetNotOwned.
func (r *exportedDataKeyReconciler) compare(ctx context.Context, s *exportScope) error {
	s.inputs = s.inputsDigest()
	status := &s.object.Status
	m, err := r.secrets.Look(ctx, secrets.Secret, s.target.key)
	if err != nil {
		return err
	}
	if m == nil && status.SecretRef == nil {
		return nil // the first export
	}
	asLeft := m != nil && status.SecretRef != nil && status.InputsDigest == s.inputs &&
		string(m.UID) == status.SecretRef.UID && m.ResourceVersion == status.SecretRef.ResourceVersion &&
		s.target.carriedBy(m)
	if asLeft {
		s.finish(*status.SecretRef)
		return nil
	}
	// The cache may lag behind: only the Secret itself says whether it is gone or another.
	if s.secret, err = r.secrets.Read(ctx, s.target.key); err != nil || s.secret == nil {
		return err
	}
	if !isSecretOf(s.secret, s.object) {
		return s.target.taken()
	}
	if !metav1.IsControlledBy(s.secret, s.object) || !s.holdsExport() {
		return nil
	}
	return r.keepSecret(ctx, s)
}

// isSecretOf says whether a Secret is an export's own. One without an owner is where it says so itself: backup
// tools restore Secrets without their owners.
func isSecretOf(secret *corev1.Secret, object *v1alpha1.ExportedDataKey) bool {
	if owner := metav1.GetControllerOf(secret); owner != nil {
		return owner.UID == object.UID
	}
	return secret.Type == v1alpha1.SecretTypeExportedDataKey && secret.Annotations[annotationExport] == object.Name
}

// known says whether the status speaks of an export of these inputs.
func (s *exportScope) known() bool {
	return s.object.Status.SecretRef != nil && s.object.Status.InputsDigest == s.inputs
}

// holdsExport says whether the Secret's content is what these inputs were exported to. The status says it;
// while it does not yet, the Secret's own annotations do.
func (s *exportScope) holdsExport() bool {
	content := secrets.Digest(ownEntries(s.secret.Data))
	if s.known() {
		return content == s.object.Status.SecretRef.Digest
	}
	own := s.secret.Annotations
	return own[annotationInputs] == s.inputs && own[annotationData] == content && uuid.Validate(own[annotationRequestID]) == nil
}

// ownEntries leaves out the entries that others add to the Secret, which server-side apply leaves alone.
func ownEntries(data map[string][]byte) map[string][]byte {
	own := map[string][]byte{}
	for _, entry := range []string{
		entryExportedDataKey, entryKeyID, entryKeyVersionID, entryWrappingKeySpec, entryWrappingAlgorithm, entryRecipientFingerprint,
	} {
		if value, ok := data[entry]; ok {
			own[entry] = value
		}
	}
	return own
}

// keepSecret takes the export that is in the Secret over into a status that does not know it, and repairs
// labels and annotations without exporting anew.
func (r *exportedDataKeyReconciler) keepSecret(ctx context.Context, s *exportScope) error {
	status := &s.object.Status
	if !s.known() {
		own := s.secret.Annotations
		status.KeyID = string(s.secret.Data[entryKeyID])
		status.KeyVersionID = string(s.secret.Data[entryKeyVersionID])
		status.RequestID = own[annotationRequestID]
		status.Custody = custodyOf(own[annotationCustody])
		status.ExportTime = nil
		if at, err := time.Parse(time.RFC3339, own[annotationTime]); err == nil {
			status.ExportTime = &metav1.Time{Time: at}
		}
	}
	t := s.secretTarget(ownEntries(s.secret.Data))
	s.record(&t, status.RequestID, status.Custody, status.ExportTime)
	ref := secrets.Reference(s.secret)
	ref.Digest = secrets.Digest(t.Data)
	if !contains(s.secret.Labels, t.Labels) || !contains(s.secret.Annotations, t.Annotations) {
		t.UID = s.secret.UID
		var err error
		if ref, err = r.secrets.Apply(ctx, t); err != nil {
			return err
		}
	}
	s.finish(ref)
	return nil
}

// record puts what the status says of the export on its Secret too.
func (s *exportScope) record(t *secrets.Target, requestID string, custody v1alpha1.Custody, at *metav1.Time) {
	t.Annotations[annotationExport] = s.object.Name
	t.Annotations[annotationInputs] = s.inputs
	t.Annotations[annotationData] = secrets.Digest(t.Data)
	t.Annotations[annotationRequestID] = requestID
	t.Annotations[annotationCustody] = string(custody)
	if at != nil {
		t.Annotations[annotationTime] = at.UTC().Format(time.RFC3339)
	}
}

// finish sets done and what the status says of the inputs.
func (s *exportScope) finish(ref v1alpha1.SecretReference) {
	status := &s.object.Status
	status.InputsDigest = s.inputs
	status.RecipientFingerprint = s.fingerprint
	status.RecipientVersion = s.source
	status.SecretRef = &ref
	s.done = true
}

// export calls ExportDataKey. Reasons: those of operations, and the codes of ExportDataKey.
func (r *exportedDataKeyReconciler) export(ctx context.Context, s *exportScope) error {
	key, err := keyOf(s.imported)
	if err != nil {
		return err
	}
	if err := kms.Permit(kms.OpExportDataKey, key.StateAt(r.clock.Now())); err != nil {
		return err
	}
	if err := r.loadRecipient(ctx, s); err != nil {
		return err
	}
	ops, giveBack, err := r.operations(ctx, s.imported.Namespace, s.imported.Spec.KeyStoreRef)
	if err != nil {
		return err
	}
	defer giveBack()
	spec := &s.object.Spec
	s.exported, err = ops.ExportDataKey(ctx, kms.ExportDataKeyRequest{
		Key:                 key,
		CiphertextBlob:      s.blob,
		EncryptionContext:   s.context,
		PublicKey:           s.recipient,
		WrappingKeySpec:     wrapping.KeySpec(spec.WrappingKeySpec),
		WrappingAlgorithm:   wrapping.Algorithm(spec.WrappingAlgorithm),
		SM2CiphertextFormat: wrapping.SM2Format(spec.SM2CiphertextFormat),
		DryRun:              spec.DryRun,
	})
	return err
}

// loadRecipient reads the public key when findRecipient did not have to. Reasons: as there.
func (r *exportedDataKeyReconciler) loadRecipient(ctx context.Context, s *exportScope) error {
	if s.recipient != nil {
		return nil
	}
	from := &s.object.Spec.PublicKey
	switch {
	case from.SecretKeyRef != nil:
		return r.readRecipient(ctx, s, secrets.Secret, inNamespace(s.object, string(from.SecretKeyRef.Name)), from.SecretKeyRef)
	case from.ConfigMapKeyRef != nil:
		return r.readRecipient(ctx, s, secrets.ConfigMap, inNamespace(s.object, string(from.ConfigMapKeyRef.Name)), from.ConfigMapKeyRef)
	}
	return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf(
		"The ImportedKey %s publishes no import parameters any more: ask for new ones with its annotation %s.",
		from.ImportedKeyRef.Name, v1alpha1.AnnotationRenewImportParameters))
}

// writeSecret writes the Secret and then the status. Reasons: TargetNotOwned.
func (r *exportedDataKeyReconciler) writeSecret(ctx context.Context, s *exportScope) error {
	at := metav1.NewTime(r.clock.Now().UTC())
	t := s.secretTarget(map[string][]byte{
		entryExportedDataKey:      s.exported.ExportedDataKey,
		entryKeyID:                []byte(s.exported.KeyID.String()),
		entryKeyVersionID:         []byte(s.exported.KeyVersionID.String()),
		entryWrappingKeySpec:      []byte(s.object.Spec.WrappingKeySpec),
		entryWrappingAlgorithm:    []byte(s.object.Spec.WrappingAlgorithm),
		entryRecipientFingerprint: []byte(s.fingerprint),
	})
	s.record(&t, s.exported.RequestID.String(), v1alpha1.Custody(s.exported.Custody), &at)
	if s.secret != nil {
		t.UID = s.secret.UID
		if s.secret.Immutable != nil && *s.secret.Immutable {
			if err := r.secrets.Delete(ctx, t.Key, t.UID); err != nil {
				return err
			}
			t.UID = ""
		}
	}
	ref, err := r.secrets.Apply(ctx, t)
	if err != nil && t.UID == "" && secrets.IsTaken(err) {
		return s.target.taken()
	}
	if err != nil {
		return err
	}
	status := &s.object.Status
	status.KeyID = s.exported.KeyID.String()
	status.KeyVersionID = s.exported.KeyVersionID.String()
	status.RequestID = s.exported.RequestID.String()
	status.Custody = v1alpha1.Custody(s.exported.Custody)
	status.ExportTime = &at
	s.finish(ref)
	return nil
}

// secretTarget is the Secret with that content, owned by the object.
func (s *exportScope) secretTarget(data map[string][]byte) secrets.Target {
	return secrets.Target{
		Key: s.target.key, Type: v1alpha1.SecretTypeExportedDataKey, Data: data,
		Labels: s.target.labels, Annotations: maps.Clone(s.target.annotations),
		Immutable: s.object.Spec.Target != nil && s.object.Spec.Target.Immutable,
		Owner: metav1ac.OwnerReference().
			WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("ExportedDataKey").
			WithName(s.object.Name).WithUID(s.object.UID).
			WithController(true),
	}
}
