//go:build cgo

package pkcs11

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// served are the modules whose library depends on another process.
var served = map[string]func(testing.TB) (tokens.Token, *tokens.Service){
	"openCryptoki": tokens.OpenCryptoki,
	"p11-kit": func(t testing.TB) (tokens.Token, *tokens.Service) {
		tok, server := tokens.P11Kit(t)
		return tok, server.Service
	},
}

func TestServed_keepTheContract(t *testing.T) {
	for name, newToken := range served {
		t.Run(name, func(t *testing.T) {
			tok, _ := newToken(t)
			keepsTheContract(t, configOf(tok), expected(name, hsm.CustodyHost, false))
		})
	}
}

// A module whose service is killed is unavailable, or works on without it. It never reports that a key does not exist.
func TestServed_killedAndRestarted(t *testing.T) {
	for name, newToken := range served {
		t.Run(name, func(t *testing.T) {
			tok, service := newToken(t)
			f := newFixture(t, configOf(tok))
			blob := f.generate(t, 32)
			for range 3 {
				service.Kill(t)
				for range 3 {
					wantOKOrUnavailable(t, f.m.Check(t.Context()), "Check")
					_, err := f.m.FindKey(t.Context(), f.id)
					wantOKOrUnavailable(t, err, "FindKey")
					wantOKOrUnavailable(t, f.m.VerifyDataKey(t.Context(), f.open(blob)), "VerifyDataKey")
				}
				service.Start(t)
				clock.Advance(backoff)
				f.mustWork(t)
				if err := f.m.VerifyDataKey(t.Context(), f.open(blob)); err != nil {
					t.Errorf("a blob of before: %v", err)
				}
			}
		})
	}
}

func wantOKOrUnavailable(t *testing.T, err error, call string) {
	t.Helper()
	if err != nil {
		hsmtest.WantKind(t, err, hsm.Unavailable, "%s without the service", call)
	}
}

// A module cannot be opened without its service. That may pass, so it is no error of the configuration.
func TestServed_openedWithoutItsService_isUnavailable(t *testing.T) {
	for name, newToken := range served {
		for what, fault := range map[string]func(testing.TB, *tokens.Service){
			"killed":         func(t testing.TB, service *tokens.Service) { service.Kill(t) },
			"socket removed": func(_ testing.TB, service *tokens.Service) { _ = os.Remove(service.Socket) },
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				tok, service := newToken(t)
				fault(t, service)
				_, err := Open(t.Context(), configOf(tok))
				hsmtest.WantKind(t, err, hsm.Unavailable, "Open")
				service.Kill(t)
				service.Start(t)
				newFixture(t, configOf(tok)).mustWork(t)
			})
		}
	}
}

func TestP11Kit_socketRemoved_isUnavailableUntilItExists(t *testing.T) {
	tok, server := tokens.P11Kit(t)
	f := newFixture(t, configOf(tok))
	server.Relay.RemoveSocket()
	f.mustWork(t) // the connection remains
	server.Relay.Cut()
	for range 3 {
		hsmtest.WantKind(t, f.m.Check(t.Context()), hsm.Unavailable, "Check")
		_, err := f.m.FindKey(t.Context(), f.id)
		hsmtest.WantKind(t, err, hsm.Unavailable, "FindKey")
		_, err = f.m.ListKeys(t.Context())
		hsmtest.WantKind(t, err, hsm.Unavailable, "ListKeys")
	}
	server.Relay.Listen(t)
	clock.Advance(backoff)
	f.mustWork(t)
}

// The server has run a call whose response is lost. The operation runs again, and neither fails nor leaves a second object.
func TestP11Kit_connectionCutInACall_isSurvived(t *testing.T) {
	tok, server := tokens.P11Kit(t)
	f := newFixture(t, configOf(tok))
	f.mustWork(t) // generates the MAC key
	before := objects(t, f.m)
	cuts := 0
	for pending := false; !pending; cuts++ {
		n := cuts + 1
		id := uuid.New()
		req := f.importOf(t, id, f.material)
		server.Relay.CutInCall(n)
		if _, err := f.m.ImportKey(t.Context(), req); err != nil {
			t.Errorf("ImportKey, cut at piece %d: %v", n, err)
		}
		pending = server.Relay.CutPending() // the import needs fewer responses
		server.Relay.CutInCall(0)
		if after := objects(t, f.m); after != before+1 {
			t.Errorf("ImportKey, cut at piece %d: %d objects, want %d", n, after, before+1)
		}
		if err := f.m.DestroyKey(t.Context(), id); err != nil {
			t.Errorf("DestroyKey: %v", err)
		}
	}
	if cuts < 10 {
		t.Errorf("an import has %d responses, want more", cuts-1)
	}
	f.mustWork(t)
}

// A server that does not respond holds up the callers of its own token until their contexts are done, and no others.
func TestP11Kit_silentConnection_isUnavailable(t *testing.T) {
	tok, server := tokens.P11Kit(t)
	cfg := configOf(tok)
	cfg.MaxSessions = 2
	f, other := newFixture(t, cfg), newFixture(t, configOf(tokens.SoftHSM(t)))
	server.Relay.Silence()
	defer server.Relay.Resume() // also if the test fails, so that the module can be closed
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error)
	for range 3 * cfg.MaxSessions { // more than can hang
		go func() {
			_, err := f.m.FindKey(ctx, f.id)
			results <- err
		}()
	}
	server.Relay.AwaitHeldData(t)
	other.mustWork(t)
	cancel()
	for range 3 * cfg.MaxSessions {
		err := <-results
		hsmtest.WantKind(t, err, hsm.Unavailable, "FindKey of a silent token")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v does not have context.Canceled in its chain", err)
		}
	}
	other.mustWork(t)
	server.Relay.Resume()
	clock.Advance(backoff)
	f.mustWork(t)
}

// holdOpenCryptoki is set in a child process that is killed while it uses openCryptoki.
const holdOpenCryptoki = "KEYCONVOY_TEST_HOLD_OPENCRYPTOKI"

// If a test process is killed, its daemon ends, and what it leaves does not disturb the next test.
func TestOpenCryptoki_testProcessKilled_leavesNoDaemon(t *testing.T) {
	if os.Getenv(holdOpenCryptoki) != "" {
		tokens.OpenCryptoki(t)
		fmt.Println(holdOpenCryptoki)
		select {}
	}
	child := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), holdOpenCryptoki+"=1")
	out, err := child.StdoutPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines, holds := bufio.NewScanner(out), false
	for !holds && lines.Scan() {
		holds = lines.Text() == holdOpenCryptoki
	}
	if !holds {
		t.Fatal("the child does not use openCryptoki")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	tok, _ := tokens.OpenCryptoki(t)
	newFixture(t, configOf(tok)).mustWork(t)
}
