package kms_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func pkcs1v15(r *kms.ImportParametersRequest) {
	r.WrappingKeySpec, r.WrappingAlgorithm = wrapping.RSA2048, wrapping.RSAESPKCS1V15
}

func TestImportKeyMaterial_bringsInEveryKeyTypeUnderEveryAlgorithm(t *testing.T) {
	t.Parallel()
	s := openService(t, &hsmtest.Storage{}, true)
	algorithms := map[wrapping.Algorithm]wrapping.KeySpec{
		wrapping.RSAESOAEPSHA256: wrapping.RSA2048,
		wrapping.RSAESOAEPSHA1:   wrapping.RSA2048,
		wrapping.RSAESPKCS1V15:   wrapping.RSA2048,
		wrapping.SM2PKE:          wrapping.ECSM2,
	}
	for algorithm, wrappingSpec := range algorithms {
		t.Run(string(algorithm), func(t *testing.T) {
			t.Parallel()
			for _, spec := range hsm.KeySpecs() {
				key, material := newKey(spec), random(spec.Len())
				p := s.parameters(t, kms.ImportParametersRequest{Key: key, WrappingKeySpec: wrappingSpec, WrappingAlgorithm: algorithm})
				if p.PublicKey.Spec() != wrappingSpec {
					t.Errorf("the public key is %s", p.PublicKey.Spec())
				}
				imported, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, algorithm, material))
				if err != nil {
					t.Fatal(err)
				}
				want, err := hsm.FingerprintOf(spec, material)
				if err != nil || *imported.Fingerprint != want || imported.Custody != hsm.CustodySoftware {
					t.Errorf("imported %+v, want fingerprint %s (%v) and custody Software", imported, want, err)
				}
			}
		})
	}
}

func TestImportKeyMaterial_refusesBeforeTheModuleIsAsked(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	good := request(t, key, s.parameters(t, sm2(key)), wrapping.SM2PKE, random(32))
	s.module.Reset()
	for sentence, tc := range map[string]struct {
		change func(*kms.ImportKeyMaterialRequest)
		code   kms.Code
		says   string
	}{
		"no material":                        {func(r *kms.ImportKeyMaterialRequest) { r.EncryptedKeyMaterial = nil }, kms.MissingParameter, `"EncryptedKeyMaterial"`},
		"no token":                           {func(r *kms.ImportKeyMaterialRequest) { r.ImportToken = nil }, kms.MissingParameter, `"ImportToken"`},
		"a token of another form":            {func(r *kms.ImportKeyMaterialRequest) { r.ImportToken = []byte("token") }, kms.InvalidImportToken, "published together with the public key"},
		"a key that was not made for import": {func(r *kms.ImportKeyMaterialRequest) { r.Key.Origin = "Aliyun_KMS" }, kms.UnsupportedOrigin, ""},
	} {
		req := good
		tc.change(&req)
		_, err := s.ImportKeyMaterial(t.Context(), req)
		wantError(t, err, tc.code, tc.says)
		if calls := s.module.Calls(); len(calls) > 0 {
			t.Errorf("%s: the module was asked: %v", sentence, calls)
		}
	}
}

