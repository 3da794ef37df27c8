package hsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"maps"
	"sync"

	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// Storage is a software.Storage in memory. Its zero value is empty and ready. Set Fail before use.
type Storage struct {
	// Fail, if set, is asked before every call, by the method's name and the record's; the call
	// fails with what it returns, and does nothing.
	Fail func(method, name string) error

	mu      sync.Mutex
	root    redact.Bytes
	records map[string][]byte
	calls   int
}

// RootKey implements software.Storage: it makes a key on first use.
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

// Load implements software.Storage.
func (s *Storage) Load(context.Context) (records map[string][]byte, err error) {
	err = s.call("Load", "", func() { records = s.copyRecords() })
	return records, err
}

// Save implements software.Storage.
func (s *Storage) Save(_ context.Context, name string, sealed []byte) error {
	return s.call("Save", name, func() { s.put(name, sealed) })
}

// Delete implements software.Storage.
func (s *Storage) Delete(_ context.Context, name string) error {
	return s.call("Delete", name, func() { delete(s.records, name) })
}

// Records returns a copy of what is stored.
func (s *Storage) Records() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copyRecords()
}

// Put stores a record behind the store's back.
func (s *Storage) Put(name string, sealed []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(name, sealed)
}

// SetRootKey replaces the root key behind the store's back; nil loses it.
func (s *Storage) SetRootKey(root []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root = redact.Bytes(bytes.Clone(root))
}

// Calls counts the calls of the interface's methods so far.
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
