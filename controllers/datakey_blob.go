package controllers

import (
	"context"
	"fmt"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// specAgrees reports whether the spec and this blob are of the same data key, as far as that is known without the Secret.
func (s *dataKeyScope) specAgrees(is heldBlob) bool {
	given, err := parseIfGiven(s.object.Spec.CiphertextBlob)
	return err == nil && (given.IsZero() || is.identifies(blobDigest(given.String())))
}

// heldBlob is a blob where one is held: in the status, in the spec, or in the Secret.
type heldBlob struct {
	text     string
	digest   string           // of a data key that was re-encrypted; only that has the next two in a Secret
	accepted string           // the digest of a later blob of the same data key that the spec named while it was the current one
	custody  v1alpha1.Custody // "" for unknown
	tag      string
}

// known is the blob in the status.
func known(object *v1alpha1.DataKey) heldBlob {
	status := &object.Status
	return heldBlob{status.CiphertextBlob, status.DataKeyDigest, status.AcceptedDigest, status.Custody, status.BlobTag}
}

// identity is the digest that identifies the data key, which no re-encryption changes; "" for none.
func (b heldBlob) identity() string {
	if b.digest != "" || b.text == "" {
		return b.digest
	}
	return blobDigest(b.text)
}

// identifies reports whether a digest is that of a blob that is known to be the same data key.
func (b heldBlob) identifies(digest string) bool {
	return digest != "" && (digest == b.identity() || digest == b.accepted)
}

// agreesWith reports whether the blob in the spec is of the same data key.
func (b heldBlob) agreesWith(asked heldBlob) bool {
	return b.text == asked.text || b.identifies(asked.identity())
}

// findBlob sets secret and previous, and blob and source where a blob exists: in the status, in the spec or in the Secret. A blob
// that the operator has not seen before is verified, and so is one for which the module may have returned a wrong result. Reasons:
// TargetNotOwned, InvalidParameter, DataKeyDamaged, those of operations, and the codes of VerifyDataKey.
//
// A blob in the spec needs the verb export on the master key, which config/policy checks. A blob in the Secret
// needs the operator's tag: anyone who may write Secrets could put another data key's blob there, and have it
// exported under this name.
func (r *dataKeyReconciler) findBlob(ctx context.Context, s *dataKeyScope) error {
	if s.left {
		return r.findBlobLeft(ctx, s)
	}
	var err error
	if s.secret, err = r.secrets.Own(ctx, s.target); err != nil {
		return err
	}
	kept, err := s.keptBlob()
	if err != nil {
		return err
	}
	given, err := parseIfGiven(s.object.Spec.CiphertextBlob)
	if err != nil {
		return err
	}
	known, asked := known(s.object), heldBlob{text: given.String()}
	var found heldBlob
	switch {
	case known.text != "":
		found = known
	case asked.text != "" && !kept.agreesWith(asked):
		found = asked
	case kept.text != "":
		found, s.fromSecret = kept, true
	default:
		return nil
	}
	if asked.text != "" && !found.agreesWith(asked) {
		return s.otherBlobInSpec()
	}
	if kept.text != "" && kept.text != found.text && kept.identity() != found.identity() {
		return s.twoBlobs()
	}
	if err := s.set(found); err != nil {
		return err
	}
	if err := r.confirmBlob(ctx, s, known, kept); err != nil {
		return err
	}
	s.accept(asked, kept)
	return nil
}

// findBlobLeft is findBlob where the Secret has the blob that is in the status, so that its content need not be read. Reasons: those
// of findSource.
func (r *dataKeyReconciler) findBlobLeft(ctx context.Context, s *dataKeyScope) error {
	s.secret = s.target.Left(*s.object.Status.SecretRef)
	if err := s.set(known(s.object)); err != nil {
		return err
	}
	return r.findSource(ctx, s)
}

// confirmBlob verifies the blob where that is necessary, and chooses between that in the status and another one in the Secret.
// It sets source. Reasons: those of findBlob.
func (r *dataKeyReconciler) confirmBlob(ctx context.Context, s *dataKeyScope, known, kept heldBlob) error {
	switch {
	case known.text == "":
		return r.takeOver(ctx, s)
	case kept.text != "" && kept.text != known.text:
		return r.chooseBlob(ctx, s, kept)
	}
	if err := r.findSource(ctx, s); err != nil || !s.suspect {
		return err
	}
	return r.verify(ctx, s)
}

// set sets the blob and what is known of it.
func (s *dataKeyScope) set(found heldBlob) (err error) {
	s.blob, err = kms.ParseBlob(found.text)
	s.digest, s.accepted, s.custody, s.tag = found.digest, found.accepted, found.custody, found.tag
	if s.custody == "" {
		s.custody = v1alpha1.CustodyUnknown
	}
	return err
}

// accept records that the spec names the data key by a blob that is not its first one, so that it still agrees after the next
// re-encryption. The tag is made again where the Secret has another one than for that.
func (s *dataKeyScope) accept(asked, kept heldBlob) {
	if s.digest == "" {
		return
	}
	if digest := asked.identity(); digest != "" && digest != s.digest {
		s.accepted = digest
	}
	if kept.accepted != s.accepted || kept.custody != s.custody {
		s.tag = ""
	}
}

// takeOver verifies a blob that the status does not know. It must be under the master key that the spec names: config/policy
// checked the verbs on that one. Reasons: those of verify.
func (r *dataKeyReconciler) takeOver(ctx context.Context, s *dataKeyScope) error {
	s.source = s.key
	return r.verify(ctx, s)
}

// chooseBlob chooses between the blob in the status and another one of the same data key in the Secret. The operator ended after
// it had written a re-encrypted blob to the Secret, or someone has put a former blob there. One under the primary version is not
// given up for another. Reasons: InvalidParameter, those of findSource and verify.
func (r *dataKeyReconciler) chooseBlob(ctx context.Context, s *dataKeyScope, kept heldBlob) error {
	if s.blob.KeyVersionID() == s.key.Primary.ID {
		return r.findSource(ctx, s)
	}
	other := *s
	other.fromSecret = true
	if err := other.set(kept); err != nil {
		return err
	}
	if err := r.findSource(ctx, &other); err != nil {
		return err
	}
	if err := r.verify(ctx, &other); err != nil {
		if kms.CodeOf(err) == kms.InvalidParameter {
			return s.twoBlobs()
		}
		return err
	}
	*s = other
	return nil
}

// keptBlob returns the blob in the Secret, or none, and sets previous.
func (s *dataKeyScope) keptBlob() (heldBlob, error) {
	if s.secret == nil {
		return heldBlob{}, nil
	}
	s.previous = s.secret.Data[entryPreviousBlob]
	text := string(s.secret.Data[entryBlob])
	if text == "" && s.object.Status.CiphertextBlob == "" && s.object.Spec.CiphertextBlob == "" {
		return heldBlob{}, &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
			"%s belongs to this DataKey but its ciphertextBlob is missing. Restore it from a backup, or delete the Secret to generate a new data key.", s.target)}
	}
	if text == "" {
		return heldBlob{}, nil
	}
	blob, err := kms.ParseBlob(text)
	if err != nil {
		return heldBlob{}, s.unreadable(err)
	}
	notes := s.secret.Annotations
	kept := heldBlob{text: blob.String(), digest: notes[annotationDataKeyDigest], tag: notes[annotationBlobTag]}
	if kept.digest != "" {
		kept.accepted, kept.custody = notes[annotationAcceptedDigest], v1alpha1.Custody(notes[annotationCustody])
	}
	return kept, nil
}

func parseIfGiven(text string) (kms.Blob, error) {
	if text == "" {
		return kms.Blob{}, nil
	}
	return kms.ParseBlob(text)
}

func (s *dataKeyScope) twoBlobs() error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: fmt.Sprintf(
		"status, spec and %s contain different data keys. To keep the one in status, delete the Secret. Otherwise create a new DataKey.", s.target)}
}

func (s *dataKeyScope) otherBlobInSpec() error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: "status and spec contain different data keys. " +
		"spec.ciphertextBlob must be the first blob of the data key, or status.ciphertextBlob at the time when it is set. " +
		"To use the blob in spec, create a new DataKey with it, and another name."}
}
