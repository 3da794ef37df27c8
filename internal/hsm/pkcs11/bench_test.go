//go:build cgo

package pkcs11

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// benchLibraries have no spy, which takes time itself.
var benchLibraries = &token.Libraries{}

func benchOpen(b *testing.B, libs *token.Libraries, cfg Config) *Module {
	b.Helper()
	m, err := open(b.Context(), libs, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Close(context.Background()) })
	return m
}

func BenchmarkOpen(b *testing.B) {
	for kind, newToken := range tokens.Kinds {
		b.Run(kind, func(b *testing.B) {
			cfg := configOf(newToken(b))
			for b.Loop() {
				m, err := open(b.Context(), benchLibraries, cfg)
				if err != nil {
					b.Fatal(err)
				}
				if err := m.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	for kind, newToken := range tokens.Kinds {
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

// The benchmarks in internal/kms compare operations with bare calls into the library.

// BenchmarkExportSessions measures exports per second by the number of sessions, with more callers than sessions. SoftHSM has one
// lock around nearly everything and gains nothing from more sessions, NSS gains little. Distant is SoftHSM with a delay of a
// millisecond per call, as for an HSM in the network.
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
				cfg := configOf(tokens.Kinds[way.kind](b))
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

// distant is a library that delays the calls of an export once wait is set.
type distant struct {
	token.Cryptoki

	wait atomic.Int64
}

func (d *distant) libraries() *token.Libraries {
	return &token.Libraries{Load: func(path string) (c token.Cryptoki, err error) {
		d.Cryptoki, err = token.LoadLibrary(path)
		return d, err
	}}
}

func (d *distant) delay() {
	if wait := time.Duration(d.wait.Load()); wait > 0 {
		<-time.After(wait)
	}
}

func (d *distant) DeriveKey(s p11.SessionHandle, m []*p11.Mechanism, base p11.ObjectHandle, t []*p11.Attribute) (p11.ObjectHandle, error) {
	d.delay()
	return d.Cryptoki.DeriveKey(s, m, base, t)
}

func (d *distant) UnwrapKey(s p11.SessionHandle, m []*p11.Mechanism, with p11.ObjectHandle, wrapped []byte, t []*p11.Attribute) (p11.ObjectHandle, error) {
	d.delay()
	return d.Cryptoki.UnwrapKey(s, m, with, wrapped, t)
}

func (d *distant) CreateObject(s p11.SessionHandle, t []*p11.Attribute) (p11.ObjectHandle, error) {
	d.delay()
	return d.Cryptoki.CreateObject(s, t)
}

func (d *distant) WrapKey(s p11.SessionHandle, m []*p11.Mechanism, with, key p11.ObjectHandle) ([]byte, error) {
	d.delay()
	return d.Cryptoki.WrapKey(s, m, with, key)
}

func (d *distant) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	d.delay()
	return d.Cryptoki.DestroyObject(s, o)
}
