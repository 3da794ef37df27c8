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
	// ErrNothing is returned by Wrap for a key of no bytes.
	ErrNothing = errors.New("the key to wrap is empty")
	// ErrSM2Format is returned for an SM2 ciphertext format that is not known.
	ErrSM2Format = errors.New("unknown SM2 ciphertext format; known are " + list(SM2Formats()))
	// ErrUnwrap is returned for every ciphertext that does not decrypt, whatever the cause, so that
	// it is no oracle.
	ErrUnwrap = errors.New("the ciphertext does not decrypt under this key and algorithm")
)

// Wrap encrypts the raw bytes of a key (1 to MaxLen of them) under a public key. The result is as long
// as the modulus for RSA; for SM2 in the raw formats 97 bytes longer than the plaintext, in ASN1 about
// ten more. format is for SM2PKE, where empty means C1C3C2, and is not looked at otherwise.
//
// random is read for OAEP and SM2; for RSAES_PKCS1_V1_5 crypto/rsa uses the system's randomness,
// whatever it is given (since Go 1.26).
//
// Errors: *FitError, ErrNothing, ErrTooLong, ErrSM2Format, a *KeyError where there is no key, and what
// random fails with.
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
		return rsa.EncryptPKCS1v15(random, key, plaintext) //nolint:staticcheck // documented for import, and off unless allowed
	}
	return rsa.EncryptOAEP(algorithm.hash().New(), random, key, plaintext, nil)
}

// Unwrap decrypts what Wrap or any other implementation of the algorithm made. The caller wipes the
// result and checks its length: it may be any, none included.
//
// format is for SM2PKE: empty means raw C1C3C2 or DER, told apart by the first byte (0x04 or 0x30).
// The raw orders look alike, so C1C2C3 must be said; a format that is said must be the one.
//
// Errors: *FitError and ErrSM2Format, which come of the arguments alone, and ErrUnwrap for every
// failure that has to do with the ciphertext. OAEP and SM2 take the same time for each of those;
// RSAES_PKCS1_V1_5 does not, as crypto/rsa documents: who can send ciphertexts and see success or
// failure decrypts whatever they like with a million tries (Bleichenbacher 1998). That is why it is
// off unless allowed.
func (k *PrivateKey) Unwrap(algorithm Algorithm, format SM2Format, ciphertext []byte) (redact.Bytes, error) {
	if err := CheckFit(k.public.spec, algorithm); err != nil {
		return nil, err
	}
	if algorithm == SM2PKE {
		return unwrapSM2(k.sm2, format, ciphertext)
	}
	// RFC 8017, section 7.1.2, step 1b; crypto/rsa takes shorter ones too.
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
		return rsa.DecryptPKCS1v15(nil, key, ciphertext) //nolint:staticcheck // documented for import, and off unless allowed
	}
	return rsa.DecryptOAEP(algorithm.hash().New(), nil, key, ciphertext, nil)
}
