//go:build cgo

package token

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// acquireAll acquires every place for an operation and releases them again.
func acquireAll(t *testing.T, tok *Token) {
	t.Helper()
	all := int64(tok.cfg.MaxSessions)
	if err := tok.operations.Acquire(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	tok.operations.Release(all)
}

func TestDo_callHangs_callerContinuesAndTheSessionIsReleasedLater(t *testing.T) {
	token := tokens.SoftHSM(t)
	cfg := configOf(token)
	cfg.MaxSessions = 2
	tok := mustOpen(t, cfg)
	spy := tokens.SpyOn(t, token)
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var hangs atomic.Bool
	spy.Inject(func(function string) error {
		if function == "C_DeriveKey" && hangs.CompareAndSwap(false, true) {
			cancel()
			<-release
		}
		return nil
	})
	hsmtest.WantKind(t, tok.Do(ctx, derive), hsm.Unavailable, "a call that hangs")
	for range 5 { // with the other session
		if err := tok.Do(t.Context(), derive); err != nil {
			t.Error(err)
		}
	}
	if tok.operations.TryAcquire(2) {
		t.Error("the call that hangs does not count towards MaxSessions")
	}
	close(release)
	acquireAll(t, tok)
	if err := tok.Do(t.Context(), derive); err != nil {
		t.Error(err)
	}
}

func TestDo_everySessionHangs_waitersGiveUpWithTheirContext(t *testing.T) {
	token := tokens.SoftHSM(t)
	cfg := configOf(token)
	cfg.MaxSessions = 2
	tok := mustOpen(t, cfg)
	spy := tokens.SpyOn(t, token)
	release := make(chan struct{})
	hangs := make(chan struct{}, 2)
	spy.Inject(func(function string) error {
		if function == "C_DeriveKey" {
			hangs <- struct{}{}
			<-release
		}
		return nil
	})
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-hangs
			cancel()
		}()
		hsmtest.WantKind(t, tok.Do(ctx, derive), hsm.Unavailable, "an operation that hangs")
	}
	for range 2 {
		short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		hsmtest.WantKind(t, tok.Do(short, derive), hsm.Unavailable, "an operation that waits")
		cancel()
	}
	if n := spy.Count("C_DeriveKey"); n != 2 {
		t.Errorf("%d calls hang, want 2", n)
	}
	close(release)
	acquireAll(t, tok)
}

// The operator opens a key store again and again if that fails.
func TestOpen_callsThatHang_areBounded(t *testing.T) {
	token := tokens.SoftHSM(t)
	mustOpen(t, configOf(token)) // keeps the library initialized
	spy := tokens.SpyOn(t, token)
	release := make(chan struct{})
	hangs := make(chan struct{})
	spy.Inject(func(function string) error {
		if function == "C_OpenSession" {
			select {
			case hangs <- struct{}{}:
				<-release
			case <-release:
			}
		}
		return nil
	})
	for range maxOpening {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-hangs
			cancel()
		}()
		_, err := open(ctx, configOf(token))
		hsmtest.WantKind(t, err, hsm.Unavailable, "a call of Open that hangs")
	}
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	_, err := open(short, configOf(token))
	hsmtest.WantKind(t, err, hsm.Unavailable, "a call of Open that waits")
	if n := spy.Count("C_OpenSession"); n != maxOpening {
		t.Errorf("%d calls hang, want %d", n, maxOpening)
	}
	close(release)
	mustOpen(t, configOf(token))
}

func TestRemember_boundsTheCache(t *testing.T) {
	tok := mustOpen(t, configOf(tokens.SoftHSM(t)))
	err := tok.Do(t.Context(), func(s *Session) error {
		for range 2 * maxHandles {
			id := uuid.New()
			s.Remember(ObjectName{Class: p11.CKO_SECRET_KEY, ID: string(id[:])}, 1)
		}
		return nil
	})
	if err != nil || len(tok.conn.handles) > maxHandles {
		t.Errorf("%d handles, %v; the maximum is %d", len(tok.conn.handles), err, maxHandles)
	}
}