// Whatever goes wrong inside the unwrapping looks the same: it is no oracle. What is said depends on the request's length and
// form, which the sender knows. And nothing is left behind.
func TestImportKeyMaterial_refusesMaterialThatDoesNotUnwrap(t *testing.T) {
	t.Parallel()
	s := openService(t, &hsmtest.Storage{}, true)
	for _, tc := range []struct {
		spec      wrapping.KeySpec
		algorithm wrapping.Algorithm
		other     wrapping.Algorithm // another one for the same pair
	}{
		{wrapping.RSA2048, wrapping.RSAESPKCS1V15, wrapping.RSAESOAEPSHA1},
		{wrapping.RSA2048, wrapping.RSAESOAEPSHA256, wrapping.RSAESOAEPSHA1},
		{wrapping.RSA2048, wrapping.RSAESOAEPSHA1, wrapping.RSAESOAEPSHA256},
		{wrapping.ECSM2, wrapping.SM2PKE, wrapping.SM2PKE},
	} {
		t.Run(string(tc.algorithm), func(t *testing.T) {
			t.Parallel()
			key, material := newKey(hsm.AES256), random(32)
			p := s.parameters(t, kms.ImportParametersRequest{Key: key, WrappingKeySpec: tc.spec, WrappingAlgorithm: tc.algorithm})
			wrapped := wrap(t, p.PublicKey, tc.algorithm, material)
			causes := map[string][]byte{
				"another key pair": wrap(t, recipient(t, tc.spec).Public(), tc.algorithm, material),
				"a byte within":    flipped(wrapped, len(wrapped)*3/4),
				"the last byte":    flipped(wrapped, len(wrapped)-1),
			}
			if tc.other != tc.algorithm {
				causes["another algorithm"] = wrap(t, p.PublicKey, tc.other, material)
				causes["the first byte"] = flipped(wrapped, 0)
				causes["zeros"] = make([]byte, len(wrapped))
			}
			if tc.algorithm == wrapping.RSAESPKCS1V15 {
				causes["material of another length"] = wrap(t, p.PublicKey, tc.algorithm, random(16))
			}
			messages := map[string]string{}
			for cause, encrypted := range causes {
				_, err := s.ImportKeyMaterial(t.Context(), kms.ImportKeyMaterialRequest{
					Key: key, ImportToken: p.ImportToken, EncryptedKeyMaterial: encrypted,
				})
				messages[cause] = wantError(t, err, kms.InvalidKeyMaterial, "It cannot be unwrapped.", string(tc.algorithm))
			}
			wantSame(t, messages)
			wantNoKey(t, s, key)

			// And the right one still works.
			if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, tc.algorithm, material)); err != nil {
				t.Errorf("the right material afterwards: %v", err)
			}
		})
	}
}

