// Package software is a cryptographic module in pure Go: the embedded default, for trying things,
// for clusters without an HSM, and for the SM algorithms that a module lacks. Its custody is
// Software, always.
//
// Keys are sealed (AES-256-GCM) before they leave it for a Storage, under a key derived from one root
// key. Opened, they live in this process's memory until they are destroyed or the module is closed.
// Generating, exporting and verifying touch no storage.
//
// One process at a time may write a storage (the operator's leader): what another one writes is not
// seen before the next Open.
package software

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Config says where a Module keeps its keys and what it may do.
type Config struct {
	Storage Storage
	// AllowPKCS1v15Import allows RSAES_PKCS1_V1_5 for material that is brought in. It is a padding
	// oracle by nature; absent means not.
	AllowPKCS1v15Import bool
}

// Module implements hsm.Module.
type Module struct {
	storage     Storage
	sealer      *sealer
	allowPKCS15 bool
	caps        []hsm.Capability

	// changing serialises those who make or destroy a record of one name. It is held over storage
	// calls and RSA generation, so nobody who only reads takes it.
	changing nameLocks

	mu     sync.RWMutex // guards what follows; never held over storage or cryptography
	closed bool
	keys   map[uuid.UUID]*masterKey
	pairs  map[uuid.UUID]*wrappingPair
	mac    *secret               // the import token's MAC key; nil until it is made
	broken map[string]*hsm.Error // by record: why it does not open
}

var _ hsm.Module = (*Module)(nil)

// Open opens every record in the storage.
//
// A record that does not open stops only the operations that need it: they fail with Internal and
// name it, and it is never replaced, only destroyed when asked. Where every record was sealed under
// another root key, that key is lost or was replaced, and Open fails with Misconfigured: going on
// would make new keys under a root key that has to go again.
func Open(ctx context.Context, cfg Config) (*Module, error) {
	s, err := openSealer(ctx, cfg.Storage)
	if err != nil {
		return nil, err
	}
	records, err := cfg.Storage.Load(ctx)
	if err != nil {
		return nil, storageError(err)
	}
	m := &Module{
		storage:     cfg.Storage,
		sealer:      s,
		allowPKCS15: cfg.AllowPKCS1v15Import,
		caps:        capabilities(cfg.AllowPKCS1v15Import),
		keys:        map[uuid.UUID]*masterKey{},
		pairs:       map[uuid.UUID]*wrappingPair{},
		broken:      map[string]*hsm.Error{},
	}
	if opened, foreign := m.readAll(records); opened == 0 && foreign > 0 {
		return nil, rootKeyLost(m.Broken())
	}
	return m, nil
}

// readAll opens the records into memory and notes why the others are broken. It counts those that
// opened and those that were sealed under another root key. A name that is none of ours is a later
// version's, or a stranger's: no operation names it.
func (m *Module) readAll(records map[string][]byte) (opened, foreign int) {
	for name, sealed := range records {
		kind, id, ok := parseName(name)
		if !ok {
			continue
		}
		plain, err := m.sealer.open(kind, name, sealed)
		if err == nil {
			err = m.keep(kind, id, plain)
		}
		switch {
		case err == nil:
			opened++
			continue
		case errors.Is(err, errOtherRoot):
			foreign++
		}
		m.broken[name] = brokenRecord(name, err)
	}
	return opened, foreign
}

// keep parses an opened record and makes it visible. Only readAll calls it.
func (m *Module) keep(kind recordKind, id uuid.UUID, plain []byte) error {
	switch kind {
	case masterKeyRecord:
		key, err := parseMasterKey(plain)
		if err != nil {
			return err
		}
		m.keys[id] = key
	case wrappingPairRecord:
		pair, err := parseWrappingPair(plain)
		if err != nil {
			return err
		}
		m.pairs[id] = pair
	default:
		mac, err := parseMACKey(plain)
		if err != nil {
			return err
		}
		m.mac = mac
	}
	return nil
}

// Broken names the records that do not open, in order: an administrator restores or deletes them.
func (m *Module) Broken() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Sorted(maps.Keys(m.broken))
}

// Info implements hsm.Module. The serial number is the root key's identifier.
func (m *Module) Info() hsm.Info {
	return hsm.Info{Library: "software", Manufacturer: "Keyconvoy", Serial: m.sealer.root.String()}
}

// Capabilities implements hsm.Module. There is no self-test: what pure Go does, its tests prove.
func (m *Module) Capabilities() []hsm.Capability { return slices.Clone(m.caps) }

func capabilities(allowPKCS15 bool) []hsm.Capability {
	var all []hsm.Capability
	add := func(operation hsm.Operation, algorithm string) {
		all = append(all, hsm.Capability{Operation: operation, Algorithm: algorithm, Custody: hsm.CustodySoftware})
	}
	for _, spec := range hsm.KeySpecs() {
		add(hsm.OperationMasterKey, string(spec))
	}
	add(hsm.OperationImport, string(wrapping.RSAESOAEPSHA256))
	add(hsm.OperationImport, string(wrapping.RSAESOAEPSHA1))
	if allowPKCS15 {
		add(hsm.OperationImport, string(wrapping.RSAESPKCS1V15))
	}
	add(hsm.OperationImport, string(wrapping.SM2PKE))
	for _, scheme := range []ciphertext.Scheme{ciphertext.DerivedKeyWrap, ciphertext.DerivedGCM, ciphertext.DirectGCM} {
		add(hsm.OperationGenerate, scheme.String())
	}
	for _, alg := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.SM2PKE} {
		add(hsm.OperationExport, string(alg))
	}
	return all
}

// Check implements hsm.Module: the storage answers, and the root key is still the one that the
// records were opened with. One that was replaced shows here, while the old one can still be restored
// from a backup, and not at the next start.
func (m *Module) Check(ctx context.Context) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	now, err := openSealer(ctx, m.storage)
	if err != nil {
		return err
	}
	if now.root != m.sealer.root {
		return hsm.Errorf(hsm.Misconfigured,
			"the root key was replaced while the software key store was open: restore the one that was there (its identifier is %s)", m.sealer.root)
	}
	return nil
}

// Close implements hsm.Module: it wipes every key in memory. What is called after it fails.
func (m *Module) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, key := range m.keys {
		key.material.wipe()
	}
	for _, pair := range m.pairs {
		pair.private.wipe()
	}
	if m.mac != nil {
		m.mac.wipe()
	}
	clear(m.keys)
	clear(m.pairs)
	m.mac = nil
	return nil
}

// begin fails where a call should not even begin.
func (m *Module) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return hsm.Wrap(hsm.Unavailable, err, "")
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return errClosed
	}
	return nil
}

var errClosed = hsm.Errorf(hsm.Unavailable, "the software key store is closed")
