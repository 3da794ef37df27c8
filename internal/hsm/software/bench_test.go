package software_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// The benchmarks in internal/kms compare operations with bare calls.

func BenchmarkGenerateDataKey(b *testing.B) {
	for _, bc := range []struct {
		name   string
		spec   hsm.KeySpec
		length int
	}{
		{"AES_256/32_bytes", hsm.AES256, 32}, {"AES_256/1024_bytes", hsm.AES256, 1024}, {"SM4/32_bytes", hsm.SM4, 32},
	} {
		b.Run(bc.name, func(b *testing.B) {
			m, id := withKey(b, bc.spec)
			for b.Loop() {
				if _, err := m.GenerateDataKey(b.Context(), hsm.GenerateRequest{KeyVersionID: id, Length: bc.length}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen opens a store of 10 000 keys and 1 000 key pairs, as a restart does.
func BenchmarkOpen(b *testing.B) {
	storage := &hsmtest.Storage{}
	m := open(b, storage)
	pair := createPair(b, m, wrapping.ECSM2)
	for range 10_000 {
		importKey(b, m, pair, random(32))
	}
	for range 1_000 {
		createPair(b, m, wrapping.ECSM2)
	}
	for b.Loop() {
		if err := open(b, storage).Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func withKey(b *testing.B, spec hsm.KeySpec) (hsm.Module, uuid.UUID) {
	b.Helper()
	m := open(b, &hsmtest.Storage{})
	req := importRequest(b, createPair(b, m, wrapping.ECSM2), wrapping.SM2PKE, random(spec.Len()))
	req.Spec = spec
	if _, err := m.ImportKey(b.Context(), req); err != nil {
		b.Fatal(err)
	}
	return m, req.KeyVersionID
}
