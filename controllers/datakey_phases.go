package controllers

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keyring"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

const (
	entryBlob = "ciphertextBlob"
	// entryPreviousBlob is the blob before the last re-encryption.
	entryPreviousBlob = "previousCiphertextBlob"

	// annotationBlobTag is the module's tag over the blob and the DataKey's namespace and name: the proof that the
	// operator wrote the blob for that DataKey.
	annotationBlobTag = "keyconvoy.io/blob-tag"
	// annotationDataKeyDigest is status.dataKeyDigest. The tag is over it, too.
	annotationDataKeyDigest = "keyconvoy.io/data-key-digest"
	// annotationAcceptedDigest is status.acceptedDigest, and annotationCustody is status.custody, of a data key that was
	// re-encrypted. The tag is over them, too.
	annotationAcceptedDigest = "keyconvoy.io/accepted-digest"
	annotationCustody        = "keyconvoy.io/custody"
)

// dataKeySecrets keep blobs.
var dataKeySecrets = &secrets.Class{
	Type: v1alpha1.SecretTypeDataKey, Mark: "keyconvoy.io/data-key", Entries: []string{entryBlob, entryPreviousBlob},
}

func dataKeyTarget(object *v1alpha1.DataKey) (secrets.Target, error) {
	return secrets.NewTarget(dataKeySecrets, object, object.Spec.Target)
}

// findKey sets target, master and key. It refuses a master key that only requests to adopt its versions: anyone may create one.
// Reasons: KeyNotReady, InvalidParameter, RejectedPendingImport.
func (r *dataKeyReconciler) findKey(ctx context.Context, s *dataKeyScope) error {
	err := readable(s.object)
	if err != nil {
		return err
	}
	if s.target, err = dataKeyTarget(s.object); err != nil {
		return err
	}
	ref := masterRefOf(s.object)
	if s.master, err = r.keys.Get(ctx, ref); err != nil {
		return err
	}
	if s.master == nil {
		return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf("%s %s does not exist. The operator continues when it is created.", ref.Kind, ref.Name))
	}
	if err := usable(s.master, ref.Kind, ref.Name, v1alpha1.ReasonKeyNotReady); err != nil {
		return err
	}
	if !s.master.Bound() {
		return reconciler.Wait(v1alpha1.ReasonKeyNotReady, fmt.Sprintf(
			"%s %s adopts the key of a former object with its name, and has not found it yet. See its conditions.", ref.Kind, ref.Name))
	}
	if s.key, err = s.master.KMS(); err != nil {
		return err
	}
	return held(s.master)
}

// held refuses to use a key that asks for key versions and has not adopted them. It may yet be their owner. Reasons:
// RejectedPendingImport.
func held(key *keyring.Key) error {
	if key.Holds() {
		return nil
	}
	return &kms.Error{Code: kms.RejectedPendingImport, Detail: fmt.Sprintf(
		"%s asks to adopt key versions and has not adopted them. See its conditions.", key)}
}

// findUnchanged ends the reconcile when status and Secret are as they were left. It sets left where they are and the data key only
// has to be re-encrypted. It asks the caches only.
func (r *dataKeyReconciler) findUnchanged(ctx context.Context, s *dataKeyScope) error {
	status := s.object.Status
	if s.suspect || status.SecretRef == nil || status.CiphertextBlob == "" || !s.specAgrees(known(s.object)) || !s.staysUnder(status.KeyRef) {
		return nil
	}
	m, err := r.secrets.Look(ctx, s.target.Ref)
	if err != nil || !s.target.IsAsLeft(m, status.SecretRef) {
		return err
	}
	if s.moves(status.KeyVersionID) {
		s.left = true
		return nil
	}
	return reconciler.ErrDone
}

// generate makes a data key where none was found, and sets blob and custody. Reasons: those of
// operations, and the codes of GenerateDataKeyWithoutPlaintext.
func (r *dataKeyReconciler) generate(ctx context.Context, s *dataKeyScope) error {
	if !s.blob.IsZero() {
		return nil
	}
	if version, was := s.object.Annotations[v1alpha1.AnnotationDataKeyMade]; was {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
			"The data key created under key version %.36s was stored in %s, which is missing. Restore the Secret, or set spec.ciphertextBlob. To generate a new data key, remove the annotation %s.",
			version, s.target, v1alpha1.AnnotationDataKeyMade)}
	}
	var made kms.DataKey
	err := r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) error {
		return r.recorded(keyLine(audit.GenerateDataKeyWithoutPlaintext, s.object, s.key), func(line *audit.Record) (err error) {
			made, err = ops.GenerateDataKeyWithoutPlaintext(ctx, s.request())
			line.Custody = made.Custody
			return err
		})
	})
	if err != nil {
		return err
	}
	s.blob, s.custody, s.generated = made.CiphertextBlob, v1alpha1.Custody(made.Custody), r.doneNow()
	return nil
}

// tagBlob sets tag, unless the status or the Secret has it. Reasons: those of operations.
func (r *dataKeyReconciler) tagBlob(ctx context.Context, s *dataKeyScope) error {
	if s.tag != "" {
		return nil
	}
	return r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) (err error) {
		s.tag, err = ops.TagBlob(ctx, s.assigned())
		return err
	})
}

// assigned returns the input of the tag.
func (s *dataKeyScope) assigned() kms.Assigned {
	a := kms.Assigned{Namespace: s.object.Namespace, Name: s.object.Name, Blob: s.blob, Digest: s.digest}
	if s.digest != "" {
		a.Accepted, a.Custody = s.accepted, string(s.custody)
	}
	return a
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
// TargetNotOwned, APIServer.
func (r *dataKeyReconciler) keepBlob(ctx context.Context, s *dataKeyScope) error {
	data, notes := map[string][]byte{entryBlob: []byte(s.blob.String())}, map[string]string{annotationBlobTag: s.tag}
	if s.previous != nil {
		data[entryPreviousBlob] = s.previous
	}
	if s.digest != "" {
		notes[annotationDataKeyDigest], notes[annotationCustody] = s.digest, string(s.custody)
	}
	if s.accepted != "" {
		notes[annotationAcceptedDigest] = s.accepted
	}
	ref, err := r.secrets.Ensure(ctx, secrets.Desired{Target: s.target, Data: data, Notes: notes}, s.secret)
	if err != nil {
		return err
	}
	status := &s.object.Status
	status.KeyID, status.KeyRef = s.key.ID.String(), s.object.Spec.KeyRef.DeepCopy()
	status.KeyVersionID = s.blob.KeyVersionID().String()
	status.CiphertextBlob = s.blob.String()
	status.DataKeyDigest = s.digest
	status.AcceptedDigest = s.accepted
	status.BlobTag = s.tag
	status.Custody = s.custody
	status.SecretRef = &ref
	if s.generated != nil {
		status.GenerationTime = s.generated
	}
	if s.verified != nil {
		status.VerificationTime = s.verified
	}
	return nil
}

// markMade says on the object itself that it has a data key: backups carry no status, and one that comes
// back before its Secret must not be taken for new.
func (r *dataKeyReconciler) markMade(ctx context.Context, s *dataKeyScope) error {
	if s.object.Annotations[v1alpha1.AnnotationDataKeyMade] != "" {
		return nil
	}
	version := s.blob.KeyVersionID().String()
	marked := s.object.DeepCopy() // the answer to the patch has the status of before
	metav1.SetMetaDataAnnotation(&marked.ObjectMeta, v1alpha1.AnnotationDataKeyMade, version)
	return r.Client.Patch(ctx, marked, client.MergeFrom(s.object))
}