// What the sender can know is said, so that the usual mistakes are found without the operator's log.
func TestImportKeyMaterial_ofMaterialThatDoesNotUnwrap_saysWhatArrived(t *testing.T) {
	t.Parallel()
	s := newService(t)
	encode := func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) }
	digits := func(b []byte) []byte { return []byte(hex.EncodeToString(b)) }
	sm2As := func(format wrapping.SM2Format, wrapped []byte) []byte {
		out, err := wrapping.ConvertSM2(wrapped, wrapping.C1C3C2, format)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	mistakes := map[wrapping.Algorithm]map[string]struct {
		make func(wrapped, material []byte) []byte
		says []string
	}{
		wrapping.RSAESOAEPSHA256: {
			"a damaged byte": {func(w, _ []byte) []byte { return flipped(w, 9) }, []string{
				"256 bytes were received, which is the correct length", "SHA-256 for the hash and for MGF1", "Java uses SHA-1 for MGF1", "rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256",
			}},
			"cut short":             {func(w, _ []byte) []byte { return w[:255] }, []string{"255 bytes were received", "with an RSA_2048 key RSAES_OAEP_SHA_256 results in 256"}},
			"under a longer key":    {func([]byte, []byte) []byte { return random(512) }, []string{"512 bytes were received", "RSA_2048", "results in 256"}},
			"as hexadecimal text":   {func(w, _ []byte) []byte { return digits(w) }, []string{"512 bytes were received, which are hexadecimal text", "exactly once"}},
			"as lines of Base64":    {func(w, _ []byte) []byte { return append(encode(w), '\n') }, []string{"345 bytes were received, which are Base64 text", "exactly once"}},
			"not wrapped":           {func(_, m []byte) []byte { return m }, []string{"32 bytes were received, as long as the material itself", "it is disclosed"}},
			"not wrapped, in hex":   {func(_, m []byte) []byte { return digits(m) }, []string{"hexadecimal text", "as long as the material itself", "it is disclosed"}},
			"wrapped with SM2":      {func(_, m []byte) []byte { return wrap(t, recipient(t, wrapping.ECSM2).Public(), wrapping.SM2PKE, m) }, []string{"129 bytes were received", "RSAES_OAEP_SHA_256 results in 256"}},
			"one byte":              {func([]byte, []byte) []byte { return []byte{4} }, []string{"1 bytes were received"}},
			"as long as RSA-AES is": {func([]byte, []byte) []byte { return random(256 + 40) }, []string{"296 bytes were received", "results in 256"}},
		},
		wrapping.RSAESOAEPSHA1: {
			"a damaged byte": {func(w, _ []byte) []byte { return flipped(w, 9) }, []string{"SHA-1 for the hash and for MGF1", "-pkeyopt rsa_padding_mode:oaep"}},
		},
		wrapping.SM2PKE: {
			"a damaged byte":        {func(w, _ []byte) []byte { return flipped(w, 100) }, []string{"129 bytes were received", "C1C3C2", "the default of Bouncy Castle is C1C2C3"}},
			"the older order":       {func(w, _ []byte) []byte { return sm2As(wrapping.C1C2C3, w) }, []string{"C1C3C2", "the default of Bouncy Castle is C1C2C3"}},
			"without its 04":        {func(w, _ []byte) []byte { return w[1:] }, []string{"128 bytes were received", "The byte 04", "is missing"}},
			"off the curve":         {func(w, _ []byte) []byte { return flipped(w, 40) }, []string{"do not begin with a point on the curve SM2"}},
			"wrapped with RSA":      {func([]byte, []byte) []byte { return random(256) }, []string{"256 bytes were received", "not encrypted with SM2PKE"}},
			"a byte too long":       {func(w, _ []byte) []byte { return append(bytes.Clone(w), 0) }, []string{"130 bytes were received", "This key requires 129"}},
			"DER cut short":         {func(w, _ []byte) []byte { d := sm2As(wrapping.ASN1, w); return d[:len(d)-1] }, []string{"begin like DER, but are not a SEQUENCE"}},
			"DER, damaged within":   {func(w, _ []byte) []byte { d := sm2As(wrapping.ASN1, w); return flipped(d, len(d)-1) }, []string{"valid DER"}},
			"as Base64 text":        {func(w, _ []byte) []byte { return encode(w) }, []string{"172 bytes were received, which are Base64 text"}},
			"with a byte in front":  {func(w, _ []byte) []byte { return append([]byte{0}, w...) }, []string{"do not begin with a point"}},
			"one byte":              {func([]byte, []byte) []byte { return []byte{4} }, []string{"1 bytes were received"}},
			"a zero":                {func([]byte, []byte) []byte { return []byte{0} }, []string{"1 bytes were received"}},
			"a start of a sequence": {func([]byte, []byte) []byte { return []byte{0x30, 0x03} }, []string{"begin like DER"}},
		},
	}
	for algorithm, causes := range mistakes {
		key, material := newKey(hsm.AES256), random(32)
		req := kms.ImportParametersRequest{Key: key, WrappingKeySpec: wrapping.RSA2048, WrappingAlgorithm: algorithm}
		if algorithm == wrapping.SM2PKE {
			req.WrappingKeySpec = wrapping.ECSM2
		}
		p := s.parameters(t, req)
		wrapped := wrap(t, p.PublicKey, algorithm, material)
		for wrapped[1] == 0x30 { // without the byte before, it would begin like DER
			wrapped = wrap(t, p.PublicKey, algorithm, material)
		}
		for cause, tc := range causes {
			t.Run(string(algorithm)+", "+cause, func(t *testing.T) {
				t.Parallel()
				_, err := s.ImportKeyMaterial(t.Context(), kms.ImportKeyMaterialRequest{
					Key: key, ImportToken: p.ImportToken, EncryptedKeyMaterial: tc.make(wrapped, material),
				})
				wantError(t, err, kms.InvalidKeyMaterial, tc.says...)
			})
		}
	}
}

func wantNoKey(t testing.TB, s service, key kms.Key) {
	t.Helper()
	if _, err := s.Module.FindKey(t.Context(), key.Primary.ID); hsm.KindOf(err) != hsm.NotFound {
		t.Errorf("a refused import left a key behind (%v)", err)
	}
}

func TestImportKeyMaterial_refusesEveryOtherLength(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, spec := range hsm.KeySpecs() {
		t.Run(string(spec), func(t *testing.T) {
			t.Parallel()
			key := newKey(spec)
			p := s.parameters(t, sm2(key))
			for _, n := range []int{1, 8, 15, 16, 17, 24, 31, 32, 33, 64, 190} {
				if n == spec.Len() {
					continue
				}
				_, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.SM2PKE, random(n)))
				wantError(t, err, kms.InvalidKeyMaterial, fmt.Sprintf("%d bytes", spec.Len()), fmt.Sprint(n), string(spec))
			}
			wantNoKey(t, s, key)
		})
	}
}

