package controllers

import (
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/keystore"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/reconciler"
	"github.com/keyconvoy/keyconvoy/internal/secrets"
)

const (
	entryBlob = "ciphertextBlob"

	// annotationBlobTag is the module's tag over the blob and the DataKey's namespace and name: the proof that the
	// operator wrote the blob for that DataKey.
	annotationBlobTag = "keyconvoy.io/blob-tag"
)

// dataKeySecrets keep blobs.
var dataKeySecrets = &secrets.Class{
	Type: v1alpha1.SecretTypeDataKey, Mark: "keyconvoy.io/data-key", Entries: []string{entryBlob},
}

func dataKeyTarget(object *v1alpha1.DataKey) (secrets.Target, error) {
	return secrets.NewTarget(dataKeySecrets, object, object.Spec.Target)
}

// findKey sets target, master and key. Reasons: KeyNotReady, InvalidParameter.
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
	if was := s.object.Status.KeyVersionID; was != "" && !slices.Contains(s.master.Versions(), was) {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
			"The data key was made under key version %s, but %s %s is now a different key. To restore the original key, create an ImportedKey with "+
				"adopt.keyVersionID: %s and, if the module lost the key, adopt.materialFingerprint, and import its material again. "+
				"Otherwise create a new DataKey.", was, ref.Kind, ref.Name, was)}
	}
	return nil
}

// findUnchanged ends the reconcile when status and Secret are as they were left. It asks the caches only.
func (r *dataKeyReconciler) findUnchanged(ctx context.Context, s *dataKeyScope) error {
	status := s.object.Status
	if status.SecretRef == nil || status.CiphertextBlob == "" || !s.specAgrees(status.CiphertextBlob) {
		return nil
	}
	m, err := r.secrets.Look(ctx, s.target.Ref)
	if err == nil && s.target.IsAsLeft(m, status.SecretRef) {
		return reconciler.ErrDone
	}
	return err
}

// specAgrees says whether the spec asks for no other blob than this.
func (s *dataKeyScope) specAgrees(blob string) bool {
	if s.object.Spec.CiphertextBlob == "" {
		return true
	}
	want, err := kms.ParseBlob(s.object.Spec.CiphertextBlob)
	return err == nil && want.String() == blob
}

// findBlob sets secret, and blob where one exists: in the status, in the spec or in the Secret. A blob
// that the operator has not seen before is verified. Reasons: TargetNotOwned, InvalidParameter, those of
// operations, and the codes of VerifyDataKey.
//
// A blob in the spec needs the verb export on the master key, which config/policy checks. A blob in the Secret
// needs the operator's tag: anyone who may write Secrets could put another data key's blob there, and have it
// exported under this name.
func (r *dataKeyReconciler) findBlob(ctx context.Context, s *dataKeyScope) error {
	var err error
	if s.secret, err = r.secrets.Own(ctx, s.target); err != nil {
		return err
	}
	kept, err := s.keptBlob()
	if err != nil {
		return err
	}
	given, err := s.givenBlob()
	if err != nil {
		return err
	}
	known, err := s.knownBlob()
	if err != nil {
		return err
	}
	switch {
	case !known.IsZero():
		s.blob, s.custody, s.tag = known, s.object.Status.Custody, s.object.Status.BlobTag
	case !given.IsZero():
		s.blob, s.custody = given, v1alpha1.CustodyUnknown
	case !kept.IsZero():
		s.blob, s.custody, s.tag = kept, v1alpha1.CustodyUnknown, s.secret.Annotations[annotationBlobTag]
	default:
		return nil
	}
	if differs(kept, s.blob) || differs(given, s.blob) {
		return s.twoBlobs()
	}
	if !known.IsZero() {
		return nil
	}
	return r.verify(ctx, s)
}

// differs reports whether there is a blob, and it is not the other one.
func differs(blob, other kms.Blob) bool { return !blob.IsZero() && blob.String() != other.String() }

// keptBlob returns the blob in the Secret, or none.
func (s *dataKeyScope) keptBlob() (kms.Blob, error) {
	if s.secret == nil {
		return kms.Blob{}, nil
	}
	kept := string(s.secret.Data[entryBlob])
	if kept == "" && s.object.Status.CiphertextBlob == "" && s.object.Spec.CiphertextBlob == "" {
		return kms.Blob{}, &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
			"%s belongs to this DataKey but its ciphertextBlob is missing. Restore it from a backup, or delete the Secret to generate a new data key.", s.target)}
	}
	if kept == "" {
		return kms.Blob{}, nil
	}
	blob, err := kms.ParseBlob(kept)
	if err != nil {
		return kms.Blob{}, s.unreadable(err)
	}
	return blob, nil
}

