//go:build cgo

package pkcs11

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// mustWork does one of each operation on data that was made before.
func (f *fixture) mustWork(t *testing.T) {
	t.Helper()
	if key, err := f.m.FindKey(t.Context(), f.id); err != nil || key.Spec != hsm.AES256 {
		t.Errorf("FindKey = %+v, %v", key, err)
	}
	blob := f.generate(t, 32)
	if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
		t.Errorf("VerifyDataKey: %v", err)
	}
	if _, err := f.m.ExportDataKey(t.Context(), f.export(blob, wrapping.RSAESOAEPSHA1)); err != nil {
		t.Errorf("ExportDataKey: %v", err)
	}
	if _, err := f.m.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
		t.Errorf("ImportKey: %v", err)
	}
	if _, err := f.m.Authenticate(t.Context(), []byte("message")); err != nil {
		t.Errorf("Authenticate: %v", err)
	}
}

func TestRecovery_whatHappensBehindOurBack_isSurvived(t *testing.T) {
	for name, strike := range map[string]func(*spy, *Module) error{
		"C_Finalize": func(s *spy, _ *Module) error { return s.direct().Finalize() },
		"C_Finalize and C_Initialize": func(s *spy, m *Module) error {
			if err := s.direct().Finalize(); err != nil {
				return err
			}
			options, free := reserved(m.cfg.Parameters)
			defer free()
			return s.direct().Initialize(options...)
		},
		"C_CloseAllSessions": func(s *spy, m *Module) error { return s.direct().CloseAllSessions(m.at.slot) },
		"C_Logout":           func(s *spy, m *Module) error { return s.direct().Logout(m.at.login) },
	} {
		t.Run(name, func(t *testing.T) {
			onEach(t, func(t *testing.T, token tokens.Token) {
				f, other := newFixture(t, configOf(token)), mustOpen(t, configOf(token))
				tag, err := f.m.Authenticate(t.Context(), []byte("message"))
				if err != nil {
					t.Fatal(err)
				}
				blob := f.generate(t, 32)
				before := objects(t, f.m)
				if err := strike(spyOn(t, f.m), f.m); err != nil {
					t.Fatal(err)
				}
				// The first to ask says no such thing as "not found".
				if _, err := other.FindKey(t.Context(), f.id); err != nil {
					t.Errorf("the other module of the token: %v", err)
				}
				f.mustWork(t)
				if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
					t.Errorf("a blob from before: %v", err)
				}
				if again, err := other.Authenticate(t.Context(), []byte("message")); err != nil || string(again) != string(tag) {
					t.Errorf("the tag changed: %v", err)
				}
				if after := objects(t, f.m); after != before {
					t.Errorf("%d objects; there were %d", after, before)
				}
			})
		})
	}
}

// One device error of each kind, at each call, is not to be seen from outside.
func TestRecovery_oneLoss_isSurvived(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	spy := spyOn(t, f.m)
	for code, c := range codeClasses {
		if c != lost {
			continue
		}
		for _, function := range []string{"C_OpenSession", "C_DeriveKey", "C_GenerateKey", "C_WrapKey", "C_UnwrapKey", "C_FindObjectsInit"} {
			spy.inject(failing(code, 1, function))
			f.mustWork(t)
		}
	}
	spy.inject(nil)
	if n := objects(t, f.m); n != 4 { // pair, master key, MAC key
		t.Errorf("%d objects; want 4", n)
	}
}

func TestRecovery_climbsNoHigherThanItMust(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	spy := spyOn(t, f.m)
	for _, tc := range []struct {
		sentence           string
		code               p11.Error
		failures           int // of C_DeriveKey: one in the operation, one for each rung's health check that fails
		logins, initialise int
	}{
		{"a new session helps", p11.CKR_SESSION_HANDLE_INVALID, 1, 0, 0},
		{"a new login helps", p11.CKR_USER_NOT_LOGGED_IN, 2, 1, 0},
		{"initialising again helps", p11.CKR_DEVICE_ERROR, 3, 2, 1},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			spy.reset()
			spy.inject(failing(tc.code, tc.failures, "C_DeriveKey"))
			f.generate(t, 32)
			if l, i := spy.count("C_Login"), spy.count("C_Initialize"); l != tc.logins || i != tc.initialise {
				t.Errorf("%d logins and %d initialisations; want %d and %d", l, i, tc.logins, tc.initialise)
			}
		})
	}
}

// waitLonger has a module that waits before it climbs again wait for longer than any test takes.
func waitLonger(m *Module) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.backoff.next.IsZero() {
		m.backoff.next = m.backoff.next.Add(time.Hour)
	}
}

func TestRecovery_deadDevice_isUnavailableAndLeftAlone(t *testing.T) {
	for _, code := range []p11.Error{p11.CKR_DEVICE_ERROR, p11.CKR_GENERAL_ERROR} {
		f := newFixture(t, configOf(tokens.SoftHSM(t)))
		blob := f.generate(t, 32)
		spy := spyOn(t, f.m)
		spy.inject(failing(code, always, "C_DeriveKey", "C_GenerateKey", "C_UnwrapKey", "C_WrapKey"))
		for range 10 {
			_, err := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 32, Binding: f.binding})
			wantKind(t, err, hsm.Unavailable, "GenerateDataKey")
			waitLonger(f.m)
			wantKind(t, f.m.Check(t.Context()), hsm.Unavailable, "Check")
			wantKind(t, f.m.VerifyDataKey(t.Context(), f.open(blob)), hsm.Unavailable, "VerifyDataKey of a good blob")
		}
		if n := spy.count("C_Initialize"); n != 1 {
			t.Errorf("%d initialisations before the next is due; want 1", n)
		}
		spy.inject(nil) // the device is back
		f.m.climbed(true)
		f.mustWork(t)
	}
}

