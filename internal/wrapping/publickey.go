package wrapping

import (
	"crypto/ecdsa"
	"crypto/rsa"
)

// PublicKey is a recipient's public key: RSA of 2048, 3072 or 4096 bits, or SM2.
type PublicKey struct {
	spec KeySpec
	der  []byte // SubjectPublicKeyInfo
	rsa  *rsa.PublicKey
	sm2  *ecdsa.PublicKey
}
