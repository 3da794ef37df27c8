//go:build cgo

package pkcs11

import (
	"crypto/rand"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// benchLibraries are the libraries without the spy, which costs time itself.
var benchLibraries = &registry{load: loadLibrary, rescan: newAllowance(1000, time.Second)}

func benchOpen(b *testing.B, libs *registry, cfg Config) *Module {
	b.Helper()
	m, err := open(b.Context(), libs, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close() })
	return m
}

func BenchmarkOpen(b *testing.B) {
	for kind, newToken := range kinds {
		b.Run(kind, func(b *testing.B) {
			cfg := configOf(newToken(b))
			for b.Loop() {
				m, err := open(b.Context(), benchLibraries, cfg)
				if err != nil {
					b.Fatal(err)
				}
				if err := m.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	for kind, newToken := range kinds {
		b.Run(kind, func(b *testing.B) {
			m := benchOpen(b, benchLibraries, configOf(newToken(b)))
			for b.Loop() {
				if err := m.Check(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What an operation costs beside the same in bare calls is measured in internal/kms, with the domain layer.

// BenchmarkExportSessions says what more sessions bring: exports a second, with more callers than
// sessions. SoftHSM has one lock around nearly everything and gains nothing, NSS gains little. Distant is
// SoftHSM at the end of a line on which each call waits a millisecond, as for an HSM in the network; the waiting is
// below the pool, where it is with such a module.
func BenchmarkExportSessions(b *testing.B) {
	for _, way := range []struct {
		name, kind string
		algorithm  wrapping.Algorithm
		wait       time.Duration
	}{
		{"SoftHSM", "SoftHSM", wrapping.RSAESOAEPSHA1, 0},
		{"NSS", "NSS", wrapping.RSAESOAEPSHA256, 0},
		{"Distant", "SoftHSM", wrapping.RSAESOAEPSHA1, time.Millisecond},
	} {
		for _, sessions := range []int{1, 2, 4, 8} {
			b.Run(fmt.Sprintf("%s/%s/sessions=%d", way.name, way.algorithm, sessions), func(b *testing.B) {
				line := &distant{}
				cfg := configOf(kinds[way.kind](b))
				cfg.MaxSessions = sessions
				f := fixtureOf(b, benchOpen(b, line.libraries(), cfg))
				req := f.export(f.generate(b, 32), way.algorithm)
				line.wait.Store(int64(way.wait))
				exportInParallel(b, f.m, req)
				line.wait.Store(0)
			})
		}
	}
}

func exportInParallel(b *testing.B, m *Module, req hsm.ExportRequest) {
	b.Helper()
	b.ReportAllocs()
	b.SetParallelism(max(1, 16/runtime.GOMAXPROCS(0)))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := m.ExportDataKey(b.Context(), req); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "exports/s")
}

// distant is a library whose answers to what an export asks come late, once wait is set.
type distant struct {
	cryptoki

	wait atomic.Int64
}

func (d *distant) libraries() *registry {
	return &registry{rescan: newAllowance(1000, time.Second), load: func(path string) (c cryptoki, err error) {
		d.cryptoki, err = loadLibrary(path)
		return d, err
	}}
}

func (d *distant) answer() {
	if wait := time.Duration(d.wait.Load()); wait > 0 {
		<-time.After(wait)
	}
}

func (d *distant) DeriveKey(s p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, t []*p11.Attribute) (p11.ObjectHandle, error) {
	d.answer()
	return d.cryptoki.DeriveKey(s, m, base, t)
}

func (d *distant) UnwrapKey(s p11.SessionHandle, m []*p11.Mechanism, with p11.ObjectHandle, wrapped []byte, t []*p11.Attribute) (p11.ObjectHandle, error) {
	d.answer()
	return d.cryptoki.UnwrapKey(s, m, with, wrapped, t)
}

func (d *distant) CreateObject(s p11.SessionHandle, t []*p11.Attribute) (p11.ObjectHandle, error) {
	d.answer()
	return d.cryptoki.CreateObject(s, t)
}

func (d *distant) WrapKey(s p11.SessionHandle, m []*p11.Mechanism, with, key p11.ObjectHandle) ([]byte, error) {
	d.answer()
	return d.cryptoki.WrapKey(s, m, with, key)
}

func (d *distant) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	d.answer()
	return d.cryptoki.DestroyObject(s, o)
}

// fixture is an open module with a pair and a master key whose material the test knows.
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

// importOf wraps material with OAEP and SHA-1, which every module here unwraps inside.
func (f *fixture) importOf(t testing.TB, id uuid.UUID, material []byte) hsm.ImportRequest {
	t.Helper()
	wrapped, err := wrapping.Wrap(rand.Reader, f.pair.PublicKey, wrapping.RSAESOAEPSHA1, "", material)
	if err != nil {
		t.Fatal(err)
	}
	return hsm.ImportRequest{
		KeyVersionID: id, Spec: hsm.AES256, WrappingKey: f.pair.ID, Algorithm: wrapping.RSAESOAEPSHA1, EncryptedMaterial: wrapped,
		Owner: "team-a",
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
	return hsm.ExportRequest{OpenRequest: f.open(blob), Recipient: recipient.Public(), Algorithm: algorithm}
}
