package software

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// wrappingPair is a pair in memory.
type wrappingPair struct {
	owner    uuid.UUID
	notAfter time.Time // whole seconds
	public   *wrapping.PublicKey
	private  *secret // PKCS #8
}

// withPrivate calls f with the private key. What f cannot unwrap fails with InvalidMaterial, in the
// same words whatever the cause.
func (p *wrappingPair) withPrivate(f func(*wrapping.PrivateKey) error) error {
	return p.private.use(errNoPair, func(pkcs8 redact.Bytes) error {
		private, err := p.public.PrivateKey(pkcs8)
		if err != nil {
			return hsm.Wrap(hsm.Internal, err, "")
		}
		err = f(private)
		if errors.Is(err, wrapping.ErrUnwrap) {
			return errInvalidMaterial
		}
		if err != nil {
			return hsm.Wrap(hsm.Internal, err, "")
		}
		return nil
	})
}

func (p *wrappingPair) describe(id uuid.UUID) hsm.WrappingKey {
	return hsm.WrappingKey{ID: id, Owner: p.owner, PublicKey: p.public, NotAfter: p.notAfter}
}

var (
	errNoPair          = hsm.Errorf(hsm.NotFound, "the wrapping key pair is not in the software key store")
	errInvalidMaterial = hsm.Errorf(hsm.InvalidMaterial, "the material does not unwrap under this wrapping key with this algorithm")
)

// pair returns the pair with that identifier, as key does for master keys.
func (m *Module) pair(id uuid.UUID) (*wrappingPair, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if pair, ok := m.pairs[id]; ok {
		return pair, nil
	}
	if err, ok := m.broken[pairName(id)]; ok {
		return nil, err
	}
	if m.closed {
		return nil, errClosed
	}
	return nil, errNoPair
}

// CreateWrappingKey implements hsm.Module. Making an RSA pair takes from a tenth of a second to
// several; meanwhile only callers who want the same pair wait.
func (m *Module) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.WrappingKey{}, err
	}
	if !slices.Contains(wrapping.KeySpecs(), req.Spec) {
		return hsm.WrappingKey{}, hsm.Errorf(hsm.NotSupported, "there is no wrapping key type %q", req.Spec)
	}
	unlock, err := m.changing.lock(ctx, pairName(req.ID))
	if err != nil {
		return hsm.WrappingKey{}, err
	}
	defer unlock()
	pair, err := m.pair(req.ID)
	if hsm.KindOf(err) == hsm.NotFound {
		pair, err = m.makePair(ctx, req)
	}
	if err != nil {
		return hsm.WrappingKey{}, err
	}
	return pair.describe(req.ID), nil
}

func (m *Module) makePair(ctx context.Context, req hsm.WrappingKeyRequest) (*wrappingPair, error) {
	private, err := wrapping.GeneratePrivateKey(rand.Reader, req.Spec)
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	pkcs8, err := private.PKCS8()
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	pair := &wrappingPair{
		owner:    req.Owner,
		notAfter: time.Unix(req.NotAfter.Unix(), 0).UTC(),
		public:   private.Public(),
		private:  newSecret(pkcs8),
	}
	plain := pair.marshal(pkcs8)
	defer plain.Wipe()
	if err := m.save(ctx, wrappingPairRecord, pairName(req.ID), plain, func() { m.pairs[req.ID] = pair }); err != nil {
		pair.private.wipe()
		return nil, err
	}
	return pair, nil
}

// ListWrappingKeys implements hsm.Module. A broken record is left out, for nobody knows whose it is;
// Broken names it.
func (m *Module) ListWrappingKeys(ctx context.Context, owner uuid.UUID) ([]hsm.WrappingKey, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []hsm.WrappingKey
	for id, pair := range m.pairs {
		if pair.owner == owner {
			list = append(list, pair.describe(id))
		}
	}
	return list, nil
}

// DestroyWrappingKey implements hsm.Module. It destroys a broken record too.
func (m *Module) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return m.destroy(ctx, pairName(id), func() *secret {
		pair, ok := m.pairs[id]
		if !ok {
			return nil
		}
		delete(m.pairs, id)
		return pair.private
	})
}
