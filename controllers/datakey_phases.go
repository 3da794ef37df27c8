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

// findKey sets target, master and key, which holds its versions: anyone may create a key that asks for those of another one.
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

// findSuspect sets suspect. Reasons: KeyStoreNotReady.
func (r *dataKeyReconciler) findSuspect(ctx context.Context, s *dataKeyScope) (err error) {
	s.suspect, err = r.isSuspect(ctx, s.master.Store(), doneAt(s.object))
	return err
}

// doneAt returns when the module generated the data key or opened it last; nil if that is not known.
func doneAt(k *v1alpha1.DataKey) *metav1.Time {
	if k.Status.VerificationTime != nil {
		return k.Status.VerificationTime
	}
	return k.Status.GenerationTime
}

// findUnchanged ends the reconcile when status and Secret are as they were left. It asks the caches only.
func (r *dataKeyReconciler) findUnchanged(ctx context.Context, s *dataKeyScope) error {
	status := s.object.Status
	if s.suspect || status.SecretRef == nil || status.CiphertextBlob == "" || !s.specAgrees(known(s.object)) || s.moves(status.KeyVersionID) {
		return nil
	}
	m, err := r.secrets.Look(ctx, s.target.Ref)
	if err == nil && s.target.IsAsLeft(m, status.SecretRef) {
		return reconciler.ErrDone
	}
	return err
}

// specAgrees says whether the spec asks for no other data key than this, which is known without a look at the Secret.
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
	if s.blob.KeyVersionID() == s.key.Primary.ID {
		return r.findSource(ctx, s)
	}
	*s = other
	return nil
}

// findSource sets source: the key under which the blob is. That is the master key, or the one that keyRef named when the blob
// was put into the status. Reasons: InvalidParameter, and those of Holder.
func (r *dataKeyReconciler) findSource(ctx context.Context, s *dataKeyScope) error {
	version := s.blob.KeyVersionID().String()
	if slices.Contains(s.master.Versions(), version) {
		s.source = s.key
		return nil
	}
	here := func(k *keyring.Key) bool { return k.Ref().Namespace == s.object.Namespace }
	holder, err := r.keys.Holder(ctx, version, here)
	if err != nil {
		return err
	}
	ref := s.master.Ref()
	if holder == nil || !holder.Holds() {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
			"The data key was made under key version %s, but %s %s is now a different key. To restore the original key, create the object that "+
				"had it again: a GeneratedKey with that version and its other ones in adopt.keyVersionIDs, or an ImportedKey with adopt.keyVersionID: %s and, "+
				"if the module lost the key, adopt.materialFingerprint, and import its material again. Otherwise create a new DataKey.", version, ref.Kind, ref.Name, version)}
	}
	if holder.Store() != s.master.Store() {
		return &kms.Error{Code: kms.InvalidParameter, Parameter: "keyRef", Detail: fmt.Sprintf(
			"The data key is under %s %s, and %s %s is in another key store. A module re-encrypts data keys under its own keys only: export the data key to the other module instead.",
			holder.Ref().Kind, holder.Ref().Name, ref.Kind, ref.Name)}
	}
	s.source, err = holder.KMS()
	return err
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

// verify says whether the blob is a data key as the spec asks for, and whether one from the Secret has the
// operator's tag.
func (r *dataKeyReconciler) verify(ctx context.Context, s *dataKeyScope) error {
	err := r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) error {
		if s.suspect && !s.fromSecret {
			return r.verifySuspect(ctx, ops, s)
		}
		return r.verifyIn(ctx, ops, s)
	})
	if err == nil {
		s.verified = r.doneNow()
	}
	return err
}

// verifySuspect says whether the blob, which the operator generated or verified before, opens.
func (r *dataKeyReconciler) verifySuspect(ctx context.Context, ops kms.Service, s *dataKeyScope) error {
	err := ops.VerifyDataKey(ctx, s.source, s.blob, s.request().EncryptionContext)
	if kms.CodeOf(err) != kms.InvalidParameter {
		return err
	}
	damaged := &reconciler.Error{Class: reconciler.Terminal, Reason: v1alpha1.ReasonDataKeyDamaged, Err: err,
		Message: "The data key does not open: the module returned wrong results when it generated or re-encrypted the data key. The operator does not replace a data key " +
			"that may be in use. Create another DataKey, export that one instead, and delete this one with its Secret."}
	if s.previous != nil {
		damaged.Message += fmt.Sprintf(" The entry %s of %s is the blob before the re-encryption: set spec.ciphertextBlob of the other DataKey to it to keep the data key.", entryPreviousBlob, s.target)
	}
	return damaged
}

