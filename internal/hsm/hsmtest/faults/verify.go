//go:build cgo

package faults

import (
	"bytes"
	"context"
	"maps"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// failed returns the number of failed calls by kind.
func (l *load) failed() map[hsm.Kind]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.failures)
}

func (l *load) lastError() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// verify checks that every key and pair that was returned works.
func (l *load) verify() {
	for _, key := range l.journal.masters() {
		err := l.do(func(ctx context.Context, m hsm.Module) error {
			got, err := m.FindKey(ctx, key.id)
			if err != nil {
				return err
			}
			l.checkKey("FindKey", got, key)
			return l.generateUnder(ctx, m, key, 32)
		})
		if err != nil {
			l.journal.wrongf("an imported key does not work: %v", err)
		}
	}
	l.verifyGenerated()
	for _, pair := range l.journal.allPairs() {
		err := l.do(func(ctx context.Context, m hsm.Module) error {
			got, err := m.CreateWrappingKey(ctx, hsm.WrappingKeyRequest{
				ID: pair.ID, Owner: pair.Owner, Namespace: namespace, Spec: pair.Spec, NotAfter: time.Now(),
			})
			if err == nil && !bytes.Equal(got.PublicKey, pair.PublicKey) {
				l.journal.wrongf("CreateWrappingKey: it returned the public key of another pair")
			}
			return err
		})
		if err != nil {
			l.journal.wrongf("a wrapping key pair does not work: %v", err)
		}
	}
}

// verifyGenerated is verify for the keys that the module generated.
func (l *load) verifyGenerated() {
	for _, key := range l.journal.generatedKeys() {
		err := l.do(func(ctx context.Context, m hsm.Module) error {
			got, err := m.FindKey(ctx, key.KeyVersionID)
			if err != nil {
				return err
			}
			if got.Fingerprint != key.Fingerprint || got.Owner != key.Owner {
				l.journal.wrongf("FindKey: it returns another key than the generated one")
			}
			return l.reencrypt(ctx, m, key.KeyVersionID)
		})
		if err != nil {
			l.journal.wrongf("a generated key does not work: %v", err)
		}
	}
}

// cleanUp destroys what the workers created, and checks that the store has nothing else.
func (l *load) cleanUp(t *testing.T) {
	t.Helper()
	err := l.do(func(ctx context.Context, m hsm.Module) error {
		for _, id := range l.journal.masterIDs() {
			if id == l.master.id {
				continue
			}
			if err := m.DestroyKey(ctx, id); err != nil {
				return err
			}
			l.journal.destroyed(id)
		}
		keys, err := m.ListKeys(ctx)
		if err != nil {
			return err
		}
		pairs, err := m.ListWrappingKeys(ctx)
		if err == nil && (len(keys) != 1 || len(pairs) != 1) {
			t.Errorf("the other store has %d keys and %d pairs, want 1", len(keys), len(pairs))
		}
		return err
	})
	if err != nil {
		t.Errorf("clean up: %v", err)
	}
}
