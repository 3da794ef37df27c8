// Package wrapping encrypts keys under public keys: RSA-OAEP and SM2 public-key encryption, the formats of public and
// private keys, and the fingerprints of public keys.
//
// It wraps the raw bytes of a key. Errors about keys contain nothing of the input, so that they can be public.
package wrapping

import (
	"math"
	"slices"
	"strings"
)

// KeySpec is the type of a wrapping key.
type KeySpec string

// The wrapping key types. RSA_3072 and RSA_4096 are additions to the documented API.
const (
	RSA2048 KeySpec = "RSA_2048"
	RSA3072 KeySpec = "RSA_3072"
	RSA4096 KeySpec = "RSA_4096"
	ECSM2   KeySpec = "EC_SM2"
)

// KeySpecs lists every wrapping key type.
func KeySpecs() []KeySpec { return []KeySpec{RSA2048, RSA3072, RSA4096, ECSM2} }

// Valid reports whether s is one of KeySpecs.
func (s KeySpec) Valid() bool { return s == ECSM2 || s.bits() != 0 }

// bits is the length of an RSA modulus in bits, and 0 for a key type that is not RSA.
func (s KeySpec) bits() int {
	switch s {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	}
	return 0
}

// Algorithm is an algorithm that encrypts a key under a public key.
type Algorithm string

// The wrapping algorithms.
const (
	// RSAESOAEPSHA256 is RSAES-OAEP (RFC 8017, section 7.1) with SHA-256 for the hash and for MGF1,
	// and an empty label.
	RSAESOAEPSHA256 Algorithm = "RSAES_OAEP_SHA_256"
	// RSAESOAEPSHA1 is RSAES-OAEP with SHA-1 for both, and an empty label.
	RSAESOAEPSHA1 Algorithm = "RSAES_OAEP_SHA_1"
	// RSAESPKCS1V15 is RSAES-PKCS1-v1_5 (RFC 8017, section 7.2). For imports only, and only if allowed, because its
	// padding is open to padding-oracle attacks.
	RSAESPKCS1V15 Algorithm = "RSAES_PKCS1_V1_5"
	// SM2PKE is SM2 public-key encryption (GB/T 32918.4) with SM3.
	SM2PKE Algorithm = "SM2PKE"
)

// Algorithms lists every wrapping algorithm.
func Algorithms() []Algorithm {
	return []Algorithm{RSAESOAEPSHA256, RSAESOAEPSHA1, RSAESPKCS1V15, SM2PKE}
}

// Valid reports whether a is one of Algorithms.
func (a Algorithm) Valid() bool { return slices.Contains(Algorithms(), a) }

// SM2Format is the order and encoding of the parts of an SM2 ciphertext.
type SM2Format string

// The formats of an SM2 ciphertext: C1 is a point (0x04 ‖ x ‖ y), C3 the SM3 hash, C2 the masked key.
const (
	C1C3C2 SM2Format = "C1C3C2" // raw, as in the documented API; the default
	C1C2C3 SM2Format = "C1C2C3" // raw, the older order
	ASN1   SM2Format = "ASN1"   // DER, GM/T 0009
)

// SM2Formats lists every format of an SM2 ciphertext.
func SM2Formats() []SM2Format { return []SM2Format{C1C3C2, C1C2C3, ASN1} }

// Valid reports whether f is one of SM2Formats. The empty format, which means a default, is not.
func (f SM2Format) Valid() bool { return slices.Contains(SM2Formats(), f) }

// FitError means that an algorithm does not support a key type.
type FitError struct {
	Spec      KeySpec
	Algorithm Algorithm
}

// Error names the supported combinations. It contains no unknown values, so that it can be public.
func (e *FitError) Error() string {
	switch {
	case !e.Spec.Valid():
		return "unknown wrapping key type; supported: " + list(KeySpecs())
	case !e.Algorithm.Valid():
		return "unknown wrapping algorithm; supported: " + list(Algorithms())
	case e.Spec == ECSM2:
		return string(e.Algorithm) + " requires an RSA key; EC_SM2 requires SM2PKE"
	}
	return "SM2PKE requires an EC_SM2 key; " + string(e.Spec) + " requires RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1"
}

func list[T ~string](values []T) string {
	names := make([]string, len(values))
	for i, v := range values {
		names[i] = string(v)
	}
	return strings.Join(names, ", ")
}

// CheckFit returns a *FitError unless the algorithm can be used with that type of key: RSAES_… with
// RSA, SM2PKE with EC_SM2. The caller decides whether RSAES_PKCS1_V1_5 is allowed.
func CheckFit(spec KeySpec, algorithm Algorithm) error {
	if !spec.Valid() || !algorithm.Valid() || (spec == ECSM2) != (algorithm == SM2PKE) {
		return &FitError{Spec: spec, Algorithm: algorithm}
	}
	return nil
}

// MaxLen is the length in bytes of the longest key that can be wrapped: for RSA the modulus without the padding (RFC
// 8017, sections 7.1.1 and 7.2.1), for SM2 no limit (math.MaxInt), and 0 if the algorithm does not support the key
// type.
func MaxLen(spec KeySpec, algorithm Algorithm) int {
	switch {
	case CheckFit(spec, algorithm) != nil:
		return 0
	case algorithm == SM2PKE:
		return math.MaxInt
	case algorithm == RSAESPKCS1V15:
		return spec.bits()/8 - 11
	}
	return spec.bits()/8 - 2*algorithm.hash().Size() - 2
}

// CiphertextLen is the length in bytes of a ciphertext under an RSA key, or 0 if it varies (SM2).
func CiphertextLen(spec KeySpec) int { return spec.bits() / 8 }
