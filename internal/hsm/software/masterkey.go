package software

import (
	"context"
	"crypto/cipher"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// masterKey is a master key in memory.
type masterKey struct {
	spec     hsm.KeySpec
	owner    hsm.Owner
	material *secret
}

// withCipher calls f with the key's block cipher, which f must not keep.
func (k *masterKey) withCipher(f func(cipher.Block) error) error {
	return k.material.use(errNoKey, func(material redact.Bytes) error {
		block, err := hsm.NewCipher(k.spec, material)
		if err != nil {
			return err
		}
		return f(block)
	})
}

// fingerprint computes the fingerprint of the material.
func (k *masterKey) fingerprint() (f hsm.Fingerprint, err error) {
	err = k.material.use(errNoKey, func(material redact.Bytes) error {
		f, err = hsm.FingerprintOf(k.spec, material)
		return err
	})
	return f, err
}

var errNoKey = hsm.Errorf(hsm.NotFound, "the key is not in the software key store")

// key returns the master key with that identifier. If its record does not open, the error is not NotFound, because the caller
// might then create a new key.
func (m *Module) key(ctx context.Context, id uuid.UUID) (*masterKey, error) {
	return readThrough(ctx, m, keyName(id), func() (*masterKey, error) { return m.keyInMemory(id) })
}

func (m *Module) keyInMemory(id uuid.UUID) (*masterKey, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if key, ok := m.keys[id]; ok {
		return key, nil
	}
	if err, ok := m.broken[keyName(id)]; ok {
		return nil, err
	}
	if m.closed {
		return nil, errClosed
	}
	return nil, errNoKey
}

// FindKey implements hsm.Module.
func (m *Module) FindKey(ctx context.Context, id uuid.UUID) (hsm.Key, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.Key{}, err
	}
	key, err := m.key(ctx, id)
	if err != nil {
		return hsm.Key{}, err
	}
	fingerprint, err := key.fingerprint()
	if err != nil {
		return hsm.Key{}, err
	}
	return hsm.Key{KeyVersionID: id, Spec: key.spec, Fingerprint: fingerprint, Owner: key.owner}, nil
}

// ListKeys implements hsm.Module. It omits records that do not open, so that their keys are reported as missing.
func (m *Module) ListKeys(ctx context.Context) ([]hsm.Key, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := make([]hsm.Key, 0, len(m.keys))
	for id, key := range m.keys {
		list = append(list, hsm.Key{KeyVersionID: id, Spec: key.spec, Owner: key.owner})
	}
	return list, nil
}

// DestroyKey implements hsm.Module. It also destroys a record that does not open. If it fails, the key still exists.
func (m *Module) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return m.destroy(ctx, keyName(id), func() *secret {
		key, ok := m.keys[id]
		if !ok {
			return nil
		}
		delete(m.keys, id)
		return key.material
	})
}

// destroy deletes a record and then wipes the secret that forget removes from memory. forget runs under m.mu. destroy deletes
// the record even if there is none in memory, because a Save that failed may have written it.
func (m *Module) destroy(ctx context.Context, name string, forget func() *secret) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	unlock, err := m.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.storage.Delete(ctx, name); err != nil {
		return storageError(err)
	}
	m.mu.Lock()
	removed := forget()
	m.removed++
	delete(m.broken, name)
	m.mu.Unlock()
	if removed != nil {
		removed.wipe() // without m.mu, because it waits for calls that use the secret
	}
	return nil
}

// lockName waits until no other call creates or destroys the record of that name.
func (m *Module) lockName(ctx context.Context, name string) (unlock func(), err error) {
	unlock, err = m.changing.Lock(ctx, name)
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, "")
	}
	return unlock, nil
}

// save seals and saves a record. publish then makes it visible, under m.mu. The caller must hold the lock of the record's name,
// and there must be no such record.
//
// A Save that fails may have written the record nevertheless. Then the next Open finds the key. That does no harm, because
// callers repeat an import that fails.
func (m *Module) save(ctx context.Context, kind recordKind, name string, plain redact.Bytes, publish func()) error {
	if err := m.storage.Save(ctx, name, m.sealer.seal(kind, name, plain)); err != nil {
		return storageError(err)
	}
	return m.publish(publish)
}

// publish makes a saved record visible, unless the module is closed.
func (m *Module) publish(publish func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	publish()
	return nil
}
