package hsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"sync"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Storage is a hsm.Storage in memory. The zero value is empty and ready for use. Set Fail before use.
type Storage struct {
	// Fail, if set, is called before every call, with the name of the method and of the record. If it returns an error, the call
	// fails with it and has no effect.
	Fail func(method, name string) error

	mu      sync.Mutex
	root    redact.Bytes
	records map[string][]byte
	calls   int
}

// RootKey implements hsm.Storage. It generates a key on first use.
func (s *Storage) RootKey(context.Context) (root redact.Bytes, err error) {
	err = s.call("RootKey", "", func() {
		if s.root == nil {
			s.root = make(redact.Bytes, 32)
			_, _ = rand.Read(s.root)
		}
		root = redact.Bytes(bytes.Clone(s.root))
	})
	return root, err
}

// Load implements hsm.Storage.
func (s *Storage) Load(context.Context) (records map[string][]byte, err error) {
	err = s.call("Load", "", func() { records = s.copyRecords() })
	return records, err
}

// Read implements hsm.Storage.
func (s *Storage) Read(_ context.Context, name string) (sealed []byte, err error) {
	err = s.call("Read", name, func() { sealed = bytes.Clone(s.records[name]) })
	return sealed, err
}

// Create implements hsm.Storage.
func (s *Storage) Create(_ context.Context, name string, sealed []byte) (existing []byte, err error) {
	err = s.call("Create", name, func() {
		if existing = bytes.Clone(s.records[name]); existing == nil {
			s.put(name, sealed)
		}
	})
	return existing, err
}

// Save implements hsm.Storage.
func (s *Storage) Save(_ context.Context, name string, sealed []byte) error {
	return s.call("Save", name, func() { s.put(name, sealed) })
}

// Delete implements hsm.Storage.
func (s *Storage) Delete(_ context.Context, name string) error {
	return s.call("Delete", name, func() { delete(s.records, name) })
}

// DeleteRootKey implements hsm.Storage.
func (s *Storage) DeleteRootKey(context.Context) error {
	inUse := false
	err := s.call("DeleteRootKey", "", func() {
		if inUse = len(s.records) > 0; !inUse {
			s.root = nil
		}
	})
	if err == nil && inUse {
		err = errors.New("the root key is in use")
	}
	return err
}

// HasRootKey returns whether there is a root key.
func (s *Storage) HasRootKey() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.root != nil
}

// Records returns a copy of the records.
func (s *Storage) Records() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copyRecords()
}

// Put stores a record, as another program would.
func (s *Storage) Put(name string, sealed []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(name, sealed)
}

// SetRootKey replaces the root key, as another program would. nil removes it.
func (s *Storage) SetRootKey(root []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root = redact.Bytes(bytes.Clone(root))
}

// Calls returns the number of calls of the interface's methods.
func (s *Storage) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *Storage) call(method, name string, do func()) error {
	if s.Fail != nil {
		if err := s.Fail(method, name); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	do()
	return nil
}

func (s *Storage) put(name string, sealed []byte) {
	if s.records == nil {
		s.records = map[string][]byte{}
	}
	s.records[name] = bytes.Clone(sealed)
}

func (s *Storage) copyRecords() map[string][]byte {
	out := maps.Clone(s.records)
	for name, sealed := range out {
		out[name] = bytes.Clone(sealed)
	}
	return out
}
