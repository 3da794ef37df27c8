package wrapping

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"strings"

	"github.com/emmansun/gmsm/sm2"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// PrivateKey is the private half of a wrapping key. It never prints: formatting, logging and marshaling give its
// public fingerprint. It is immutable and safe for concurrent use, except for Wipe. Go's big integers cannot be wiped
// reliably, so parts of it remain in memory until it is garbage-collected.
type PrivateKey struct {
	// Pointers, so that fmt prints addresses even if a PrivateKey is in an unexported field of another type, for
	// which fmt does not call Format.
	public *PublicKey
	rsa    *rsa.PrivateKey
	sm2    *sm2.PrivateKey
}

var (
	errPrivateEmpty   = &KeyError{"the private key is empty"}
	errPrivateTooLong = &KeyError{"the private key is longer than 64 KiB, the maximum"}
	errPrivateForm    = &KeyError{"not a private key; use PKCS#8, PKCS#1 or SEC 1, as PEM or DER " +
		"(openssl pkey -in key.pem shows whether it is one)"}
	errPrivateTrailing  = &KeyError{"bytes follow the private key; remove them"}
	errPrivateDamaged   = &KeyError{"the private key is damaged"}
	errPrivateMismatch  = &KeyError{"the private key and the public key stored with it do not belong together"}
	errPrivateEncrypted = &KeyError{"the private key is encrypted with a password; " +
		"decrypt it: openssl pkey -in key.pem -out plain.pem (for DER add -inform DER)"}
	errPrivateIsPublic = &KeyError{"a public key or certificate; use its private key"}
	errPrivatePEM      = &KeyError{"the PEM contains no PRIVATE KEY"}
	errPrivateTwo      = &KeyError{"more than one private key; use only one"}
	errKeySpec         = &KeyError{"unknown wrapping key type; supported: " + list(KeySpecs())}
)

// ParsePrivateKey reads an RSA or SM2 private key: PKCS#8 (RFC 5958), PKCS#1 (RFC 8017, appendix A.1.2) or SEC 1 (RFC
// 5915), as PEM or DER, or Base64 of either. ParsePublicKey must accept its public key. Public keys and certificates
// may be in the same text; a second private key, or an invalid PEM block, makes the whole input invalid. The error
// for an encrypted key contains the command that decrypts it.
//
// Every error is a *KeyError. The caller must wipe data.
func ParsePrivateKey(data []byte) (*PrivateKey, error) {
	blocks, err := unpack(data, privateErrors, refuseEncrypted)
	if err != nil {
		return nil, err
	}
	defer wipeBlocks(blocks)
	der, err := onePrivate(blocks)
	if err != nil {
		return nil, err
	}
	return parsePrivate(der)
}

var privateErrors = inputErrors{empty: errPrivateEmpty, tooLong: errPrivateTooLong, form: errPrivateForm}

// refuseEncrypted rejects a key that is encrypted according to RFC 1421, section 4.6.1.1.
func refuseEncrypted(text []byte) *KeyError {
	if bytes.Contains(text, []byte("Proc-Type: 4,ENCRYPTED")) {
		return errPrivateEncrypted
	}
	return nil
}

// onePrivate returns the one private key among the blocks, whatever its label says of its form: the DER does. Public keys,
// certificates and parameters are often kept beside it.
func onePrivate(blocks []block) ([]byte, error) {
	var keys []block
	public := false
	for _, b := range blocks {
		switch {
		case b.kind == "OPENSSH PRIVATE KEY":
			return nil, errPrivateSSH
		case b.kind == "" || strings.HasSuffix(b.kind, "PRIVATE KEY"):
			keys = append(keys, b)
		case b.kind == "CERTIFICATE" || strings.HasSuffix(b.kind, "PUBLIC KEY"):
			public = true
		}
	}
	switch {
	case len(keys) == 1:
		return keys[0].der, nil
	case len(keys) > 1:
		return nil, errPrivateTwo
	case public:
		return nil, errPrivateIsPublic
	}
	return nil, errPrivatePEM
}

func parsePrivate(der []byte) (*PrivateKey, error) {
	switch shapeOf(der) {
	case shapePKCS8:
		return parsePKCS8(der)
	case shapePKCS1Private:
		return parsePKCS1(der)
	case shapeSEC1:
		return parseSEC1(der, false)
	case shapeEncryptedPKCS8:
		return nil, errPrivateEncrypted
	case shapeSPKI, shapeCertificate, shapePKCS1Public:
		return nil, errPrivateIsPublic
	case shapePKCS12:
		return nil, errPrivatePKCS12
	case shapeTrailing:
		return nil, errPrivateTrailing
	}
	return nil, errPrivateForm
}

// parsePKCS1 reads an RSAPrivateKey. The size is judged before crypto/x509 checks the numbers, which
// takes long for a modulus of absurd size.
func parsePKCS1(der []byte) (*PrivateKey, error) {
	if err := checkPKCS1Size(der); err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		return nil, errPrivateDamaged
	}
	return newRSAPrivate(key)
}

