//go:build cgo && linux

package process_test

import (
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// BenchmarkExport compares exports through a process of the library's own with exports by the library in this process, one at a
// time and eight at a time. The algorithms are those that run inside the token.
func BenchmarkExport(b *testing.B) {
	for kind, algorithm := range map[string]wrapping.Algorithm{"SoftHSM": wrapping.RSAESOAEPSHA1, "NSS": wrapping.RSAESOAEPSHA256} {
		tok := tokens.Kinds[kind](b)
		for name, provider := range map[string]hsm.Provider{
			"here":    here(tok),
			"process": newProvider(b, libraries{"real": libraryOf(tok)}),
		} {
			m := mustOpen(b, provider, configOf("real", tok))
			req := exportRequest(b, m, algorithm)
			for _, callers := range []int{1, 8} {
				b.Run(fmt.Sprintf("%s/callers=%d/%s", kind, callers, name), func(b *testing.B) { exportBy(b, m, req, callers) })
			}
		}
	}
}

// exportBy divides b.N exports among callers.
func exportBy(b *testing.B, m hsm.Module, req hsm.ExportRequest, callers int) {
	b.Helper()
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	b.ReportAllocs()
	b.ResetTimer()
	var running sync.WaitGroup
	for range callers {
		running.Go(func() {
			for range work {
				if _, err := m.ExportDataKey(b.Context(), req); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
}

// exportRequest imports a key, generates a data key under it, and returns a request for its export.
func exportRequest(b testing.TB, m hsm.Module, algorithm wrapping.Algorithm) hsm.ExportRequest {
	b.Helper()
	id, material := uuid.New(), make([]byte, 32)
	_, _ = rand.Read(material) // it never fails (Go 1.24)
	pair, err := m.CreateWrappingKey(b.Context(), hsm.WrappingKeyRequest{
		ID: uuid.New(), Owner: id, Spec: wrapping.RSA2048, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		b.Fatal(err)
	}
	wrapped, err := wrapping.Wrap(rand.Reader, hsmtest.PublicKey(b, pair), wrapping.RSAESOAEPSHA1, "", material)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := m.ImportKey(b.Context(), hsm.ImportRequest{
		KeyVersionID: id, Spec: hsm.AES256, WrappingKey: pair.ID, Algorithm: wrapping.RSAESOAEPSHA1, EncryptedMaterial: wrapped,
	}); err != nil {
		b.Fatal(err)
	}
	binding := ciphertext.Bind(id, nil)
	made, err := m.GenerateDataKey(b.Context(), hsm.GenerateRequest{KeyVersionID: id, Length: 32, Binding: binding})
	if err != nil {
		b.Fatal(err)
	}
	recipient, err := wrapping.GeneratePrivateKey(rand.Reader, wrapping.RSA2048)
	if err != nil {
		b.Fatal(err)
	}
	return hsm.ExportRequest{
		OpenRequest: hsm.OpenRequest{Blob: made.Blob, Binding: binding}, Recipient: recipient.Public().SPKI(), Algorithm: algorithm,
	}
}
