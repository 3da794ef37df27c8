package controllers

import (
	"context"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

const (
	entryBlob = "ciphertextBlob"

	// annotationDataKey names the DataKey whose blob a Secret keeps.
	annotationDataKey = "keyconvoy.io/data-key"
	// annotationCustody is the custody of what a Secret holds, for when the status is lost.
	annotationCustody = "keyconvoy.io/custody"
)

// findKey sets target, imported and key. Reasons: KeyNotReady, InvalidParameter.
func (r *dataKeyReconciler) findKey(ctx context.Context, s *dataKeyScope) error {
	var err error
	if s.target, err = targetOf(s.object, s.object.Spec.Target); err != nil {
		return err
	}
	name := string(s.object.Spec.KeyRef.Name)
	imported := &v1alpha1.ImportedKey{}
	err = r.client.Get(ctx, inNamespace(s.object, name), imported)
	if apierrors.IsNotFound(err) {
		return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf("The ImportedKey %s does not exist. It is looked for again when it is created.", name))
	}
	if err != nil {
		return err
	}
	s.imported = imported
	if s.key, err = keyOf(imported); err != nil {
		return err
	}
	if was := s.object.Status.KeyVersionID; was != "" && was != s.key.VersionID().String() {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
			"The data key was made under key version %s, and the ImportedKey %s of today is another key. Restore the former key, or make another DataKey.", was, name)}
	}
	return nil
}

// findUnchanged sets done when status and Secret are as they were left. It asks the caches only.
func (r *dataKeyReconciler) findUnchanged(ctx context.Context, s *dataKeyScope) error {
	status := s.object.Status
	if status.SecretRef == nil || status.CiphertextBlob == "" || !s.specAgrees(status.CiphertextBlob) {
		return nil
	}
	m, err := r.secrets.Look(ctx, secrets.Secret, s.target.key)
	if err != nil || m == nil {
		return err
	}
	s.done = string(m.UID) == status.SecretRef.UID && m.ResourceVersion == status.SecretRef.ResourceVersion &&
		s.target.carriedBy(m)
	return nil
}

// specAgrees says whether the spec asks for no other blob than this.
func (s *dataKeyScope) specAgrees(blob string) bool {
	if s.object.Spec.CiphertextBlob == "" {
		return true
	}
	want, err := kms.Canonical(s.object.Spec.CiphertextBlob)
	return err == nil && want == blob
}

// findBlob sets secret, and blob where one exists: in the status, in the Secret or in the spec. A blob
// that the operator has not seen before is verified. Reasons: TargetNotOwned, InvalidParameter, those of
// operations, and the codes of VerifyDataKey.
func (r *dataKeyReconciler) findBlob(ctx context.Context, s *dataKeyScope) error {
	var err error
	if s.secret, err = r.secrets.Read(ctx, s.target.key); err != nil {
		return err
	}
	kept, err := s.keptBlob()
	if err != nil {
		return err
	}
	known := s.object.Status.CiphertextBlob
	given, err := s.givenBlob()
	if err != nil {
		return err
	}
	switch {
	case known != "":
		s.blob, s.custody = known, s.object.Status.Custody
	case kept != "":
		s.blob, s.custody = kept, custodyOf(s.secret.Annotations[annotationCustody])
	case given != "":
		s.blob, s.custody = given, v1alpha1.CustodyUnknown
	default:
		return nil
	}
	if (kept != "" && kept != s.blob) || (given != "" && given != s.blob) {
		return s.twoBlobs()
	}
	if known != "" {
		return nil
	}
	return r.verify(ctx, s)
}

// keptBlob returns the blob in the Secret, or "".
func (s *dataKeyScope) keptBlob() (string, error) {
	if s.secret == nil {
		return "", nil
	}
	if s.secret.Type != v1alpha1.SecretTypeDataKey || s.secret.Annotations[annotationDataKey] != s.object.Name {
		return "", s.target.taken()
	}
	kept := string(s.secret.Data[entryBlob])
	if kept == "" && s.object.Status.CiphertextBlob == "" && s.object.Spec.CiphertextBlob == "" {
		return "", &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
			"Secret %s is this DataKey's and holds no blob any more, so there was a data key. Restore the Secret from a backup; or remove it, if another data key is wanted.", s.target.key)}
	}
	if kept == "" {
		return "", nil
	}
	canonical, err := kms.Canonical(kept)
	if err != nil {
		return "", s.unreadable(err)
	}
	return canonical, nil
}

func (s *dataKeyScope) givenBlob() (string, error) {
	if s.object.Spec.CiphertextBlob == "" {
		return "", nil
	}
	return kms.Canonical(s.object.Spec.CiphertextBlob)
}

