package kms

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
)

// blobTagLabel distinguishes these messages from those of import tokens, which begin with their version, a byte 1.
const blobTagLabel = "keyconvoy.io/blob-tag/1"

// Assigned is a data key's blob as the operator assigned it to a DataKey.
type Assigned struct {
	Namespace, Name string // of the DataKey
	Blob            Blob
	// Digest identifies a data key that was re-encrypted: the SHA-256 of its first blob, in hexadecimal. It is empty for
	// another.
	Digest string
	// Accepted and Custody are of a data key that was re-encrypted: the SHA-256 of a later blob that its owner named, and where
	// it existed in plaintext. Both are optional.
	Accepted, Custody string
}

// TagBlob returns the module's tag, in Base64, over a data key's blob and the DataKey to which it belongs. Only the module
// can create the tag, so it proves that the operator assigned the blob to that DataKey, and which data key it is.
func (o Operations) TagBlob(ctx context.Context, a Assigned) (string, error) {
	parts := []string{a.Namespace, a.Name, a.Blob.String()}
	if a.Digest != "" {
		parts = append(parts, a.Digest)
	}
	if a.Accepted != "" || a.Custody != "" {
		parts = append(parts, a.Accepted, a.Custody)
	}
	tag, err := o.Module.Authenticate(ctx, blobTagMessage(parts...))
	if err != nil {
		return "", FromModule(err)
	}
	return base64.StdEncoding.EncodeToString(tag), nil
}

// CheckBlobTag returns an InvalidParameter error unless the tag is the module's for that blob and that DataKey.
func (o Operations) CheckBlobTag(ctx context.Context, a Assigned, tag string) error {
	want, err := o.TagBlob(ctx, a)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(tag)) != 1 {
		return invalid("CiphertextBlob", "It has no valid tag for DataKey %s in namespace %s.", a.Name, a.Namespace)
	}
	return nil
}

// blobTagMessage is injective: each part is preceded by its length.
func blobTagMessage(parts ...string) []byte {
	message := []byte(blobTagLabel)
	for _, p := range parts {
		message = binary.BigEndian.AppendUint32(message, uint32(len(p))) //nolint:gosec // names and blobs are short
		message = append(message, p...)
	}
	return message
}
