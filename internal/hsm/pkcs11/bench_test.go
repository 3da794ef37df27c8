//go:build cgo

package pkcs11

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// eachKind runs a benchmark on each module, with RSA-OAEP and both hashes.
func eachKind(b *testing.B, bench func(*testing.B, *fixture, wrapping.Algorithm)) {
	b.Helper()
	for kind, newToken := range kinds {
		f := newFixture(b, configOf(newToken(b)))
		for _, algorithm := range []wrapping.Algorithm{wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1} {
			b.Run(kind+"/"+string(algorithm), func(b *testing.B) { bench(b, f, algorithm) })
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for kind, newToken := range kinds {
		b.Run(kind, func(b *testing.B) {
			cfg := configOf(newToken(b))
			for b.Loop() {
				m, err := Open(b.Context(), cfg)
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

func BenchmarkImportKey(b *testing.B) {
	eachKind(b, func(b *testing.B, f *fixture, algorithm wrapping.Algorithm) {
		wrapped, err := wrapping.Wrap(rand.Reader, f.pair.PublicKey, algorithm, "", f.material)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			req := hsm.ImportRequest{
				KeyVersionID: uuid.New(), Spec: hsm.AES256, WrappingKey: f.pair.ID, Algorithm: algorithm, EncryptedMaterial: wrapped,
			}
			if _, err := f.m.ImportKey(b.Context(), req); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := f.m.DestroyKey(b.Context(), req.KeyVersionID); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func BenchmarkGenerateDataKey(b *testing.B) {
	for kind, newToken := range kinds {
		f := newFixture(b, configOf(newToken(b)))
		for name, length := range map[string]int{"32 bytes inside": 32, "20 bytes on the host": 20} {
			b.Run(kind+"/"+name, func(b *testing.B) {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						_, err := f.m.GenerateDataKey(b.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: length, Binding: f.binding})
						if err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}

func BenchmarkExportDataKey(b *testing.B) {
	eachKind(b, func(b *testing.B, f *fixture, algorithm wrapping.Algorithm) {
		blob := f.generate(b, 32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := f.m.ExportDataKey(b.Context(), f.export(blob, algorithm)); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func BenchmarkCheck(b *testing.B) {
	for kind, newToken := range kinds {
		b.Run(kind, func(b *testing.B) {
			m := mustOpen(b, configOf(newToken(b)))
			for b.Loop() {
				if err := m.Check(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
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
	f := &fixture{m: mustOpen(t, cfg), id: uuid.New(), material: make([]byte, 32)}
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