// givenBlob returns the blob in the spec, or none.
func (s *dataKeyScope) givenBlob() (kms.Blob, error) {
	return parseIfGiven(s.object.Spec.CiphertextBlob)
}

// knownBlob returns the blob in the status, or none.
func (s *dataKeyScope) knownBlob() (kms.Blob, error) {
	return parseIfGiven(s.object.Status.CiphertextBlob)
}

func parseIfGiven(text string) (kms.Blob, error) {
	if text == "" {
		return kms.Blob{}, nil
	}
	return kms.ParseBlob(text)
}

// verify says whether the blob is a data key as the spec asks for, and whether one from the Secret has the
// operator's tag.
func (r *dataKeyReconciler) verify(ctx context.Context, s *dataKeyScope) error {
	return r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) error {
		return r.verifyIn(ctx, ops, s)
	})
}

func (r *dataKeyReconciler) verifyIn(ctx context.Context, ops kms.Service, s *dataKeyScope) error {
	if s.object.Spec.CiphertextBlob == "" {
		err := ops.CheckBlobTag(ctx, s.object.Namespace, s.object.Name, s.blob, s.tag)
		if kms.CodeOf(err) == kms.InvalidParameter {
			return s.untagged(err)
		}
		if err != nil {
			return err
		}
	}
	asked := s.request()
	err := r.recorded(keyLine(audit.TakeOverDataKey, s.object, s.key), func(*audit.Record) error {
		if err := ops.VerifyDataKey(ctx, s.key, s.blob, asked.EncryptionContext); err != nil {
			return err
		}
		return asked.CheckBlob(s.blob)
	})
	if kms.CodeOf(err) == kms.InvalidParameter {
		return s.unreadable(err)
	}
	return err
}

// unreadable adds that the Secret with the blob is not replaced.
func (s *dataKeyScope) unreadable(err error) error {
	e := reconciler.From(err)
	if s.object.Spec.CiphertextBlob == "" {
		e.Message += fmt.Sprintf(" It is in %s, which is not replaced. To generate a new data key, move the Secret away.", s.target)
	}
	return e
}

// untagged explains what to do about a blob in the Secret that may be another data key's.
func (s *dataKeyScope) untagged(err error) error {
	e := reconciler.From(err)
	e.Message += fmt.Sprintf(" It is in %s and is neither taken over nor replaced. To take it over, put it into spec.ciphertextBlob, "+
		"which requires the verb export on the %s %s. To make another data key, move the Secret away.", s.target, s.master.Ref().Kind, s.master.Ref().Name)
	return e
}

func (s *dataKeyScope) twoBlobs() error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
		"status, spec and %s contain different data keys. To keep the one in status, delete the Secret. Otherwise create a new DataKey.", s.target)}
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
	s.blob, s.custody = made.CiphertextBlob, v1alpha1.Custody(made.Custody)
	return nil
}

// tagBlob sets tag, unless the status or the Secret has it. Reasons: those of operations.
func (r *dataKeyReconciler) tagBlob(ctx context.Context, s *dataKeyScope) error {
	if s.tag != "" {
		return nil
	}
	return r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) (err error) {
		s.tag, err = ops.TagBlob(ctx, s.object.Namespace, s.object.Name, s.blob)
		return err
	})
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
	ref, err := r.secrets.Ensure(ctx, secrets.Desired{
		Target: s.target,
		Data:   map[string][]byte{entryBlob: []byte(s.blob.String())},
		Notes:  map[string]string{annotationBlobTag: s.tag},
	}, s.secret)
	if err != nil {
		return err
	}
	status := &s.object.Status
	status.KeyID = s.key.ID.String()
	status.KeyVersionID = s.blob.KeyVersionID().String()
	status.CiphertextBlob = s.blob.String()
	status.BlobTag = s.tag
	status.Custody = s.custody
	status.SecretRef = &ref
	return nil
}

// markMade says on the object itself that it has a data key: backups carry no status, and one that comes
// back before its Secret must not be taken for new.
func (r *dataKeyReconciler) markMade(ctx context.Context, s *dataKeyScope) error {
	version := s.blob.KeyVersionID().String()
	if s.object.Annotations[v1alpha1.AnnotationDataKeyMade] == version {
		return nil
	}
	marked := s.object.DeepCopy() // the answer to the patch has the status of before
	metav1.SetMetaDataAnnotation(&marked.ObjectMeta, v1alpha1.AnnotationDataKeyMade, version)
	return r.Client.Patch(ctx, marked, client.MergeFrom(s.object))
}
