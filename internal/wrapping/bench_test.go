package wrapping_test

import (
	"crypto/rand"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

var benchmarked = []wrapping.Algorithm{
	wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1, wrapping.RSAESPKCS1V15, wrapping.SM2PKE,
}

func BenchmarkWrap(b *testing.B) {
	for _, algorithm := range benchmarked {
		key := pairings()[algorithm].Public()
		b.Run(string(algorithm), func(b *testing.B) {
			plaintext := make([]byte, 32)
			for b.Loop() {
				if _, err := wrapping.Wrap(rand.Reader, key, algorithm, "", plaintext); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkUnwrap(b *testing.B) {
	for _, algorithm := range benchmarked {
		key := pairings()[algorithm]
		b.Run(string(algorithm), func(b *testing.B) {
			ciphertext := wrap(b, key.Public(), algorithm, "", make([]byte, 32))
			for b.Loop() {
				if _, err := key.Unwrap(algorithm, "", ciphertext); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRemoveOAEP(b *testing.B) {
	for algorithm, h := range hashes() {
		b.Run(string(algorithm), func(b *testing.B) {
			db := append(h.New().Sum(nil), make([]byte, 255-2*h.Size()-33)...)
			encoded := encodeOAEP(h, 0, make([]byte, h.Size()), append(append(db, 1), make([]byte, 32)...))
			for b.Loop() {
				if _, err := wrapping.RemoveOAEP(algorithm, encoded); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParsePublicKey(b *testing.B) {
	for name, key := range map[string]*wrapping.PublicKey{"RSA": rsaKey().Public(), "SM2": sm2Key().Public()} {
		b.Run(name, func(b *testing.B) {
			text := []byte(key.Base64())
			for b.Loop() {
				if _, err := wrapping.ParsePublicKey(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
