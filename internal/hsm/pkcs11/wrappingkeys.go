//go:build cgo

package pkcs11

import (
	"context"
	"crypto/rsa"
	"maps"
	"math/big"
	"slices"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// CreateWrappingKey implements hsm.Module.
func (m *Module) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	if err := req.Validate(); err != nil {
		return hsm.WrappingKey{}, err
	}
	if req.Spec == wrapping.ECSM2 {
		return hsm.WrappingKey{}, hsm.Errorf(hsm.NotSupported, errNoSM, "SM2")
	}
	bits := map[wrapping.KeySpec]int{wrapping.RSA2048: 2048, wrapping.RSA3072: 3072, wrapping.RSA4096: 4096}[req.Spec]
	return result(ctx, m, func(s *session) (hsm.WrappingKey, error) {
		unlock, err := s.LockID(req.ID)
		if err != nil {
			return hsm.WrappingKey{}, err
		}
		defer unlock()
		if key, ok, err := s.pair(req.ID); ok || err != nil {
			return key, err
		}
		return s.createPair(req, bits)
	})
}

// ListWrappingKeys implements hsm.Module from the labels of the keys.
func (m *Module) ListWrappingKeys(ctx context.Context) ([]hsm.WrappingKey, error) {
	return result(ctx, m, func(s *session) ([]hsm.WrappingKey, error) {
		pairs := map[uuid.UUID]hsm.WrappingKey{}
		for _, class := range []uint{p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY} {
			found, err := s.eachObject(class, func(id uuid.UUID, label string) {
				if pair, ok := parsePairLabel(label); ok {
					pair.ID = id
					pairs[id] = pair
				}
			})
			if err == nil && found == 0 && class == p11.CKO_PRIVATE_KEY {
				err = s.HealthCheck()
			}
			if err != nil {
				return nil, err
			}
		}
		return slices.Collect(maps.Values(pairs)), nil
	})
}

// eachObject calls visit for each token object of a class whose CKA_ID is a UUID. It returns the number of objects of that
// class that could be read, whatever their CKA_ID.
func (s *session) eachObject(class uint, visit func(id uuid.UUID, label string)) (found int, err error) {
	handles, err := s.FindObjects([]*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, class), p11.NewAttribute(p11.CKA_TOKEN, true),
	})
	if err != nil {
		return 0, err
	}
	for _, h := range handles {
		values, err := s.GetAttributes(h, p11.CKA_ID, p11.CKA_LABEL)
		if token.HasCode(err, p11.CKR_OBJECT_HANDLE_INVALID) {
			continue // destroyed since the search
		}
		if err != nil {
			return 0, err
		}
		found++
		if id, err := uuid.FromBytes(values[0]); err == nil {
			visit(id, string(values[1]))
		}
	}
	return found, nil
}

// DestroyWrappingKey implements hsm.Module. It destroys the private half first, so that a crash leaves only a public key.
func (m *Module) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return m.do(ctx, func(s *session) error {
		unlock, err := s.LockID(id)
		if err != nil {
			return err
		}
		defer unlock()
		return s.destroyPair(id)
	})
}

func (s *session) destroyPair(id uuid.UUID) error {
	if err := s.destroyAll(privateName(id)); err != nil {
		return err
	}
	return s.destroyAll(publicName(id))
}

// pair returns the pair with that identifier. ok is false if one of its halves is missing or unfinished.
func (s *session) pair(id uuid.UUID) (key hsm.WrappingKey, ok bool, err error) {
	private, err := s.FindObjects(privateName(id).Template())
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	public, err := s.FindObjects(publicName(id).Template())
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	if len(private) == 0 || len(public) == 0 {
		return hsm.WrappingKey{}, false, s.HealthCheck()
	}
	values, err := s.GetAttributes(private[0], p11.CKA_LABEL, p11.CKA_MODULUS)
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	if len(values[1]) == 0 {
		return hsm.WrappingKey{}, false, nil // its generation did not end: unfinished.go
	}
	key, ok = parsePairLabel(string(values[0]))
	if !ok {
		return hsm.WrappingKey{}, false, hsm.Errorf(hsm.Internal, "the label of the wrapping key pair in the token is invalid: delete the pair in the token")
	}
	publicKey, err := s.publicKey(public[0])
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	key.ID, key.PublicKey = id, publicKey.SPKI()
	return key, true, nil
}

func (s *session) publicKey(h p11.ObjectHandle) (*wrapping.PublicKey, error) {
	values, err := s.GetAttributes(h, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	exponent := new(big.Int).SetBytes(values[1])
	if exponent.BitLen() > 31 {
		return nil, hsm.Errorf(hsm.Internal, "the token generated an RSA key with an exponent of more than 31 bits")
	}
	key, err := wrapping.FromRSA(&rsa.PublicKey{N: new(big.Int).SetBytes(values[0]), E: int(exponent.Int64())})
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "the token generated an RSA key that is not as requested")
	}
	return key, nil
}

// createPair generates a pair. It first destroys the half that a crash may have left of an earlier pair.
func (s *session) createPair(req hsm.WrappingKeyRequest, bits int) (hsm.WrappingKey, error) {
	if err := s.destroyPair(req.ID); err != nil {
		return hsm.WrappingKey{}, err
	}
	raw := s.can.needsRawRSA(s.cfg)
	mechanisms := pairMechanisms(raw, s.cfg.AllowPKCS1v15Import)
	publicTemplate, privateTemplate := pairTemplates(bits, req.ID, pairLabel(req), true, raw)
	_, private, err := s.GenerateKeyPair(publicTemplate, append(privateTemplate, s.can.hardenedPair.attributes(mechanisms)...))
	if err != nil {
		return hsm.WrappingKey{}, err
	}
	err = s.checkPrivate(private)
	if err == nil {
		err = s.checkHardened(private, s.can.hardenedPair, mechanisms)
	}
	if err != nil {
		_ = s.destroyPair(req.ID)
		return hsm.WrappingKey{}, err
	}
	key, ok, err := s.pair(req.ID)
	if err == nil && !ok {
		err = hsm.Errorf(hsm.Internal, "the token generated a wrapping key pair and does not show it")
	}
	return key, err
}

// checkPrivate rejects a private key that can leave the token.
func (s *session) checkPrivate(h p11.ObjectHandle) error {
	values, err := s.GetAttributes(h, p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE)
	if err != nil {
		return err
	}
	if !isTrue(values[0]) || !isFalse(values[1]) {
		return hsm.Errorf(hsm.Internal, "the private key of the wrapping key pair in the token is not sensitive and non-extractable, so Keyconvoy does not use it: find out who created or changed it")
	}
	return nil
}

// private returns the private half of a pair, or errNoPair.
func (s *session) private(id uuid.UUID) (p11.ObjectHandle, error) {
	h, ok, err := s.LookUp(privateName(id), s.checkPrivate)
	if err == nil && !ok {
		err = errNoPair
	}
	return h, err
}
