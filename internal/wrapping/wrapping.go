// Package wrapping encrypts keys under public keys: RSA-OAEP and SM2 public-key encryption, the forms
// in which people hand over public keys, and their fingerprints.
package wrapping

// KeySpec is the type of a wrapping key.
type KeySpec string

// The wrapping key types. RSA_3072 and RSA_4096 are Keyconvoy's additions to the seeds.
const (
	RSA2048 KeySpec = "RSA_2048"
	RSA3072 KeySpec = "RSA_3072"
	RSA4096 KeySpec = "RSA_4096"
	ECSM2   KeySpec = "EC_SM2"
)

// Algorithm is how a key is encrypted under a public key.
type Algorithm string

// The wrapping algorithms.
const (
	// RSAESOAEPSHA256 is RSAES-OAEP (RFC 8017, section 7.1) with SHA-256 for the hash and for MGF1,
	// and an empty label.
	RSAESOAEPSHA256 Algorithm = "RSAES_OAEP_SHA_256"
	// RSAESOAEPSHA1 is RSAES-OAEP with SHA-1 for both, and an empty label.
	RSAESOAEPSHA1 Algorithm = "RSAES_OAEP_SHA_1"
	// RSAESPKCS1V15 is RSAES-PKCS1-v1_5 (RFC 8017, section 7.2). For import only, and only where
	// it is allowed: it is a padding oracle by nature.
	RSAESPKCS1V15 Algorithm = "RSAES_PKCS1_V1_5"
	// SM2PKE is SM2 public-key encryption (GB/T 32918.4) with SM3.
	SM2PKE Algorithm = "SM2PKE"
)

// SM2Format is how the parts of an SM2 ciphertext stand together.
type SM2Format string

// The formats of an SM2 ciphertext: C1 is a point (0x04 ‖ x ‖ y), C3 the SM3 hash, C2 the masked key.
const (
	C1C3C2 SM2Format = "C1C3C2" // raw, as the seeds' service writes it; the default
	C1C2C3 SM2Format = "C1C2C3" // raw, the older order
	ASN1   SM2Format = "ASN1"   // DER, GM/T 0009
)