// doneNow returns the time for a status.
func (r *dataKeyReconciler) doneNow() *metav1.Time {
	now := metav1.NewTime(r.clock.Now().UTC())
	return &now
}

func (r *dataKeyReconciler) verifyIn(ctx context.Context, ops kms.Service, s *dataKeyScope) error {
	if s.fromSecret {
		err := ops.CheckBlobTag(ctx, s.assigned(), s.tag)
		given, _ := parseIfGiven(s.object.Spec.CiphertextBlob) // findBlob has parsed it
		switch {
		case kms.CodeOf(err) == kms.InvalidParameter && given.String() == s.blob.String():
			// The spec names the blob, as after the loss of the module with its tags. What the Secret says of it does not count.
			if err := s.set(heldBlob{text: s.blob.String()}); err != nil {
				return err
			}
		case kms.CodeOf(err) == kms.InvalidParameter:
			return s.untagged(err)
		case err != nil:
			return err
		}
	}
	asked := s.request()
	err := r.recorded(keyLine(audit.TakeOverDataKey, s.object, s.key), func(*audit.Record) error {
		if err := ops.VerifyDataKey(ctx, s.source, s.blob, asked.EncryptionContext); err != nil {
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
	if s.object.Spec.CiphertextBlob == "" || s.fromSecret {
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

func (s *dataKeyScope) otherBlobInSpec() error {
	return &kms.Error{Code: kms.InvalidParameter, Parameter: "CiphertextBlob", Detail: "status and spec contain different data keys. " +
		"spec.ciphertextBlob must be the first blob of the data key, or status.ciphertextBlob at the time when it is set. " +
		"To use the blob in spec, create a new DataKey with it, and another name."}
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

// moves reports whether a data key under a version is to be re-encrypted: its owner wants it under the primary version, or keyRef
// names another key than before.
func (s *dataKeyScope) moves(version string) bool {
	return version != s.key.Primary.ID.String() &&
		(s.object.Spec.ReencryptsOnRotation() || !slices.Contains(s.master.Versions(), version))
}

// reencrypt moves the data key under the primary version of the master key. The former blob stays in the Secret until the next
// time, so that there is a readable blob whenever the operator ends. Reasons: those of operations, and the codes of ReEncrypt.
func (r *dataKeyReconciler) reencrypt(ctx context.Context, s *dataKeyScope) error {
	if !s.moves(s.blob.KeyVersionID().String()) {
		return nil
	}
	var moved kms.DataKey
	err := r.stores.Use(ctx, s.object.Namespace, s.master.StoreRef(), func(ops keystore.Session) error {
		return r.recorded(keyLine(audit.ReEncrypt, s.object, s.key), func(line *audit.Record) (err error) {
			moved, err = ops.ReEncrypt(ctx, kms.ReEncryptRequest{
				Key: s.source, CiphertextBlob: s.blob, EncryptionContext: s.request().EncryptionContext, Destination: s.key,
			})
			line.Custody = moved.Custody
			return err
		})
	})
	if err != nil {
		return err
	}
	if s.digest == "" {
		s.digest = blobDigest(s.blob.String())
	}
	s.previous, s.blob, s.tag = []byte(s.blob.String()), moved.CiphertextBlob, ""
	s.custody = weakest(s.custody, v1alpha1.Custody(moved.Custody))
	s.verified = r.doneNow() // ReEncrypt has opened it
	return nil
}

// custodies are from the strongest to the weakest.
var custodies = []v1alpha1.Custody{
	v1alpha1.Custody(hsm.CustodyModule), v1alpha1.Custody(hsm.CustodyHost), v1alpha1.Custody(hsm.CustodySoftware), v1alpha1.CustodyUnknown,
}

func weakest(a, b v1alpha1.Custody) v1alpha1.Custody {
	if slices.Index(custodies, a) > slices.Index(custodies, b) {
		return a
	}
	return b
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

// assigned is what the tag is over.
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
	status.KeyID = s.key.ID.String()
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
