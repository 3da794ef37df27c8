//go:build cgo

package token

import (
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Proof is an operation with an AES key, by which HealthCheck proves that a token works.
type Proof int32

// The proofs. Tokens differ in which of these operations they support.
const (
	// AnyProof: the first of the following that succeeds.
	AnyProof Proof = iota
	// DerivationProof: C_DeriveKey with CKM_AES_ECB_ENCRYPT_DATA.
	DerivationProof
	// SignatureProof: C_Sign with CKM_AES_CMAC.
	SignatureProof
	// EncryptionProof: C_Encrypt with CKM_AES_ECB.
	EncryptionProof
)

// ProveHealthBy sets the proof for the following health checks of the token. Until it is called, they try all.
func (s *Session) ProveHealthBy(proof Proof) { s.token.proof.Store(int32(proof)) }

// HealthCheck proves by an operation that token, login and session work: it generates a private session key and uses it twice.
// C_GetSessionInfo and C_GenerateRandom prove less: tpm2-pkcs11 answers the former long after the device is lost, and NSS the
// latter in a closed session.
func (s *Session) HealthCheck() error {
	if proof := Proof(s.token.proof.Load()); proof != AnyProof {
		return s.prove(proof)
	}
	var err error
	for _, proof := range []Proof{DerivationProof, SignatureProof, EncryptionProof} {
		if err = s.prove(proof); err == nil || ClassOf(err) == ConnectionLost {
			return err
		}
	}
	return err
}

func (s *Session) prove(proof Proof) error {
	key, err := s.GenerateSessionKey(p11.CKM_AES_KEY_GEN, healthKeys[proof])
	if err != nil {
		return err
	}
	values := make([]redact.Bytes, 2)
	for i := range values {
		block := make([]byte, 16)
		block[0] = byte(i)
		if values[i], err = s.compute(proof, key, block); err != nil {
			return err
		}
	}
	if string(values[0]) == string(values[1]) {
		return p11.Error(p11.CKR_DEVICE_ERROR) // the token returns CKR_OK and computes nothing
	}
	return nil
}

// compute returns the result of the operation of a proof over a block.
func (s *Session) compute(proof Proof, key p11.ObjectHandle, block []byte) (redact.Bytes, error) {
	switch proof {
	case SignatureProof:
		return s.Sign(p11.CKM_AES_CMAC, key, block)
	case EncryptionProof:
		return s.Encrypt(p11.CKM_AES_ECB, key, block)
	default:
		return s.DeriveEncryptedValue(key, block)
	}
}

// healthKeys are the templates of the keys that HealthCheck generates.
var healthKeys = map[Proof][]*p11.Attribute{
	DerivationProof: healthKey(p11.CKA_DERIVE),
	SignatureProof:  healthKey(p11.CKA_SIGN),
	EncryptionProof: healthKey(p11.CKA_ENCRYPT),
}

func healthKey(usage uint) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_AES),
		p11.NewAttribute(p11.CKA_TOKEN, false),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32),
		p11.NewAttribute(usage, true),
	}
}
