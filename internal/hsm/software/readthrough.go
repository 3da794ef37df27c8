package software

import (
	"context"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// readThrough returns what inMemory finds. If that is nothing, it reads the record of that name, which another process may have
// written since Open, and asks again.
func readThrough[T any](ctx context.Context, m *Module, name string, inMemory func() (T, error)) (T, error) {
	found, err := inMemory()
	if hsm.KindOf(err) != hsm.NotFound {
		return found, err
	}
	if err := m.read(ctx, name); err != nil {
		var none T
		return none, err
	}
	return inMemory()
}

// read opens the record of a name, if there is one, and makes it visible.
func (m *Module) read(ctx context.Context, name string) error {
	m.mu.RLock()
	removed := m.removed
	m.mu.RUnlock()
	sealed, err := m.storage.Read(ctx, name)
	if err != nil {
		return storageError(err)
	}
	kind, id, ok := parseName(name)
	if sealed == nil || !ok {
		return nil
	}
	plain, err := m.sealer.open(kind, name, sealed)
	if err != nil {
		return brokenRecord(name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// What was removed meanwhile must not come back. Nor is what another caller has read meanwhile replaced: it may be in use.
	if m.closed || m.removed != removed || m.has(name) {
		plain.Wipe()
		return nil
	}
	if err := m.keep(kind, id, plain); err != nil {
		return brokenRecord(name, err)
	}
	return nil
}

// has reports whether a record is in memory. The caller holds m.mu.
func (m *Module) has(name string) bool {
	kind, id, _ := parseName(name)
	switch kind {
	case masterKeyRecord:
		return m.keys[id] != nil
	case wrappingPairRecord:
		return m.pairs[id] != nil
	}
	return m.mac != nil
}

// forget wipes a record that another process has deleted.
func (m *Module) forget(name string) {
	kind, id, ok := parseName(name)
	if !ok {
		return
	}
	m.mu.Lock()
	m.removed++
	delete(m.broken, name)
	var gone *secret
	switch kind {
	case masterKeyRecord:
		if key := m.keys[id]; key != nil {
			gone = key.material
		}
		delete(m.keys, id)
	case wrappingPairRecord:
		if pair := m.pairs[id]; pair != nil {
			gone = pair.private
		}
		delete(m.pairs, id)
	default:
		gone, m.mac = m.mac, nil
	}
	m.mu.Unlock()
	if gone != nil {
		gone.wipe() // without m.mu, because it waits for calls that use the secret
	}
}
