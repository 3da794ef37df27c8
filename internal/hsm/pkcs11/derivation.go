//go:build cgo

package pkcs11

import (
	"slices"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// derivation is how a token computes the key of an EncryptionContext from a master key. The self-test finds out which one the
// token supports. The usages of master keys depend on it, so a key that was created for one works with no other.
type derivation int

const (
	// byEncryptData: C_DeriveKey with CKM_AES_ECB_ENCRYPT_DATA.
	byEncryptData derivation = iota + 1
	// byKDF: C_DeriveKey with CKM_SP800_108_COUNTER_KDF. For the fingerprint and for keys that the host needs, C_Sign with
	// CKM_AES_CMAC, of which the KDF consists: NSS derives only sensitive keys from a sensitive key by the KDF.
	byKDF
	// byEncryption: C_Encrypt with CKM_AES_ECB, which returns the bytes that CKM_AES_ECB_ENCRYPT_DATA derives, but to the host.
	byEncryption
)

// derivations are in the order of preference.
var derivations = []derivation{byEncryptData, byKDF, byEncryption}

// String returns the derivation as a message shows it.
func (d derivation) String() string {
	switch d {
	case byEncryptData:
		return "derivation by CKM_AES_ECB_ENCRYPT_DATA"
	case byKDF:
		return "derivation by CKM_SP800_108_COUNTER_KDF and CKM_AES_CMAC"
	case byEncryption:
		return "encryption by CKM_AES_ECB"
	}
	return "no derivation"
}

// usages are the attributes of a master key that are true. All other usages are false.
func (d derivation) usages() []uint {
	switch d {
	case byKDF:
		return []uint{p11.CKA_DERIVE, p11.CKA_SIGN}
	case byEncryption:
		return []uint{p11.CKA_ENCRYPT}
	default:
		return []uint{p11.CKA_DERIVE}
	}
}

// otherUsages are the usages that a master key must not have.
func (d derivation) otherUsages() []uint {
	return slices.DeleteFunc([]uint{
		p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_SIGN, p11.CKA_VERIFY, p11.CKA_DERIVE,
	}, func(usage uint) bool { return slices.Contains(d.usages(), usage) })
}

// mechanisms are the mechanisms of a master key, for CKA_ALLOWED_MECHANISMS.
func (d derivation) mechanisms() []uint {
	switch d {
	case byKDF:
		return []uint{token.CKMCounterKDF, p11.CKM_AES_CMAC}
	case byEncryption:
		return []uint{p11.CKM_AES_ECB}
	default:
		return []uint{p11.CKM_AES_ECB_ENCRYPT_DATA}
	}
}

// proof is the operation by which a health check uses the same mechanism.
func (d derivation) proof() token.Proof {
	switch d {
	case byKDF:
		return token.SignatureProof
	case byEncryption:
		return token.EncryptionProof
	default:
		return token.DerivationProof
	}
}

// schemes returns the scheme of data keys that are generated inside, or "" if the key of the EncryptionContext cannot be inside,
// and that of data keys that the host encrypts.
func (d derivation) schemes() (inside, onHost ciphertext.Scheme) {
	switch d {
	case byKDF:
		return ciphertext.KDFKeyWrap, ciphertext.KDFGCM
	case byEncryption:
		return 0, ciphertext.DerivedGCM
	default:
		return ciphertext.DerivedKeyWrap, ciphertext.DerivedGCM
	}
}

// reads returns whether blobs of a scheme open. From CKM_AES_ECB, the host computes every other derivation. From CMACs, it cannot
// compute CKM_AES_ECB.
func (d derivation) reads(scheme ciphertext.Scheme) bool {
	switch scheme {
	case ciphertext.KDFKeyWrap, ciphertext.KDFGCM:
		return true
	case ciphertext.DerivedKeyWrap, ciphertext.DerivedGCM:
		return d != byKDF
	default:
		return false
	}
}

// deriveKEK derives the key-encryption key of a binding inside the token. template is wrappingKEK or unwrappingKEK.
func (s *session) deriveKEK(master p11.ObjectHandle, binding ciphertext.Binding, template []*p11.Attribute) (p11.ObjectHandle, error) {
	switch s.can.derivation {
	case byEncryptData:
		data := binding.Derivation(ciphertext.DerivedKeyWrap)
		return s.DeriveEncrypted(master, data[:], template)
	case byKDF:
		return s.DeriveByKDF(master, binding.KDFInput(ciphertext.KDFKeyWrap), template)
	default:
		return 0, hsm.Errorf(hsm.NotSupported, "the token cannot derive a key that remains in it")
	}
}

// deriveOnHost derives the key of a scheme and returns its value. The caller wipes it.
func (s *session) deriveOnHost(master p11.ObjectHandle, scheme ciphertext.Scheme, binding ciphertext.Binding) (redact.Bytes, error) {
	switch {
	case s.can.derivation == byKDF:
		return s.signAll(master, binding.KDFMessages(scheme))
	case scheme == ciphertext.DerivedKeyWrap || scheme == ciphertext.DerivedGCM:
		data := binding.Derivation(scheme)
		return s.encryptData(master, data[:])
	}
	// A blob of another token: the host computes the KDF from single blocks.
	block := &masterCipher{s: s, key: master}
	key := redact.Bytes(ciphertext.DeriveKey(block, scheme, binding))
	if block.err != nil {
		key.Wipe()
		return nil, block.err
	}
	return key, nil
}

// signAll returns the CMACs of messages, one after the other. The caller wipes the result.
func (s *session) signAll(master p11.ObjectHandle, messages [][]byte) (redact.Bytes, error) {
	all := make(redact.Bytes, 0, 16*len(messages))
	for _, message := range messages {
		tag, err := s.cmac(master, message)
		if err != nil {
			all.Wipe()
			return nil, err
		}
		all = append(all, tag...)
		tag.Wipe()
	}
	return all, nil
}

func (s *session) cmac(key p11.ObjectHandle, message []byte) (redact.Bytes, error) {
	tag, err := s.Sign(p11.CKM_AES_CMAC, key, message)
	return ofLength(16, tag, err)
}

// encryptData returns the encryption of one or two blocks under a key, which the caller wipes.
func (s *session) encryptData(key p11.ObjectHandle, data []byte) (redact.Bytes, error) {
	if s.can.derivation == byEncryption {
		out, err := s.Encrypt(p11.CKM_AES_ECB, key, data)
		return ofLength(len(data), out, err)
	}
	return s.DeriveEncryptedValue(key, data)
}

// ofLength returns an error for a result of another length, which it wipes.
func ofLength(n int, out redact.Bytes, err error) (redact.Bytes, error) {
	if err == nil && len(out) != n {
		out.Wipe()
		return nil, hsm.Errorf(hsm.Internal, "the token returned a result of a wrong length")
	}
	return out, err
}

// masterCipher is a cipher.Block whose key is in the token. Once err is set, its results are zeros.
type masterCipher struct {
	s   *session
	key p11.ObjectHandle
	err error
}

// BlockSize implements cipher.Block.
func (c *masterCipher) BlockSize() int { return 16 }

// Encrypt implements cipher.Block.
func (c *masterCipher) Encrypt(dst, src []byte) {
	var out redact.Bytes
	if c.err == nil {
		out, c.err = c.s.encryptData(c.key, src[:16])
	}
	if c.err != nil {
		clear(dst[:16])
		return
	}
	copy(dst, out)
	out.Wipe()
}

// Decrypt panics: no derivation decrypts.
func (c *masterCipher) Decrypt(_, _ []byte) { panic("pkcs11: a master key does not decrypt") }
