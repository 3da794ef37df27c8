package kms

import (
	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

// Blob is a CiphertextBlob, parsed where it entered. The zero value stands for no blob.
type Blob struct {
	parsed ciphertext.Blob
	text   string
}

// ParseBlob parses a CiphertextBlob from Base64. White space that tools add is ignored. Errors: InvalidParameter.
func ParseBlob(text string) (Blob, error) {
	parsed, err := ciphertext.Parse(text)
	if err != nil {
		e := invalid("CiphertextBlob", "It is not a CiphertextBlob. Use the Base64 text in status.ciphertextBlob of a DataKey.")
		e.Err = err
		return Blob{}, e
	}
	return blobOf(parsed), nil
}

func blobOf(parsed ciphertext.Blob) Blob { return Blob{parsed: parsed, text: parsed.String()} }

// String returns the blob as Base64 without white space, "" for none.
func (b Blob) String() string { return b.text }

// IsZero reports whether there is no blob.
func (b Blob) IsZero() bool { return b.text == "" }

// KeyVersionID returns the key version that the blob names.
func (b Blob) KeyVersionID() uuid.UUID { return b.parsed.KeyVersionID }
