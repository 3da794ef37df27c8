package wrapping

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
)

// PublicKey is a recipient's public key: RSA of 2048, 3072 or 4096 bits, or SM2. It does not change
// once made.
type PublicKey struct {
	spec KeySpec
	der  []byte // SubjectPublicKeyInfo
	rsa  *rsa.PublicKey
	sm2  *ecdsa.PublicKey
}

// KeyError says why a key was refused and what to do about it. Its text is stable and short and holds
// nothing of the input, so it may be shown to everyone.
type KeyError struct{ text string }

// Error implements error.
func (e *KeyError) Error() string { return e.text }

var (
	errPublicEmpty   = &KeyError{"the public key is empty"}
	errPublicTooLong = &KeyError{"the public key is longer than 64 KiB, which no key or certificate chain is"}
	errPublicForm    = &KeyError{"not a public key: give a SubjectPublicKeyInfo (openssl pkey -in key.pem -pubout) " +
		"or a certificate, as PEM, DER, or Base64 of either"}
	errPublicTrailing = &KeyError{"bytes follow the public key; give the key alone"}
	errPublicPrivate  = &KeyError{"a private key, which must not be put here; " +
		"give the public key (openssl pkey -in key.pem -pubout) and treat the private key as disclosed"}
	errPublicPEM      = &KeyError{"the PEM holds neither PUBLIC KEY nor CERTIFICATE; make it anew: openssl pkey -in key.pem -pubout"}
	errPublicTwo      = &KeyError{"more than one public key; give one public key, or one certificate with its chain"}
	errCertificate    = &KeyError{"the certificate is damaged"}
	errPublicDamaged  = &KeyError{"the public key is damaged"}
	errKeyAlgorithm   = &KeyError{"neither an RSA key for encryption nor an SM2 key"}
	errKeyCurve       = &KeyError{"an elliptic-curve key that does not name the curve SM2 (OID 1.2.156.10197.1.301)"}
	errKeyCompressed  = &KeyError{"an SM2 point in compressed form; convert it: openssl ec -pubin -in key.pem -pubout -conv_form uncompressed"}
	errKeyPoint       = &KeyError{"an SM2 point that is not on the curve"}
	errRSASize        = &KeyError{"an RSA key of another size than 2048, 3072 or 4096 bits"}
	errRSAModulus     = &KeyError{"an RSA modulus that is even, so not a product of two primes"}
	errRSAExponent    = &KeyError{"an RSA exponent that is even, below 65537 or above 2147483647; make a key with exponent 65537"}
	errPublicNotGiven = &KeyError{"no public key is given"}
)

// ParsePublicKey reads one public key as people hand it over: a SubjectPublicKeyInfo (RFC 5280, section
// 4.1.2.7) as DER or PEM, a certificate as DER or PEM, or any of these in Base64, which is the form of the
// seeds' PublicKeyBlob and what a Secret's data looks like. Of a chain of certificates it takes the leaf, which
// it finds by the signatures. Text around PEM blocks, Windows line ends and a byte-order mark are skipped; a
// block that cannot be read, a second key or a private key makes the whole input invalid.
//
// Nothing of a single certificate but its key is read: neither its dates nor its signature are checked, for
// the author of the reference is responsible for the key.
//
// Every error is a *KeyError.
func ParsePublicKey(data []byte) (*PublicKey, error) {
	if err := foreignPublic(data); err != nil {
		return nil, err
	}
	blocks, err := unpack(data, publicErrors, refusePrivate)
	if err != nil {
		return nil, err
	}
	defer wipeBlocks(blocks)
	der, err := onePublic(blocks)
	if err != nil {
		return nil, err
	}
	return parsePublic(der)
}

// ParseSPKI reads what SPKI returns, and no other form. Every error is a *KeyError.
func ParseSPKI(der []byte) (*PublicKey, error) {
	if len(der) == 0 {
		return nil, errPublicEmpty
	}
	return parseSPKI(der)
}

var publicErrors = inputErrors{empty: errPublicEmpty, tooLong: errPublicTooLong, form: errPublicForm}

// refusePrivate looks for a private key before anything else is said of a PEM text: its owner must hear of it.
func refusePrivate(text []byte) *KeyError {
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		return errPublicPrivate
	}
	return nil
}

// onePublic returns the one block that is meant: a public key, a certificate, or the leaf of a chain.
func onePublic(blocks []block) ([]byte, error) {
	var keys, certificates []block
	for _, b := range blocks {
		switch b.kind {
		case "", "PUBLIC KEY":
			keys = append(keys, b)
		case "CERTIFICATE":
			certificates = append(certificates, b)
		case "EC PARAMETERS", "SM2 PARAMETERS":
		default:
			return nil, otherPublic(b)
		}
	}
	switch {
	case len(keys) == 1 && len(certificates) == 0:
		return keys[0].der, nil
	case len(keys) > 0:
		return nil, errPublicTwo
	case len(certificates) > 0:
		return leafOf(certificates)
	}
	return nil, errPublicPEM
}