func TestImportKeyMaterial_again(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for sentence, tc := range map[string]struct {
		destroyed bool // the material went meanwhile, as at its expiry
		same      bool
		code      kms.Code
	}{
		"the same material changes nothing":            {false, true, ""},
		"other material is refused":                    {false, false, kms.InvalidKeyMaterial},
		"the same material comes back after it went":   {true, true, ""},
		"other material is refused also after it went": {true, false, kms.InvalidKeyMaterial},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			key, material := s.enabled(t, hsm.AES256)
			blob := s.dataKey(t, key, nil)
			if tc.destroyed {
				for range 2 { // what no longer exists is no error
					if err := s.DeleteKeyMaterial(t.Context(), key); err != nil {
						t.Fatal(err)
					}
				}
				wantError(t, s.VerifyDataKey(t.Context(), key, blob, nil), kms.ForbiddenKeyVersionNotFound)
			}
			again := random(32)
			if tc.same {
				again = material
			}
			imported, err := s.ImportKeyMaterial(t.Context(), request(t, key, s.parameters(t, sm2(key)), wrapping.SM2PKE, again))
			if tc.code != "" {
				wantError(t, err, tc.code, "first import", "differs")
			} else if err != nil || *imported.Fingerprint != *key.Primary.Fingerprint {
				t.Errorf("got %+v, %v; want fingerprint %s", imported, err, key.Primary.Fingerprint)
			}
			// A refused import changes nothing, and a good one brings everything back.
			want := kms.Code("")
			if tc.destroyed && !tc.same {
				want = kms.ForbiddenKeyVersionNotFound
			}
			if err := s.VerifyDataKey(t.Context(), key, blob, nil); kms.CodeOf(err) != want {
				t.Errorf("a data key made before fails with %v, want %q", err, want)
			}
		})
	}
}

func TestImportKeyMaterial_intoTwoKeys_makesNoTwins(t *testing.T) {
	t.Parallel()
	s := newService(t)
	one, material := s.enabled(t, hsm.AES256)
	two := newKey(hsm.AES256)
	imported, err := s.ImportKeyMaterial(t.Context(), request(t, two, s.parameters(t, sm2(two)), wrapping.SM2PKE, material))
	if err != nil {
		t.Fatal(err)
	}
	if *imported.Fingerprint != *one.Primary.Fingerprint {
		t.Errorf("the same material has fingerprints %s and %s", one.Primary.Fingerprint, imported.Fingerprint)
	}
	two.State = kms.StateEnabled
	wantError(t, s.VerifyDataKey(t.Context(), two, s.dataKey(t, one, nil), nil), kms.InvalidParameter, "CiphertextBlob")
}

func (s service) pairs(t testing.TB, owner uuid.UUID) int {
	t.Helper()
	pairs, err := hsmtest.PairsOf(t.Context(), s.Module, owner)
	if err != nil {
		t.Fatal(err)
	}
	return len(pairs)
}

// A token outlives the permission that it was made under; the module does not.
func TestImportKeyMaterial_withPKCS1v15_whenItIsNoLongerAllowed(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	s := openService(t, storage, true)
	key := newKey(hsm.AES256)
	req := sm2(key)
	pkcs1v15(&req)
	p := s.parameters(t, req)
	if err := s.module.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	s = openService(t, storage, false)
	_, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.RSAESPKCS1V15, random(32)))
	wantError(t, err, kms.UnsupportedOperation, "RSAES_OAEP_SHA_256")
	wantNoKey(t, s, key)
}

func TestVersionID_isAStableNameOfItsOwn(t *testing.T) {
	t.Parallel()
	// Written down: CKA_ID of every key in every module is this, and must never change.
	key := uuid.MustParse("b0c1d2e3-0000-4000-8000-000000000001")
	const want = "b13dbd89-f62c-5df1-a694-12f51025dd02"
	first := kms.VersionID(key, 1)
	if got := first.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if first.Version() != 5 || first == key || first == kms.VersionID(key, 2) || strings.ToLower(first.String()) != first.String() {
		t.Errorf("%s is not a UUIDv5 of its own", first)
	}
}
