package wrapping

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"io"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

var (
	// ErrTooLong is returned by Wrap for a key longer than MaxLen.
	ErrTooLong = errors.New("the key is too long for this wrapping key and algorithm")
	// ErrNothing is returned by Wrap for an empty key.
	ErrNothing = errors.New("the key to wrap is empty")
	// ErrSM2Format is returned for an unknown SM2 ciphertext format.
	ErrSM2Format = errors.New("unknown SM2 ciphertext format; supported: " + list(SM2Formats()))
	// ErrUnwrap is returned for every ciphertext that cannot be decrypted, so that it does not reveal the cause.
	ErrUnwrap = errors.New("the ciphertext cannot be decrypted with this key and algorithm")
)

// Wrap encrypts the raw bytes of a key (1 to MaxLen of them) under a public key. The result is as long
// as the modulus for RSA; for SM2 in the raw formats 97 bytes longer than the plaintext, in ASN1 about
// ten more. format is for SM2PKE, where empty means C1C3C2, and is ignored otherwise.
//
// random is read for OAEP and SM2; for RSAES_PKCS1_V1_5, crypto/rsa always uses the system's randomness (since Go
// 1.26).
//
// Errors: *FitError, ErrNothing, ErrTooLong, ErrSM2Format, a *KeyError for a nil key, and errors of random.
func Wrap(random io.Reader, key *PublicKey, algorithm Algorithm, format SM2Format, plaintext []byte) ([]byte, error) {
	if key == nil {
		return nil, errPublicNotGiven
	}
	switch err := CheckFit(key.spec, algorithm); {
	case err != nil:
		return nil, err
	case len(plaintext) == 0:
		return nil, ErrNothing
	case len(plaintext) > MaxLen(key.spec, algorithm):
		return nil, ErrTooLong
	case algorithm == SM2PKE:
		return wrapSM2(random, key.sm2, format, plaintext)
	}
	wrapped, err := wrapRSA(random, key.rsa, algorithm, plaintext)
	if err != nil {
		return nil, fmt.Errorf("encrypt with %s: %w", algorithm, err)
	}
	return wrapped, nil
}

func wrapRSA(random io.Reader, key *rsa.PublicKey, algorithm Algorithm, plaintext []byte) ([]byte, error) {
	if algorithm == RSAESPKCS1V15 {
		return rsa.EncryptPKCS1v15(random, key, plaintext) //nolint:staticcheck // documented for import, and disabled by default
	}
	return rsa.EncryptOAEP(algorithm.hash().New(), random, key, plaintext, nil)
}

// Unwrap decrypts the result of Wrap or of any other implementation of the algorithm. The caller must wipe the result
// and check its length, which can be 0.
//
// format is for SM2PKE: empty means raw C1C3C2 or DER, depending on the first byte (0x04 or 0x30). The raw orders
// cannot be distinguished, so C1C2C3 must be set; a ciphertext must have the format that is set.
//
// Errors: *FitError and ErrSM2Format, which depend only on the arguments, and ErrUnwrap for every failure that
// depends on the ciphertext. OAEP and SM2 take the same time for each failure. RSAES_PKCS1_V1_5 does not, as
// crypto/rsa documents: an attacker who can send ciphertexts and see success or failure can decrypt any ciphertext
// with a million attempts (Bleichenbacher 1998). Therefore it is disabled by default.
func (k *PrivateKey) Unwrap(algorithm Algorithm, format SM2Format, ciphertext []byte) (redact.Bytes, error) {
	if err := CheckFit(k.public.spec, algorithm); err != nil {
		return nil, err
	}
	if algorithm == SM2PKE {
		return unwrapSM2(k.sm2, format, ciphertext)
	}
	// RFC 8017, section 7.1.2, step 1b; crypto/rsa also accepts shorter ones.
	if len(ciphertext) != k.rsa.Size() {
		return nil, ErrUnwrap
	}
	plaintext, err := unwrapRSA(k.rsa, algorithm, ciphertext)
	if err != nil {
		return nil, ErrUnwrap
	}
	return plaintext, nil
}

func unwrapRSA(key *rsa.PrivateKey, algorithm Algorithm, ciphertext []byte) ([]byte, error) {
	if algorithm == RSAESPKCS1V15 {
		return rsa.DecryptPKCS1v15(nil, key, ciphertext) //nolint:staticcheck // documented for import, and disabled by default
	}
	return rsa.DecryptOAEP(algorithm.hash().New(), nil, key, ciphertext, nil)
}
