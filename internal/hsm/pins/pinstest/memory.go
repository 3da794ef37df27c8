// Package pinstest has a storage and a clock for tests of package pins and its callers.
package pinstest

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"sync"
)

// Memory is a pins.Storage in memory.
type Memory struct {
	mu      sync.Mutex
	content []byte
	saves   int
	fails   error
}

// Load implements pins.Storage.
func (m *Memory) Load(context.Context) ([]byte, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.content), m.version(), m.fails
}

// Save implements pins.Storage.
func (m *Memory) Save(_ context.Context, content []byte, version string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fails != nil {
		return "", m.fails
	}
	if version != m.version() {
		return "", errors.New("the stored record has another version")
	}
	m.saves++
	m.content = bytes.Clone(content)
	return m.version(), nil
}

func (m *Memory) version() string {
	if m.saves == 0 {
		return ""
	}
	return strconv.Itoa(m.saves)
}

// Fail makes all further calls fail with err. nil ends that.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails = err
}

// Saves returns the number of successful calls of Save.
func (m *Memory) Saves() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.saves
}

// Content returns the record that was saved last.
func (m *Memory) Content() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.content)
}