func newRSAPrivate(key *rsa.PrivateKey) (*PrivateKey, error) {
	public, err := FromRSA(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &PrivateKey{public: public, rsa: key}, nil
}

func newSM2Private(scalar []byte) (*PrivateKey, error) {
	if len(scalar) != coordinateLen {
		return nil, errPrivateDamaged
	}
	key, err := sm2.NewPrivateKey(scalar)
	if err != nil {
		return nil, errPrivateDamaged
	}
	public, err := FromSM2(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &PrivateKey{public: public, sm2: key}, nil
}

// PrivateKey reads the private half of a key, which PKCS8 has returned. For SM2 it does not look again whether the
// halves belong together, which was so when they were made: that costs a quarter of what unwrapping does. The caller
// wipes pkcs8. It fails with a *KeyError.
func (k *PublicKey) PrivateKey(pkcs8 []byte) (*PrivateKey, error) {
	algorithm, der, err := readPKCS8(pkcs8)
	if err != nil {
		return nil, err
	}
	if (algorithm == ECSM2) != (k.sm2 != nil) {
		return nil, errPrivateMismatch
	}
	if k.sm2 == nil {
		key, err := parsePKCS1(der)
		if err == nil && !key.public.Equal(k) {
			return nil, errPrivateMismatch
		}
		return key, err
	}
	scalar, _, err := readSEC1(der, true)
	if err != nil {
		return nil, err
	}
	d, last := new(big.Int).SetBytes(scalar), new(big.Int).Sub(k.sm2.Params().N, big.NewInt(2)) // GB/T 32918.1, section 6.1
	if len(scalar) != coordinateLen || d.Sign() == 0 || d.Cmp(last) > 0 {
		return nil, errPrivateDamaged
	}
	key, err := new(sm2.PrivateKey).FromECPrivateKey(&ecdsa.PrivateKey{PublicKey: *k.sm2, D: d})
	if err != nil {
		return nil, errPrivateMismatch
	}
	return &PrivateKey{public: k, sm2: key}, nil
}

// GeneratePrivateKey makes a private key: RSA with exponent 65537, or SM2. For SM2 it reads random;
// for RSA crypto/rsa uses the system's randomness, whatever it is given (since Go 1.26). It fails with
// a *KeyError for an unknown type, and when random fails.
func GeneratePrivateKey(random io.Reader, spec KeySpec) (*PrivateKey, error) {
	switch {
	case !spec.Valid():
		return nil, errKeySpec
	case spec == ECSM2:
		key, err := sm2.GenerateKey(random)
		if err != nil {
			return nil, fmt.Errorf("generate an SM2 key: %w", err)
		}
		public, err := FromSM2(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		return &PrivateKey{public: public, sm2: key}, nil
	}
	key, err := rsa.GenerateKey(random, spec.bits())
	if err != nil {
		return nil, fmt.Errorf("generate an RSA key: %w", err)
	}
	return newRSAPrivate(key)
}

// PKCS8 returns the key as DER PrivateKeyInfo (RFC 5958). The caller wipes it.
func (k *PrivateKey) PKCS8() (redact.Bytes, error) {
	if k.sm2 == nil {
		return x509.MarshalPKCS8PrivateKey(k.rsa)
	}
	scalar := k.sm2.D.FillBytes(make([]byte, coordinateLen))
	defer clear(scalar)
	point, ok := pointBytes(k.sm2.X, k.sm2.Y)
	if !ok {
		return nil, errors.New("an SM2 point out of range")
	}
	return marshalSM2Private(scalar, point), nil
}

// Wipe overwrites the private numbers that can be reached. Copies of some remain in crypto/rsa and gmsm until the key is
// garbage-collected. The key must not be used afterwards.
func (k *PrivateKey) Wipe() {
	if k.sm2 != nil {
		clear(k.sm2.D.Bits())
		return
	}
	pre := &k.rsa.Precomputed
	for _, n := range append([]*big.Int{k.rsa.D, pre.Dp, pre.Dq, pre.Qinv}, k.rsa.Primes...) {
		if n != nil {
			clear(n.Bits())
		}
	}
}

// Public returns the public half.
func (k *PrivateKey) Public() *PublicKey { return k.public }

// String implements fmt.Stringer; it shows which key it is and nothing of its private half.
func (k PrivateKey) String() string {
	if k.public == nil {
		return "[no private key]"
	}
	return "[private key " + k.public.Fingerprint() + "]"
}

// Format implements fmt.Formatter, so that no verb (%x, %v, %#v, …) reaches the key.
func (k PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalText implements encoding.TextMarshaler, which encoding/json and YAML use too.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalLog implements logr.Marshaler.
func (k PrivateKey) MarshalLog() any { return k.String() }

// LogValue implements slog.LogValuer.
func (k PrivateKey) LogValue() slog.Value { return slog.StringValue(k.String()) }
