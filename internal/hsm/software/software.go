// Package software implements a cryptographic module in pure Go. It is the default for evaluation, for clusters without an HSM,
// and for the SM algorithms that PKCS#11 modules lack. Its custody is always Software.
//
// It seals keys (AES-256-GCM) under a key derived from a root key before it saves them to a hsm.Storage. Open keeps the opened
// keys in memory until they are destroyed or the module is closed. Operations on data keys do not use the storage.
//
// Several processes may use a storage. What a module does not have in memory, it looks for in the storage, where another process may
// have put it. What another process deletes stays in memory until Open, or until the storage reports it (hsm.Notifier).
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
	"github.com/keyconvoy/keyconvoy/internal/hsm/namelock"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Config has the storage of a Module and what the module allows.
type Config struct {
	Storage hsm.Storage
	// AllowPKCS1v15Import allows imports with RSAES_PKCS1_V1_5, which is inherently a padding oracle.
	AllowPKCS1v15Import bool
}

// Module implements hsm.Module.
type Module struct {
	storage     hsm.Storage
	sealer      *sealer
	allowPKCS15 bool
	caps        []hsm.Capability

	// changing serializes the callers that create or destroy the record of a name. It is held during storage calls and the
	// generation of RSA keys, so callers that only read do not lock it.
	changing namelock.Locks

	mu      sync.RWMutex // guards the fields below; not held during storage calls or cryptography
	closed  bool
	keys    map[uuid.UUID]*masterKey
	pairs   map[uuid.UUID]*wrappingPair
	mac     *secret               // the MAC key of import tokens; nil until it is created
	broken  map[string]*hsm.Error // by record name: why the record does not open
	removed int                   // how many records were removed from memory
	ignore  func()                // ends the storage's reports; nil if it makes none
}

var _ hsm.Module = (*Module)(nil)

// Open opens all records in the storage.
//
// If a record does not open, only the operations that need it fail, with Internal and the name of the record. The module does
// not replace such a record; DestroyKey and DestroyWrappingKey delete it. If all records were sealed under another root key, that
// root key is lost or was replaced, and Open fails with Misconfigured: otherwise the module would create keys under a root key
// that must be replaced again.
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
		return nil, rootKeyLost(slices.Sorted(maps.Keys(m.broken)))
	}
	if reports, ok := cfg.Storage.(hsm.Notifier); ok {
		m.ignore = reports.OnDelete(m.forget)
	}
	return m, nil
}

// readAll opens the records and records why some do not open. It returns how many opened, and how many were sealed under another
// root key. It ignores records with unknown names, which a later version or another program may have written.
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

// Describe implements hsm.Module. The serial number is the identifier of the root key. There is no self-test, because the
// capabilities of this code are fixed.
func (m *Module) Describe(ctx context.Context) (hsm.Description, error) {
	if err := m.begin(ctx); err != nil {
		return hsm.Description{}, err
	}
	return hsm.Description{
		Info:          hsm.Info{Library: "software", Manufacturer: "Keyconvoy", Serial: m.sealer.root.String()},
		Capabilities:  slices.Clone(m.caps),
		KeyProtection: hsm.KeyProtection{State: hsm.NotEnforced, Methods: []string{"reading the Secrets of the operator's namespace"}},
	}, nil
}

func capabilities(allowPKCS15 bool) []hsm.Capability {
	var all []hsm.Capability
	add := func(operation hsm.Operation, algorithm string) {
		all = append(all, hsm.Capability{Operation: operation, Algorithm: algorithm, Custody: hsm.CustodySoftware})
	}
	for _, spec := range hsm.KeySpecs() {
		add(hsm.OperationMasterKey, string(spec))
	}
	for _, spec := range hsm.KeySpecs() {
		add(hsm.OperationGenerateMasterKey, string(spec))
	}
	add(hsm.OperationImport, string(wrapping.RSAESOAEPSHA256))
	add(hsm.OperationImport, string(wrapping.RSAESOAEPSHA1))
	if allowPKCS15 {
		add(hsm.OperationImport, string(wrapping.RSAESPKCS1V15))
	}
	add(hsm.OperationImport, string(wrapping.SM2PKE))
	for _, operation := range []hsm.Operation{hsm.OperationGenerate, hsm.OperationReencrypt} {
		for _, scheme := range []ciphertext.Scheme{ciphertext.DerivedKeyWrap, ciphertext.DerivedGCM, ciphertext.DirectGCM} {
			add(operation, scheme.String())
		}
	}
	for _, alg := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.SM2PKE} {
		add(hsm.OperationExport, string(alg))
	}
	return all
}

// Check implements hsm.Module. It checks that the storage answers, and that the root key was not replaced since Open. So an
// administrator learns about a replaced root key before the next restart, while the old one may still be restored.
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
			"the root key of the software key store was replaced: restore the root key with the identifier %s", m.sealer.root)
	}
	return nil
}

// Close implements hsm.Module. It wipes all keys in memory.
func (m *Module) Close(context.Context) error {
	if m.ignore != nil {
		m.ignore()
	}
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

// begin fails if ctx is done or the module is closed.
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
