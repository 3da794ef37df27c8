package software

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// wrappingPair is a wrapping key pair in memory.
type wrappingPair struct {
	owner     uuid.UUID
	namespace string
	notAfter  time.Time // whole seconds
	public    *wrapping.PublicKey
	private   *secret // PKCS #8
}

// withPrivate calls f with the private key. If f fails with wrapping.ErrUnwrap, the error is InvalidMaterial with the same text
// for all causes.
func (p *wrappingPair) withPrivate(f func(*wrapping.PrivateKey) error) error {
	return p.private.use(errNoPair, func(pkcs8 redact.Bytes) error {
		private, err := p.public.PrivateKey(pkcs8)
		if err != nil {
			return hsm.Wrap(hsm.Internal, err, "")
		}
		err = f(private)
		if errors.Is(err, wrapping.ErrUnwrap) {
			return hsm.ErrInvalidMaterial
		}
		if err != nil {
			return hsm.Wrap(hsm.Internal, err, "")
		}
		return nil
	})
}

func (p *wrappingPair) describe(id uuid.UUID) hsm.WrappingKey {
	return hsm.WrappingKey{ID: id, Owner: p.owner, Namespace: p.namespace, Spec: p.public.Spec(), PublicKey: p.public.SPKI(), NotAfter: p.notAfter}
}

var errNoPair = hsm.Errorf(hsm.NotFound, "the wrapping key pair is not in the software key store")

// pair returns the pair with that identifier, as key does for master keys.
func (m *Module) pair(ctx context.Context, id uuid.UUID) (*wrappingPair, error) {
	return readThrough(ctx, m, pairName(id), func() (*wrappingPair, error) { return m.pairInMemory(id) })
}

func (m *Module) pairInMemory(id uuid.UUID) (*wrappingPair, error) {
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

// CreateWrappingKey implements hsm.Module. Generating an RSA key takes up to several seconds. Meanwhile, only callers that create
// the same pair wait.
func (m *Module) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.WrappingKey{}, err
	}
	if err := req.Validate(); err != nil {
		return hsm.WrappingKey{}, err
	}
	unlock, err := m.lockName(ctx, pairName(req.ID))
	if err != nil {
		return hsm.WrappingKey{}, err
	}
	defer unlock()
	pair, err := m.pair(ctx, req.ID)
	if hsm.KindOf(err) == hsm.NotFound {
		pair, err = m.createPair(ctx, req)
	}
	if err != nil {
		return hsm.WrappingKey{}, err
	}
	return pair.describe(req.ID), nil
}

func (m *Module) createPair(ctx context.Context, req hsm.WrappingKeyRequest) (*wrappingPair, error) {
	private, err := wrapping.GeneratePrivateKey(rand.Reader, req.Spec)
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	pkcs8, err := private.PKCS8()
	if err != nil {
		return nil, hsm.Wrap(hsm.Internal, err, "")
	}
	pair := &wrappingPair{
		owner:     req.Owner,
		namespace: req.Namespace,
		notAfter:  time.Unix(req.NotAfter.Unix(), 0).UTC(),
		public:    private.Public(),
		private:   newSecret(pkcs8),
	}
	plain := pair.marshal(pkcs8)
	defer plain.Wipe()
	if err := m.save(ctx, wrappingPairRecord, pairName(req.ID), plain, func() { m.pairs[req.ID] = pair }); err != nil {
		pair.private.wipe()
		return nil, err
	}
	return pair, nil
}

// ListWrappingKeys implements hsm.Module. It omits records that do not open, because their owner is unknown.
func (m *Module) ListWrappingKeys(ctx context.Context) ([]hsm.WrappingKey, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := make([]hsm.WrappingKey, 0, len(m.pairs))
	for id, pair := range m.pairs {
		described := pair.describe(id)
		described.PublicKey = nil
		list = append(list, described)
	}
	return list, nil
}

// DestroyWrappingKey implements hsm.Module. It also destroys a record that does not open.
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
