package kms

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// MaxVersions is the maximum number of versions of a key, so that a key does not fill a token.
const MaxVersions = 64

// The interval of automatic rotation.
const (
	MinRotationInterval = 7 * 24 * time.Hour
	MaxRotationInterval = 730 * 24 * time.Hour
)

// CreateKeyVersion generates a key's next version in the module, or its first one, and returns it. The caller makes it the
// primary version. The same key always has the same next version, so a caller that was interrupted finds it again.
func (o Operations) CreateKeyVersion(ctx context.Context, key Key) (Version, error) {
	if err := key.permit(OpCreateKeyVersion, o.now()); err != nil {
		return Version{}, err
	}
	owner := key.owner(hsm.OriginGenerated, 1)
	if key.Primary.Fingerprint != nil {
		if len(key.Former)+1 >= MaxVersions {
			return Version{}, &Error{Code: UnsupportedOperation, Detail: fmt.Sprintf(
				"The key has %d versions, the maximum, and is not rotated any more. Create another key, and move the data keys to it.", MaxVersions)}
		}
		before, err := o.Module.FindKey(ctx, key.Primary.ID)
		if err != nil {
			return Version{}, FromModule(err)
		}
		// An object that adopted a key continues it.
		owner.KeyID, owner.Number = before.Owner.KeyID, key.Primary.Number+1
	}
	made, err := o.Module.GenerateKey(ctx, hsm.GenerateKeyRequest{
		KeyVersionID: VersionID(key.ID, owner.Number), Spec: key.Spec, Owner: owner,
	})
	if err != nil {
		return Version{}, FromModule(err)
	}
	return Version{ID: made.KeyVersionID, Number: owner.Number, Fingerprint: &made.Fingerprint, Custody: made.Custody}, nil
}

// DestroyKeyVersion destroys a version in the module, whatever its key's state. It is not an error if it does not exist. It is not
// an operation of the documented API, whose keys are destroyed as a whole.
func (o Operations) DestroyKeyVersion(ctx context.Context, version uuid.UUID) error {
	return FromModule(o.Module.DestroyKey(ctx, version))
}

// ReEncryptRequest is a request for ReEncrypt.
type ReEncryptRequest struct {
	// Key is the key in the blob.
	Key            Key
	CiphertextBlob Blob
	// EncryptionContext is that of the blob, and DestinationEncryptionContext that of the new one.
	EncryptionContext, DestinationEncryptionContext EncryptionContext
	// Destination is the key under whose primary version the data key moves. It may be the same key.
	Destination Key
}

// ReEncrypt encrypts a data key under the primary version of a key, and checks that the new blob contains it. The data key stays
// the same.
func (o Operations) ReEncrypt(ctx context.Context, req ReEncryptRequest) (DataKey, error) {
	for _, key := range []Key{req.Key, req.Destination} {
		if err := key.permit(OpReEncrypt, o.now()); err != nil {
			return DataKey{}, err
		}
	}
	open, err := openRequest(req.Key, req.CiphertextBlob, req.EncryptionContext)
	if err != nil {
		return DataKey{}, err
	}
	if err := req.DestinationEncryptionContext.check(); err != nil {
		return DataKey{}, err
	}
	to := req.Destination.Primary.ID
	binding := ciphertext.Bind(to, req.DestinationEncryptionContext)
	made, err := o.Module.ReencryptDataKey(ctx, hsm.ReencryptRequest{
		OpenRequest: open, NewKeyVersionID: to, NewBinding: binding,
	})
	if err != nil {
		return DataKey{}, FromModule(err)
	}
	moved := hsm.OpenRequest{Blob: made.Blob, Binding: binding}
	if err := o.checkSameDataKey(ctx, open, moved); err != nil {
		return DataKey{}, FromModule(err)
	}
	return DataKey{KeyID: req.Destination.ID, KeyVersionID: to, CiphertextBlob: blobOf(made.Blob), Custody: made.Custody}, nil
}

// checkSameDataKey checks that a blob opens and contains the data key of the former one: encrypted under the former key again, it
// must result in the former blob. That a blob opens does not show which data key is in it. A scheme with random IVs results in
// another blob each time, but there the host has checked the integrity of the data key. Errors: those of a module, and WrongResult.
func (o Operations) checkSameDataKey(ctx context.Context, former, moved hsm.OpenRequest) error {
	back, err := o.Module.ReencryptDataKey(ctx, hsm.ReencryptRequest{
		OpenRequest: moved, NewKeyVersionID: former.Blob.KeyVersionID, NewBinding: former.Binding,
	})
	if hsm.KindOf(err) == hsm.InvalidBlob {
		return hsm.Wrap(hsm.WrongResult, err, "the module does not decrypt what it re-encrypted")
	}
	if err != nil {
		return err
	}
	sameScheme := former.Blob.Scheme == back.Blob.Scheme && former.Blob.Scheme.WrapsKeys()
	if sameScheme && !bytes.Equal(former.Blob.Payload, back.Blob.Payload) {
		return hsm.Errorf(hsm.WrongResult, "the module re-encrypted another data key than the one in the blob")
	}
	return nil
}