// verify says whether the blob is a data key as the spec asks for.
func (r *dataKeyReconciler) verify(ctx context.Context, s *dataKeyScope) error {
	ops, giveBack, err := r.operations(ctx, s.object.Namespace, s.imported.Spec.KeyStoreRef)
	if err != nil {
		return err
	}
	defer giveBack()
	asked := s.request()
	err = ops.VerifyDataKey(ctx, s.key, s.blob, asked.EncryptionContext)
	if err == nil {
		err = asked.CheckBlob(s.blob)
	}
	if kms.CodeOf(err) == kms.InvalidParameter {
		return s.unreadable(err)
	}
	return err
}

// unreadable says that there is a blob, and that it is left as it is.
func (s *dataKeyScope) unreadable(err error) error {
	e := reconciler.From(err)
	if s.object.Spec.CiphertextBlob == "" {
		e.Message += fmt.Sprintf(" It is in Secret %s and is not replaced: move the Secret away if another data key is wanted.", s.target.key)
	}
	return e
}

func (s *dataKeyScope) twoBlobs() error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
		"The status, the spec and Secret %s name different data keys, and none is replaced. Delete the Secret to have it written again from the status, or make another DataKey.", s.target.key)}
}

// generate makes a data key where none was found, and sets blob and custody. Reasons: those of
// operations, and the codes of GenerateDataKeyWithoutPlaintext.
func (r *dataKeyReconciler) generate(ctx context.Context, s *dataKeyScope) error {
	if s.blob != "" {
		return nil
	}
	if version, was := s.object.Annotations[v1alpha1.AnnotationDataKeyMade]; was {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
			"There was a data key, under key version %.36s, and Secret %s with it is missing. Restore the Secret, or give the blob in spec.ciphertextBlob. Where another data key is wanted, remove the annotation %s.",
			version, s.target.key, v1alpha1.AnnotationDataKeyMade)}
	}
	if err := kms.Permit(kms.OpGenerateDataKey, s.key.StateAt(r.clock.Now())); err != nil {
		return err
	}
	ops, giveBack, err := r.operations(ctx, s.object.Namespace, s.imported.Spec.KeyStoreRef)
	if err != nil {
		return err
	}
	defer giveBack()
	made, err := ops.GenerateDataKeyWithoutPlaintext(ctx, s.request())
	if err != nil {
		return err
	}
	s.blob, s.custody = made.CiphertextBlob, v1alpha1.Custody(made.Custody)
	return nil
}

// request is what the spec asks for.
func (s *dataKeyScope) request() kms.GenerateDataKeyRequest {
	return kms.GenerateDataKeyRequest{
		Key:               s.key,
		KeySpec:           hsm.KeySpec(s.object.Spec.KeySpec),
		NumberOfBytes:     int(s.object.Spec.NumberOfBytes),
		EncryptionContext: encryptionContext(s.object.Spec.EncryptionContext),
	}
}

// keepBlob writes the Secret, where it is not as it should be, and then the status. Reasons:
// TargetNotOwned.
func (r *dataKeyReconciler) keepBlob(ctx context.Context, s *dataKeyScope) error {
	ref, err := r.writeBlob(ctx, s)
	if err != nil {
		return err
	}
	status := &s.object.Status
	status.KeyID = s.key.ID.String()
	status.KeyVersionID = s.key.VersionID().String()
	status.CiphertextBlob = s.blob
	status.Custody = s.custody
	status.SecretRef = &ref
	return nil
}

// markMade says on the object itself that it has a data key: backups carry no status, and one that comes
// back before its Secret must not be taken for new.
func (r *dataKeyReconciler) markMade(ctx context.Context, s *dataKeyScope) error {
	version := s.key.VersionID().String()
	if s.object.Annotations[v1alpha1.AnnotationDataKeyMade] == version {
		return nil
	}
	marked := s.object.DeepCopy() // the answer to the patch has the status of before
	metav1.SetMetaDataAnnotation(&marked.ObjectMeta, v1alpha1.AnnotationDataKeyMade, version)
	return r.client.Patch(ctx, marked, client.MergeFrom(s.object))
}

func (r *dataKeyReconciler) writeBlob(ctx context.Context, s *dataKeyScope) (v1alpha1.SecretReference, error) {
	annotations := maps.Clone(s.target.annotations)
	annotations[annotationDataKey] = s.object.Name
	annotations[annotationCustody] = string(s.custody)
	target := secrets.Target{
		Key: s.target.key, Type: v1alpha1.SecretTypeDataKey,
		Data:   map[string][]byte{entryBlob: []byte(s.blob)},
		Labels: s.target.labels, Annotations: annotations,
	}
	if s.secret != nil {
		if string(s.secret.Data[entryBlob]) == s.blob && s.target.carriedBy(s.secret) && contains(s.secret.Annotations, annotations) {
			ref := secrets.Reference(s.secret)
			ref.Digest = secrets.Digest(target.Data) // what others put beside it is not ours to tell of
			return ref, nil
		}
		target.UID = s.secret.UID
	}
	ref, err := r.secrets.Apply(ctx, target)
	if err != nil && s.secret == nil && secrets.IsTaken(err) {
		return ref, s.target.taken()
	}
	return ref, err
}