// otherPublic says what a PEM block is that is taken for no key.
func otherPublic(b block) *KeyError {
	switch b.kind {
	case "RSA PUBLIC KEY":
		return errPublicPKCS1
	case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
		return errPublicRequest
	case "TRUSTED CERTIFICATE":
		return errPublicTrusted
	case "PKCS7", "PKCS #7 SIGNED DATA", "CMS":
		return errPublicPKCS7
	}
	return b.invalid("is neither PUBLIC KEY nor CERTIFICATE; give the public key or the certificate alone")
}

func parsePublic(der []byte) (*PublicKey, error) {
	switch shapeOf(der) {
	case shapeSPKI:
		return parseSPKI(der)
	case shapeCertificate:
		spki, err := certificateSPKI(der)
		if err != nil {
			return nil, err
		}
		return parseSPKI(spki)
	case shapePKCS1Public:
		return nil, errPublicPKCS1
	case shapePKCS8, shapePKCS1Private, shapeSEC1, shapeEncryptedPKCS8:
		return nil, errPublicPrivate
	case shapePKCS7:
		return nil, errPublicPKCS7
	case shapePKCS12:
		return nil, errPublicPKCS12
	case shapeTrailing:
		return nil, errPublicTrailing
	}
	if err := barePoint(der); err != nil {
		return nil, err
	}
	return nil, errPublicForm
}

// FromRSA takes an RSA public key of 2048, 3072 or 4096 bits. Its exponent must be odd and at least
// 65537, as NIST SP 800-56B Rev. 2, section 6.2, asks of a key that transports keys, and fit in 31
// bits, which is all that crypto/rsa computes with. The error is a *KeyError.
func FromRSA(key *rsa.PublicKey) (*PublicKey, error) {
	if key == nil || key.N == nil {
		return nil, errPublicNotGiven
	}
	return newRSA(key.N, big.NewInt(int64(key.E)), nil)
}

// FromSM2 takes an SM2 public key; its curve must be that of gmsm's sm2.P256. The error is a
// *KeyError.
func FromSM2(key *ecdsa.PublicKey) (*PublicKey, error) {
	if key == nil || key.X == nil || key.Y == nil {
		return nil, errPublicNotGiven
	}
	if key.Curve != sm2.P256() {
		return nil, errKeyCurve
	}
	point, ok := pointBytes(key.X, key.Y)
	if !ok {
		return nil, errKeyPoint
	}
	return newSM2(point, nil)
}

// newRSA takes the key's SubjectPublicKeyInfo where it is known.
func newRSA(modulus, exponent *big.Int, spki []byte) (*PublicKey, error) {
	spec, err := rsaSpec(modulus)
	if err != nil {
		return nil, err
	}
	if exponent.Sign() <= 0 || exponent.Bit(0) == 0 || exponent.BitLen() < 17 || exponent.BitLen() > 31 {
		return nil, errRSAExponent
	}
	key := &rsa.PublicKey{N: new(big.Int).Set(modulus), E: int(exponent.Int64())}
	if spki == nil {
		spki = marshalRSA(key)
	}
	return &PublicKey{spec: spec, der: spki, rsa: key}, nil
}

func rsaSpec(modulus *big.Int) (KeySpec, error) {
	for _, spec := range KeySpecs() {
		if modulus.Sign() <= 0 || modulus.BitLen() != spec.bits() {
			continue
		}
		if modulus.Bit(0) == 0 {
			return "", errRSAModulus
		}
		return spec, nil
	}
	return "", errRSASize
}

// newSM2 takes the key's SubjectPublicKeyInfo where it is known.
func newSM2(point, spki []byte) (*PublicKey, error) {
	if len(point) == 1+coordinateLen && (point[0] == 2 || point[0] == 3) {
		return nil, errKeyCompressed
	}
	if len(point) != pointLen || point[0] != uncompressed {
		return nil, errKeyPoint
	}
	key, err := sm2.NewPublicKey(point)
	if err != nil {
		return nil, errKeyPoint
	}
	if spki == nil {
		spki = marshalSM2(point)
	}
	return &PublicKey{spec: ECSM2, der: spki, sm2: key}, nil
}

// Spec returns the key's type.
func (k *PublicKey) Spec() KeySpec { return k.spec }

// SPKI returns the canonical DER SubjectPublicKeyInfo: the same key has the same bytes, whatever form
// it came in (294, 422 or 550 bytes for RSA with exponent 65537, 91 for SM2).
func (k *PublicKey) SPKI() []byte { return bytes.Clone(k.der) }

// Base64 returns SPKI in standard Base64 on one line, as the documented API' PublicKey and PublicKeyBlob.
func (k *PublicKey) Base64() string { return base64.StdEncoding.EncodeToString(k.der) }

// Fingerprint returns "SHA256:" and 64 lower-case hexadecimal digits, the SHA-256 of SPKI: the figure
// that `openssl pkey -pubin -outform DER | openssl dgst -sha256` prints.
func (k *PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k.der)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

// RSA returns the RSA key, or nil for SM2. It is shared; do not change it.
func (k *PublicKey) RSA() *rsa.PublicKey { return k.rsa }

// SM2 returns the SM2 key, or nil for RSA. It is shared; do not change it.
func (k *PublicKey) SM2() *ecdsa.PublicKey { return k.sm2 }

// Equal says whether both are the same key. Two nils are equal.
func (k *PublicKey) Equal(other *PublicKey) bool {
	if k == nil || other == nil {
		return k == other
	}
	return bytes.Equal(k.der, other.der)
}
