package wrapping_test

import (
	"bytes"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io/fs"
	"math/big"
	"sync/atomic"
	"testing"

	"github.com/c2sp/wycheproof"

	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// oaepGroup is a group of Wycheproof's RSA-OAEP vectors (schema rsaes_oaep_decrypt_schema_v1).
type oaepGroup struct {
	KeySize         int
	SHA             string `json:"sha"`
	MGFSHA          string `json:"mgfSha"`
	PrivateKeyPKCS8 string `json:"privateKeyPkcs8"`
	Tests           []struct {
		TcID    int
		Comment string
		Msg     string
		Ct      string
		Label   string
		Result  string
	}
}

func (g oaepGroup) algorithm() wrapping.Algorithm {
	switch {
	case g.SHA == "SHA-256" && g.MGFSHA == "SHA-256":
		return wrapping.RSAESOAEPSHA256
	case g.SHA == "SHA-1" && g.MGFSHA == "SHA-1":
		return wrapping.RSAESOAEPSHA1
	}
	return ""
}

func TestOAEP_passesWycheproof(t *testing.T) {
	t.Parallel()
	var ran, raw, refused atomic.Int64
	for _, name := range []string{
		"rsa_oaep_2048_sha1_mgf1sha1_test.json",
		"rsa_oaep_2048_sha256_mgf1sha256_test.json",
		"rsa_oaep_3072_sha256_mgf1sha256_test.json",
		"rsa_oaep_4096_sha256_mgf1sha256_test.json",
		"rsa_oaep_misc_test.json",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, group := range oaepGroups(t, name) {
				algorithm, bits := group.algorithm(), group.KeySize
				if algorithm == "" || bits != 2048 && bits != 3072 && bits != 4096 {
					continue // hashes and sizes that Keyconvoy does not offer
				}
				der := unhex(t, group.PrivateKeyPKCS8)
				key, err := wrapping.ParsePrivateKey(der)
				if err != nil {
					t.Fatal(err)
				}
				native := parseRSA(t, der)
				for _, tc := range group.Tests {
					ct := unhex(t, tc.Ct)
					// An empty label is all there is, so a ciphertext with another must not open.
					opens := tc.Result != "invalid" && tc.Label == ""
					check := func(way string, got []byte, err error) {
						if opens && (err != nil || !bytes.Equal(got, unhex(t, tc.Msg))) {
							t.Errorf("vector %d (%s), %s: %x, %v", tc.TcID, tc.Comment, way, got, err)
						}
						if !opens && (got != nil || !errors.Is(err, wrapping.ErrUnwrap)) {
							t.Errorf("vector %d (%s), %s: opened to %x, %v", tc.TcID, tc.Comment, way, got, err)
						}
					}
					got, err := key.Unwrap(algorithm, "", ct)
					check("Unwrap", got, err)
					ran.Add(1)
					if !opens {
						refused.Add(1)
					}
					if encoded, ok := rawRSA(native, ct); ok {
						got, err := wrapping.RemoveOAEP(algorithm, encoded)
						check("raw RSA and RemoveOAEP", got, err)
						raw.Add(1)
					} else if opens {
						t.Errorf("vector %d is no number below the modulus, and valid", tc.TcID)
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		t.Logf("%d vectors through Unwrap, %d through RemoveOAEP, %d of them to be refused", ran.Load(), raw.Load(), refused.Load())
		if ran.Load() < 160 || raw.Load() < 140 || refused.Load() < 80 {
			t.Error("that is less than Wycheproof had; are the files read?")
		}
	})
}

func oaepGroups(t *testing.T, name string) []oaepGroup {
	t.Helper()
	text, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ TestGroups []oaepGroup }
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file.TestGroups
}

// rawRSA is what CKM_RSA_X_509 does: the private operation on a ciphertext of the right length below
// the modulus (RFC 8017, section 5.1.2, by the Chinese remainder theorem), as long as the modulus.
func rawRSA(key *rsa.PrivateKey, ciphertext []byte) ([]byte, bool) {
	c := new(big.Int).SetBytes(ciphertext)
	if len(ciphertext) != key.Size() || c.Cmp(key.N) >= 0 {
		return nil, false
	}
	p, q := key.Primes[0], key.Primes[1]
	m1 := new(big.Int).Exp(c, key.Precomputed.Dp, p)
	m2 := new(big.Int).Exp(c, key.Precomputed.Dq, q)
	h := m1.Sub(m1, m2)
	h.Mul(h, key.Precomputed.Qinv).Mod(h, p)
	m := h.Mul(h, q).Add(h, m2)
	return m.FillBytes(make([]byte, key.Size())), true
}
