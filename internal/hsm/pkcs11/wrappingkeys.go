//go:build cgo

package pkcs11

import (
	"context"
	"crypto/rsa"
	"math/big"
	"strings"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// CreateWrappingKey implements hsm.Module.
func (m *Module) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	bits := map[wrapping.KeySpec]int{wrapping.RSA2048: 2048, wrapping.RSA3072: 3072, wrapping.RSA4096: 4096}[req.Spec]
	switch {
	case req.Spec == wrapping.ECSM2:
		return hsm.WrappingKey{}, hsm.Errorf(hsm.NotSupported, errNoSM, "SM2")
	case bits == 0:
		return hsm.WrappingKey{}, hsm.Errorf(hsm.NotSupported, "there is no wrapping key type %q", printable(string(req.Spec)))
	}
	return result(ctx, m, func(s *session) (hsm.WrappingKey, error) {
		unlock, err := s.lockName(req.ID)
		if err != nil {
			return hsm.WrappingKey{}, err
		}
		defer unlock()
		if key, ok, err := s.pair(req.ID); ok || err != nil {
			return key, err
		}
		return s.makePair(req, bits)
	})
}

// ListWrappingKeys implements hsm.Module. A half without its other half, as a crash leaves it, is no
// pair.
func (m *Module) ListWrappingKeys(ctx context.Context, owner uuid.UUID) ([]hsm.WrappingKey, error) {
	return result(ctx, m, func(s *session) ([]hsm.WrappingKey, error) {
		handles, err := s.find([]*p11.Attribute{
			p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PRIVATE_KEY), p11.NewAttribute(p11.CKA_TOKEN, true),
		})
		if err != nil {
			return nil, err
		}
		if len(handles) == 0 {
			return nil, s.health()
		}
		var keys []hsm.WrappingKey
		for _, h := range handles {
			id, ok, err := s.ownedBy(h, owner)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
			key, ok, err := s.pair(id)
			if err != nil {
				return nil, err
			}
			if ok {
				keys = append(keys, key)
			}
		}
		return keys, nil
	})
}

// ownedBy says whether a private key is the half of a pair made for owner, and which one.
func (s *session) ownedBy(h p11.ObjectHandle, owner uuid.UUID) (id uuid.UUID, ok bool, err error) {
	values, err := s.attributes(h, p11.CKA_ID, p11.CKA_LABEL)
	if isCode(err, p11.CKR_OBJECT_HANDLE_INVALID) {
		return uuid.UUID{}, false, nil // destroyed since the search
	}
	if err != nil {
		return uuid.UUID{}, false, err
	}
	if !strings.HasPrefix(string(values[1]), pairLabelPrefix+owner.String()+":") {
		return uuid.UUID{}, false, nil
	}
	id, err = uuid.FromBytes(values[0])
	return id, err == nil, nil
}

// DestroyWrappingKey implements hsm.Module. The private half goes first: what is left after a crash is
// of no use to anyone.
func (m *Module) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return m.operate(ctx, func(s *session) error {
		unlock, err := s.lockName(id)
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

// pair returns the pair with that identifier, if both halves are there.
func (s *session) pair(id uuid.UUID) (key hsm.WrappingKey, ok bool, err error) {
	private, err := s.find(privateName(id).template())
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	public, err := s.find(publicName(id).template())
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	if len(private) == 0 || len(public) == 0 {
		return hsm.WrappingKey{}, false, s.health()
	}
	values, err := s.attributes(private[0], p11.CKA_LABEL)
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	owner, notAfter, ok := parsePairLabel(string(values[0]))
	if !ok {
		return hsm.WrappingKey{}, false, hsm.Errorf(hsm.Internal, "the label of the wrapping key pair was changed in the token: delete the pair there")
	}
	recipient, err := s.publicKey(public[0])
	if err != nil {
		return hsm.WrappingKey{}, false, err
	}
	return hsm.WrappingKey{ID: id, Owner: owner, PublicKey: recipient, NotAfter: notAfter}, true, nil
}

func (s *session) publicKey(h p11.ObjectHandle) (*wrapping.PublicKey, error) {
	values, err := s.attributes(h, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	exponent := new(big.Int).SetBytes(values[1])
	if exponent.BitLen() > 31 {
		return nil, hsm.Errorf(hsm.Internal, "the token made an RSA key with a strange exponent")
	}
	key, err := wrapping.FromRSA(&rsa.PublicKey{N: new(big.Int).SetBytes(values[0]), E: int(exponent.Int64())})
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "the token made an RSA key that is not as asked")
	}
	return key, nil
}

// makePair makes a pair; what a crash left of an earlier one goes first.
func (s *session) makePair(req hsm.WrappingKeyRequest, bits int) (hsm.WrappingKey, error) {
	if err := s.destroyPair(req.ID); err != nil {
		return hsm.WrappingKey{}, err
	}
	publicTemplate, privateTemplate := pairTemplates(bits, req.ID, pairLabel(req), true, s.m.needsRaw())
	_, private, err := s.generatePair(publicTemplate, privateTemplate)
	if err != nil {
		return hsm.WrappingKey{}, err
	}
	if err := s.checkPrivate(private); err != nil {
		_ = s.destroyPair(req.ID)
		return hsm.WrappingKey{}, err
	}
	key, ok, err := s.pair(req.ID)
	if err == nil && !ok {
		err = hsm.Errorf(hsm.Internal, "the token made a wrapping key pair and does not show it")
	}
	return key, err
}

// checkPrivate refuses a private key that can leave the token.
func (s *session) checkPrivate(h p11.ObjectHandle) error {
	values, err := s.attributes(h, p11.CKA_SENSITIVE, p11.CKA_EXTRACTABLE)
	if err != nil {
		return err
	}
	if !isTrue(values[0]) || !isFalse(values[1]) {
		return hsm.Errorf(hsm.Internal, "the wrapping key pair in the token is not protected as it must be (sensitive, not extractable), so it is not used")
	}
	return nil
}

// private returns the private half of a pair, or errNoPair.
func (s *session) private(id uuid.UUID) (p11.ObjectHandle, error) {
	h, ok, err := s.object(privateName(id), s.checkPrivate)
	if err == nil && !ok {
		err = errNoPair
	}
	return h, err
}
