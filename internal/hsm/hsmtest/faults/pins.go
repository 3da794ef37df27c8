//go:build cgo

package faults

import (
	"context"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/faulty"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// TestRefusedPIN checks that a PIN that the token rejected is not tried again, however often the module is opened.
func (s *Scene) TestRefusedPIN(t *testing.T) {
	t.Helper()
	l := s.closedStore(t)
	s.control.Inject(faulty.Fault{Kind: faulty.Code, Parameter: ckrPINIncorrect, Functions: []string{"C_Login"}})
	for range 3 {
		hsmtest.WantKind(t, l.do(check), hsm.Locked, "Check with a PIN that is rejected")
	}
	s.control.End()
	hsmtest.WantKind(t, l.do(check), hsm.Locked, "Check with a PIN that was rejected")
	if n := s.control.Calls("C_Login"); n != 1 {
		t.Errorf("%d calls of C_Login, want 1", n)
	}
	l.cfg.PINOrigin.Source = "another Secret"
	if err := l.do(check); err != nil {
		t.Errorf("Check with the PIN of another Secret: %v", err)
	}
	if n := s.control.Calls("C_Login"); n != 2 {
		t.Errorf("%d calls of C_Login, want 2", n)
	}
}

// TestCrashInLogin checks that a PIN whose first attempt ends the process is not tried again: it may have been a wrong one.
func (s *Scene) TestCrashInLogin(t *testing.T) {
	t.Helper()
	l := s.closedStore(t)
	s.control.Inject(faulty.Fault{Kind: faulty.Kill, Functions: []string{"C_Login"}, Inside: true})
	for untried := false; !untried; {
		s.late.Add(int64(time.Minute)) // so that the provider starts the next process at once
		err := l.do(check)
		untried = hsm.KindOf(err) == hsm.PINUntried
		if n := s.control.Calls("C_Login"); err == nil || n > 1 {
			t.Fatalf("Check returns %v after %d calls of C_Login, want at most 1", err, n)
		}
		<-time.After(pace)
	}
	if n := s.control.Calls("C_Login"); n != 1 {
		t.Errorf("the PIN was tried %d times, want once", n)
	}
}

func check(ctx context.Context, m hsm.Module) error { return m.Check(ctx) }

// closedStore returns a store on a new token that was never opened.
func (s *Scene) closedStore(t *testing.T) *load {
	t.Helper()
	tokens.Replace(t, s.token)
	s.control.Reset(s.token.PIN)
	s.cases++
	l := s.newLoad(nameOf(failing, s.cases), s.token)
	t.Cleanup(func() {
		s.control.End()
		if err := l.close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}
