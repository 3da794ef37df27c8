package software

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Authenticate implements hsm.Module with HMAC-SHA-256 (RFC 2104) under a random key of 32 bytes. If the record of the key does
// not open, Authenticate fails and does not replace it: that would silently invalidate all import tokens.
func (m *Module) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	key, err := m.macKey(ctx)
	if hsm.KindOf(err) == hsm.NotFound {
		key, err = m.createMACKey(ctx)
	}
	if err != nil {
		return nil, err
	}
	var tag []byte
	err = key.use(errClosed, func(key redact.Bytes) error {
		mac := hmac.New(sha256.New, key)
		mac.Write(message)
		tag = mac.Sum(nil)
		return nil
	})
	return tag, err
}

var errNoMACKey = hsm.Errorf(hsm.NotFound, "")

func (m *Module) macKey(ctx context.Context) (*secret, error) {
	return readThrough(ctx, m, macName, m.macKeyInMemory)
}

func (m *Module) macKeyInMemory() (*secret, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.mac != nil {
		return m.mac, nil
	}
	if err, ok := m.broken[macName]; ok {
		return nil, err
	}
	if m.closed {
		return nil, errClosed
	}
	return nil, errNoMACKey
}

// createMACKey creates the key, or returns the key that another caller has created meanwhile.
func (m *Module) createMACKey(ctx context.Context) (*secret, error) {
	unlock, err := m.lockName(ctx, macName)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if key, err := m.macKeyInMemory(); hsm.KindOf(err) != hsm.NotFound {
		return key, err
	}
	plain := make(redact.Bytes, macKeyLen)
	_, _ = rand.Read(plain) // it never fails (Go 1.24)
	key := newSecret(plain)
	// Not Save: another process may have created the key, and issued tokens under it.
	existing, err := m.storage.Create(ctx, macName, m.sealer.seal(macKeyRecord, macName, plain))
	if err != nil || existing != nil {
		key.wipe()
		if err != nil {
			return nil, storageError(err)
		}
		return m.macKey(ctx)
	}
	if err := m.publish(func() { m.mac = key }); err != nil {
		key.wipe()
		return nil, err
	}
	return key, nil
}
