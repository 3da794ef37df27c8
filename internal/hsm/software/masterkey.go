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
	owner    string
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

// fingerprint takes it from the material.
func (k *masterKey) fingerprint() (f hsm.Fingerprint, err error) {
	err = k.material.use(errNoKey, func(material redact.Bytes) error {
		f, err = hsm.FingerprintOf(k.spec, material)
		return err
	})
	return f, err
}

var errNoKey = hsm.Errorf(hsm.NotFound, "the key is not in the software key store")

// key returns the master key with that identifier. One that is there and does not open is no
// NotFound: who hears NotFound may make a new one.
func (m *Module) key(id uuid.UUID) (*masterKey, error) {
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
	key, err := m.key(id)
	if err != nil {
		return hsm.Key{}, err
	}
	fingerprint, err := key.fingerprint()
	if err != nil {
		return hsm.Key{}, err
	}
	return hsm.Key{KeyVersionID: id, Spec: key.spec, Fingerprint: fingerprint, Owner: key.owner}, nil
}

// DestroyKey implements hsm.Module. It destroys a broken record too. When it fails the key is still
// there.
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

// destroy deletes a record and then wipes what forget takes out of memory; forget runs under m.mu.
// The record is deleted even when memory knows of none: a Save that failed may have written it.
func (m *Module) destroy(ctx context.Context, name string, forget func() *secret) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	unlock, err := m.changing.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.storage.Delete(ctx, name); err != nil {
		return storageError(err)
	}
	m.mu.Lock()
	gone := forget()
	delete(m.broken, name)
	m.mu.Unlock()
	if gone != nil {
		gone.wipe() // outside m.mu: it waits for those who are using it
	}
	return nil
}

// save seals a record and hands it to the storage; publish then makes it visible, under m.mu. The
// caller holds the record's name lock and has seen that there is no such record.
//
// A storage that fails may have written nonetheless. Then the next Open finds the key, as with a
// token that died during its answer; importing the same again is what the caller does anyway.
func (m *Module) save(ctx context.Context, kind recordKind, name string, plain redact.Bytes, publish func()) error {
	if err := m.storage.Save(ctx, name, m.sealer.seal(kind, name, plain)); err != nil {
		return storageError(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	publish()
	return nil
}
