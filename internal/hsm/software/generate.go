package software

import (
	"context"
	"crypto/rand"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// GenerateKey implements hsm.Module. It makes the key visible after it was saved. If another process has saved a key with that
// identifier meanwhile, it returns that key.
func (m *Module) GenerateKey(ctx context.Context, req hsm.GenerateKeyRequest) (hsm.Key, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.Key{}, err
	}
	if err := req.Validate(); err != nil {
		return hsm.Key{}, err
	}
	name := keyName(req.KeyVersionID)
	unlock, err := m.lockName(ctx, name)
	if err != nil {
		return hsm.Key{}, err
	}
	defer unlock()
	key, err := m.key(ctx, req.KeyVersionID)
	if hsm.KindOf(err) == hsm.NotFound {
		material := make(redact.Bytes, req.Spec.Len())
		_, _ = rand.Read(material) // it never fails (Go 1.24)
		key, err = m.createKey(ctx, req.KeyVersionID, &masterKey{spec: req.Spec, owner: req.Owner, material: newSecret(material)}, material)
	}
	if err != nil {
		return hsm.Key{}, err
	}
	if key.spec != req.Spec || key.owner != req.Owner {
		return hsm.Key{}, hsm.ErrOtherKey
	}
	fingerprint, err := key.fingerprint()
	if err != nil {
		return hsm.Key{}, err
	}
	return hsm.Key{KeyVersionID: req.KeyVersionID, Spec: key.spec, Fingerprint: fingerprint, Owner: key.owner, Custody: hsm.CustodySoftware}, nil
}

// createKey saves a new key with its material and makes it visible, or the key that another process has saved. It returns the one that
// is visible, and wipes the other one. The caller must hold the lock of the record's name.
func (m *Module) createKey(ctx context.Context, id uuid.UUID, key *masterKey, material redact.Bytes) (*masterKey, error) {
	name := keyName(id)
	plain := key.marshal(material)
	defer plain.Wipe()
	existing, err := m.storage.Create(ctx, name, m.sealer.seal(masterKeyRecord, name, plain))
	if err != nil || existing != nil {
		key.material.wipe()
		if err != nil {
			return nil, storageError(err)
		}
		if key, err = m.openKey(name, existing); err != nil {
			return nil, err
		}
	}
	if err := m.publish(func() { m.keys[id] = key }); err != nil {
		key.material.wipe()
		return nil, err
	}
	return key, nil
}

// openKey opens the record of a master key.
func (m *Module) openKey(name string, sealed []byte) (*masterKey, error) {
	plain, err := m.sealer.open(masterKeyRecord, name, sealed)
	if err != nil {
		return nil, brokenRecord(name, err)
	}
	key, err := parseMasterKey(plain)
	if err != nil {
		return nil, brokenRecord(name, err)
	}
	return key, nil
}