func TestRecovery_tokenPulledOut_isUnavailableUntilItIsBack(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	spy := spyOn(t, f.m)
	right := f.m.cfg.Token
	f.m.cfg.Token.Label = "elsewhere"
	spy.inject(failing(p11.CKR_DEVICE_REMOVED, 1, "C_DeriveKey"))
	f.m.detach(t.Context())
	wantKind(t, f.m.Check(t.Context()), hsm.Unavailable, "Check") // not Misconfigured: nobody changed anything
	f.m.cfg.Token = right
	f.m.climbed(true)
	f.mustWork(t)
}

func TestRecovery_PINChangedMeanwhile_isTriedOnceAndThenLocked(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	spy := spyOn(t, f.m)
	err := f.m.operate(t.Context(), func(s *session) error {
		return spy.direct().SetPIN(s.h, "12345678", "another one")
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := spy.direct().CloseAllSessions(f.m.at.slot); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		wantKind(t, f.m.Check(t.Context()), hsm.Locked, "Check")
	}
	if n := spy.count("C_Login"); n != 1 {
		t.Errorf("%d calls of C_Login; want 1", n)
	}
}

func TestRecovery_keyRemadeByAnother_isFoundAnew(t *testing.T) {
	onEach(t, func(t *testing.T, token tokens.Token) {
		f, other := newFixture(t, configOf(token)), mustOpen(t, configOf(token))
		f.mustWork(t) // the handle is cached
		if err := other.DestroyKey(t.Context(), f.id); err != nil {
			t.Fatal(err)
		}
		_, err := f.m.FindKey(t.Context(), f.id)
		wantKind(t, err, hsm.NotFound, "FindKey of a key that another module destroyed")
		if _, err := other.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
			t.Fatal(err)
		}
		f.mustWork(t)
		spy := spyOn(t, f.m)
		spy.inject(failing(p11.CKR_KEY_HANDLE_INVALID, 1, "C_DeriveKey"))
		f.generate(t, 32)
		if n := spy.count("C_Initialize", "C_Login"); n != 0 {
			t.Errorf("a handle that is not good costs %d logins and initialisations; want none", n)
		}
	})
}

func TestRecovery_codesThatABadInputGivesToo_areJudgedByHealth(t *testing.T) {
	f := newFixture(t, configOf(tokens.SoftHSM(t)))
	blob := f.generate(t, 32)
	bad := blob
	bad.Payload = append([]byte(nil), blob.Payload...)
	bad.Payload[3] ^= 1
	spy := spyOn(t, f.m)
	wantKind(t, f.m.VerifyDataKey(t.Context(), f.open(bad)), hsm.InvalidBlob, "a bad blob in a module that is well")
	if n := spy.count("C_Initialize", "C_Login"); n != 0 {
		t.Errorf("it costs %d logins and initialisations; want none", n)
	}
	// A failure of a moment, and a blob that is good.
	spy.inject(failing(p11.CKR_GENERAL_ERROR, 1, "C_UnwrapKey"))
	if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil || spy.count("C_Initialize", "C_Login") != 0 {
		t.Errorf("a good blob after one failure: %v", err)
	}
	// A module that is unwell, and a blob that is good: it is tried again.
	spy.inject(failing(p11.CKR_GENERAL_ERROR, 3, "C_UnwrapKey", "C_GenerateKey")) // twice, and the health check
	if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
		t.Errorf("a good blob after recovery: %v", err)
	}
	// Both at once: recovery, and then the truth.
	spy.inject(failing(p11.CKR_GENERAL_ERROR, 3, "C_UnwrapKey", "C_GenerateKey"))
	wantKind(t, f.m.VerifyDataKey(t.Context(), f.open(bad)), hsm.InvalidBlob, "a bad blob after recovery")
}

func TestHanging_callerGoesOnAndThePlaceIsGivenBackLater(t *testing.T) {
	cfg := configOf(tokens.SoftHSM(t))
	cfg.MaxSessions = 2
	f := newFixture(t, cfg)
	spy := spyOn(t, f.m)
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var hangs atomic.Bool
	spy.inject(func(function string) error {
		if function == "C_DeriveKey" && hangs.CompareAndSwap(false, true) {
			cancel()
			<-release
		}
		return nil
	})
	_, err := f.m.FindKey(ctx, f.id)
	wantKind(t, err, hsm.Unavailable, "a call that hangs")
	for range 5 { // in the one place that is left
		f.generate(t, 32)
	}
	if n := len(f.m.slots); n != 1 {
		t.Errorf("%d places are taken; want 1, by the call that hangs", n)
	}
	close(release)
	for range cap(f.m.slots) { // every place comes back
		f.m.slots <- struct{}{}
	}
	for range cap(f.m.slots) {
		<-f.m.slots
	}
	f.mustWork(t)
}

func TestHanging_everyPlaceTaken_waitersGiveUpInTime(t *testing.T) {
	cfg := configOf(tokens.SoftHSM(t))
	cfg.MaxSessions = 2
	f := newFixture(t, cfg)
	spy := spyOn(t, f.m)
	release := make(chan struct{})
	defer close(release)
	hangs := make(chan struct{}, 2)
	spy.inject(func(function string) error {
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
		_, err := f.m.FindKey(ctx, f.id)
		wantKind(t, err, hsm.Unavailable, "FindKey that hangs")
	}
	for range 2 {
		short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		began := time.Now()
		_, err := f.m.FindKey(short, f.id)
		cancel()
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("it took %s", took)
		}
		wantKind(t, err, hsm.Unavailable, "FindKey that waits")
	}
	if n := spy.count("C_DeriveKey"); n != 2 {
		t.Errorf("%d calls hang; the bound is 2", n)
	}
}
