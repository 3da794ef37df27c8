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
// nothing of the input, so it may be shown to anybody.
type KeyError struct{ text string }

// Error implements error.
func (e *KeyError) Error() string { return e.text }

var (
	errPublicEmpty   = &KeyError{"the public key is empty"}
	errPublicTooLong = &KeyError{"the public key is longer than 64 KiB, which no key or certificate chain is"}
	errPublicForm    = &KeyError{"not a public key: give a SubjectPublicKeyInfo (openssl pkey -in key.pem -pubout) " +
		"or a certificate, as PEM, DER, or Base64 of either"}
	errPublicTrailing = &KeyError{"bytes follow the public key; give the key alone"}
	errPublicSSH      = &KeyError{"an SSH public key; convert it: ssh-keygen -e -m PKCS8 -f key.pub"}
	errPublicPKCS1    = &KeyError{"a PKCS#1 public key; convert it: openssl rsa -RSAPublicKey_in -in key.pem -pubout " +
		"(for DER add -inform DER)"}
	errPublicPrivate = &KeyError{"a private key, which must not be put here; " +
		"give the public key (openssl pkey -in key.pem -pubout) and treat the private key as disclosed"}
	errPublicPEM = &KeyError{"the PEM holds neither PUBLIC KEY nor CERTIFICATE, or it is damaged; " +
		"keep its line breaks, or make it anew: openssl pkey -in key.pem -pubout"}
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

// ParsePublicKey reads a public key as people hand it over: a SubjectPublicKeyInfo (RFC 5280, section
// 4.1.2.7) as DER or PEM, a certificate as DER or PEM (of a chain the first one), or any of these in
// Base64, which is the form of the seeds' PublicKeyBlob and what a Secret's data looks like. Text
// before a PEM block, Windows line ends and a byte-order mark are tolerated.
//
// Nothing of a certificate but its key is read: neither its dates nor its signature are checked, for
// whoever names a recipient here vouches for the key.
//
// Every error is a *KeyError.
func ParsePublicKey(data []byte) (*PublicKey, error) {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("ssh-")) {
		return nil, errPublicSSH
	}
	in, err := publicInput.read(data)
	if err != nil {
		return nil, err
	}
	defer in.wipe()
	switch in.shape {
	case shapeSPKI:
		return parseSPKI(in.der)
	case shapeCertificate:
		spki, err := certificateSPKI(in.der)
		if err != nil {
			return nil, err
		}
		return parseSPKI(spki)
	case shapePKCS1Public:
		return nil, errPublicPKCS1
	case shapePKCS8, shapePKCS1Private, shapeSEC1, shapeEncryptedPKCS8:
		return nil, errPublicPrivate
	case shapeTrailing:
		return nil, errPublicTrailing
	}
	return nil, errPublicForm
}

// publicInput takes the first public key or certificate. A private key among the blocks spoils the
// lot: its owner must hear of it.
var publicInput = inputRules{
	empty: errPublicEmpty, tooLong: errPublicTooLong, form: errPublicForm,
	use: func(pemType string) bool { return pemType == "PUBLIC KEY" || pemType == "CERTIFICATE" },
	refuse: func(text []byte) *KeyError {
		if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
			return errPublicPrivate
		}
		return nil
	},
	none: func(text []byte) *KeyError {
		if bytes.Contains(text, []byte("RSA PUBLIC KEY-----")) {
			return errPublicPKCS1
		}
		return errPublicPEM
	},
}

// FromRSA takes an RSA public key of 2048, 3072 or 4096 bits. Its exponent must be odd and at least
// 65537, as NIST SP 800-56B Rev. 2, section 6.2, asks of a key that transports keys, and fit in 31
// bits, which is all that crypto/rsa computes with. The error is a *KeyError.
func FromRSA(key *rsa.PublicKey) (*PublicKey, error) {
	if key == nil || key.N == nil {
		return nil, errPublicNotGiven
	}
	return newRSA(key.N, big.NewInt(int64(key.E)))
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
	return newSM2(point)
}

func newRSA(modulus, exponent *big.Int) (*PublicKey, error) {
	spec, err := rsaSpec(modulus)
	if err != nil {
		return nil, err
	}
	if exponent.Sign() <= 0 || exponent.Bit(0) == 0 || exponent.BitLen() < 17 || exponent.BitLen() > 31 {
		return nil, errRSAExponent
	}
	key := &rsa.PublicKey{N: new(big.Int).Set(modulus), E: int(exponent.Int64())}
	return &PublicKey{spec: spec, der: marshalRSA(key), rsa: key}, nil
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

func newSM2(point []byte) (*PublicKey, error) {
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
	return &PublicKey{spec: ECSM2, der: marshalSM2(point), sm2: key}, nil
}

// Spec returns the key's type.
func (k *PublicKey) Spec() KeySpec { return k.spec }

// SPKI returns the canonical DER SubjectPublicKeyInfo: the same key has the same bytes, whatever form
// it came in (294, 422 or 550 bytes for RSA with exponent 65537, 91 for SM2).
func (k *PublicKey) SPKI() []byte { return bytes.Clone(k.der) }

// Base64 returns SPKI in standard Base64 on one line, as the seeds' PublicKey and PublicKeyBlob.
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
