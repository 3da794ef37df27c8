package wrapping_test

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// opensslOptions are what a person gives to `openssl pkeyutl` for each algorithm.
func opensslOptions() map[wrapping.Algorithm][]string {
	return map[wrapping.Algorithm][]string{
		wrapping.RSAESOAEPSHA256: {
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256",
		},
		wrapping.RSAESOAEPSHA1: {"-pkeyopt", "rsa_padding_mode:oaep"}, // SHA-1 is openssl's default
		wrapping.RSAESPKCS1V15: nil,                                   // so is PKCS#1 v1.5
		wrapping.SM2PKE:        nil,
	}
}

func TestUnwrap_opensWhatOpensslWrapped(t *testing.T) {
	t.Parallel()
	for algorithm, options := range opensslOptions() {
		t.Run(string(algorithm), func(t *testing.T) {
			t.Parallel()
			key := pairings()[algorithm]
			sh := newShell(t)
			sh.write("public.pem", toPEM("PUBLIC KEY", key.Public().SPKI()))
			for _, length := range []int{16, 32} {
				material := make([]byte, length)
				_, _ = rand.Read(material)
				sh.write("material", material)
				wrapped := sh.openssl(append([]string{"pkeyutl", "-encrypt", "-pubin", "-inkey", "public.pem", "-in", "material"}, options...)...)
				got, err := key.Unwrap(algorithm, "", wrapped)
				if err != nil || !bytes.Equal(got, material) {
					t.Errorf("%d bytes: %v", length, err)
				}
			}
		})
	}
}

func TestWrap_isOpenedByOpenssl(t *testing.T) {
	t.Parallel()
	for algorithm, options := range opensslOptions() {
		t.Run(string(algorithm), func(t *testing.T) {
			t.Parallel()
			key := pairings()[algorithm]
			sh := newShell(t)
			sh.write("private.pem", toPEM("PRIVATE KEY", pkcs8(t, key)))
			longest := min(1024, wrapping.MaxLen(key.Public().Spec(), algorithm))
			for _, length := range []int{1, 16, 32, longest} {
				material := make([]byte, length)
				_, _ = rand.Read(material)
				sh.write("wrapped", wrap(t, key.Public(), algorithm, wrapping.ASN1, material))
				got := sh.openssl(append([]string{"pkeyutl", "-decrypt", "-inkey", "private.pem", "-in", "wrapped"}, options...)...)
				if !bytes.Equal(got, material) {
					t.Errorf("%d bytes: openssl opens it to %x", length, got)
				}
			}
		})
	}
}

// The raw result of RSA, which a module without OAEP-SHA-256 gives, as openssl computes it.
func TestRemoveOAEP_decodesTheRawResultOfOpenssl(t *testing.T) {
	t.Parallel()
	sh := newShell(t)
	sh.write("private.pem", toPEM("PRIVATE KEY", pkcs8(t, rsaKey())))
	for algorithm := range hashes() {
		sh.write("wrapped", wrap(t, rsaKey().Public(), algorithm, "", []byte("raw bytes of a key")))
		encoded := sh.openssl("pkeyutl", "-decrypt", "-inkey", "private.pem", "-in", "wrapped", "-pkeyopt", "rsa_padding_mode:none")
		got, err := wrapping.RemoveOAEP(algorithm, encoded)
		if err != nil || string(got) != "raw bytes of a key" {
			t.Errorf("%s: %q, %v", algorithm, got, err)
		}
	}
}
