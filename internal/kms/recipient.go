package kms

import "github.com/keyconvoy/keyconvoy/internal/wrapping"

// Recipient is a public key to which a data key may be exported, and the algorithm for it. The zero value stands for no
// recipient.
type Recipient struct {
	key       *wrapping.PublicKey
	algorithm wrapping.Algorithm
}

// NewRecipient is the one place that decides to which public keys data keys are exported, and how. Errors:
// InvalidParameter for a key that does not have the type spec, for an algorithm that does not support it, and for
// RSAES_PKCS1_V1_5.
func NewRecipient(key *wrapping.PublicKey, spec wrapping.KeySpec, algorithm wrapping.Algorithm) (Recipient, error) {
	if algorithm == wrapping.RSAESPKCS1V15 {
		return Recipient{}, invalid("WrappingAlgorithm", "RSAES_PKCS1_V1_5 is for imports only. Use RSAES_OAEP_SHA_256.")
	}
	if err := wrapping.CheckFit(spec, algorithm); err != nil {
		return Recipient{}, invalid("WrappingAlgorithm", "%s", err)
	}
	if key.Spec() != spec {
		return Recipient{}, invalid("WrappingKeySpec", "The public key is %s, not %s.", key.Spec(), spec)
	}
	return Recipient{key, algorithm}, nil
}

// IsZero reports whether there is no recipient.
func (r Recipient) IsZero() bool { return r.key == nil }
