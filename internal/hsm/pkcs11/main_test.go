//go:build cgo

package pkcs11

import (
	"context"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins/pinstest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// clock is the clock of libraries. It stands still, so a backoff ends only when a test advances it.
var clock pinstest.Clock

// backoff is longer than any delay between two attempts to reconnect.
const backoff = time.Minute

func TestMain(m *testing.M) {
	libraries = &token.Libraries{
		Load: func(path string) (token.Cryptoki, error) {
			library, err := token.LoadLibrary(path)
			if err != nil {
				return nil, err
			}
			return tokens.NewSpy(path, library.(*p11.Ctx)), nil
		},
		ReinitializeInterval: -1,
		Now:                  clock.Now,
	}
	os.Exit(m.Run())
}

// configOf returns the configuration of a token that permits everything but PKCS #1 v1.5.
func configOf(tok tokens.Token) Config {
	return Config{
		Config: hsm.Config{
			Library: "test", Token: hsm.TokenSelector{Label: tok.Label}, PIN: redact.WireBytes(tok.PIN), Custody: hsm.CustodyHost,
			MaxSessions: tok.MaxSessions,
		},
		Path: tok.Path, Parameters: tok.Parameters,
	}
}

func mustOpen(t testing.TB, cfg Config) *Module {
	t.Helper()
	m, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}

func describe(t testing.TB, m *Module) hsm.Description {
	t.Helper()
	described, err := m.Describe(t.Context())
	if err != nil {
		t.Fatalf("Describe: %v", err)
	}
	return described
}

// objects counts the objects that the token shows to a session, including session objects of others.
func objects(t testing.TB, m *Module) int {
	t.Helper()
	n := 0
	err := m.do(t.Context(), func(s *session) error {
		handles, err := s.FindObjects(nil)
		n = len(handles)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// reconnects counts the calls that a token needs to reconnect, from its smallest step on.
func reconnects(spy *tokens.Spy) int {
	return spy.Count("C_GetSessionInfo", "C_Login", "C_Initialize", "C_Finalize")
}

// fixture is an open module with a wrapping key pair and a master key of known material.
type fixture struct {
	m        *Module
	pair     hsm.WrappingKey
	id       uuid.UUID
	material []byte
	binding  ciphertext.Binding
}

func newFixture(t testing.TB, cfg Config) *fixture {
	t.Helper()
	return fixtureOf(t, mustOpen(t, cfg))
}

func fixtureOf(t testing.TB, m *Module) *fixture {
	t.Helper()
	f := &fixture{m: m, id: uuid.New(), material: make([]byte, 32)}
	_, _ = rand.Read(f.material)
	f.binding = ciphertext.Bind(f.id, map[string]string{"app": "ledger"})
	var err error
	f.pair, err = f.m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
		ID: uuid.New(), Owner: f.id, Spec: wrapping.RSA2048, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatalf("CreateWrappingKey: %v", err)
	}
	if _, err := f.m.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
		t.Fatalf("ImportKey: %v", err)
	}
	return f
}

// importOf wraps material with OAEP and SHA-1, which both modules unwrap inside.
func (f *fixture) importOf(t testing.TB, id uuid.UUID, material []byte) hsm.ImportRequest {
	t.Helper()
	wrapped, err := wrapping.Wrap(rand.Reader, hsmtest.PublicKey(t, f.pair), wrapping.RSAESOAEPSHA1, "", material)
	if err != nil {
		t.Fatal(err)
	}
	return hsm.ImportRequest{
		KeyVersionID: id, Spec: hsm.AES256, WrappingKey: f.pair.ID, Algorithm: wrapping.RSAESOAEPSHA1, EncryptedMaterial: wrapped,
		Owner: hsm.Owner{Namespace: "team-a", Name: "payments", Origin: hsm.OriginImported, Number: 1, KeyID: f.id},
	}
}

func (f *fixture) generate(t testing.TB, length int) ciphertext.Blob {
	t.Helper()
	made, err := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: length, Binding: f.binding})
	if err != nil {
		t.Fatalf("GenerateDataKey: %v", err)
	}
	return made.Blob
}

func (f *fixture) open(blob ciphertext.Blob) hsm.OpenRequest {
	return hsm.OpenRequest{Blob: blob, Binding: f.binding}
}

func (f *fixture) export(blob ciphertext.Blob, algorithm wrapping.Algorithm) hsm.ExportRequest {
	recipient, err := selfTestRecipient()
	if err != nil {
		panic(err)
	}
	return hsm.ExportRequest{OpenRequest: f.open(blob), Recipient: recipient.Public().SPKI(), Algorithm: algorithm}
}

// mustWork runs each operation.
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
