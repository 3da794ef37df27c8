package kms_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestGetParametersForImport_refuses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for sentence, tc := range map[string]struct {
		change func(*kms.ImportParametersRequest)
		code   kms.Code
		says   string
	}{
		"a key that was not made for import":   {func(r *kms.ImportParametersRequest) { r.Key.Origin = "" }, kms.UnsupportedOrigin, ""},
		"an algorithm for another kind of key": {func(r *kms.ImportParametersRequest) { r.WrappingKeySpec = wrapping.RSA2048 }, kms.InvalidParameter, "WrappingAlgorithm: SM2PKE requires an EC_SM2 key"},
		"a wrapping key that does not exist":   {func(r *kms.ImportParametersRequest) { r.WrappingKeySpec = "RSA_1024" }, kms.InvalidParameter, "RSA_4096"},
		"an algorithm that does not exist":     {func(r *kms.ImportParametersRequest) { r.WrappingAlgorithm = "ROT13" }, kms.InvalidParameter, "WrappingAlgorithm"},
		"a key type that the module has not":   {func(r *kms.ImportParametersRequest) { r.Key.Spec = "DES" }, kms.UnsupportedOperation, "MasterKey DES"},
		"PKCS#1 v1.5 where it is not allowed":  {pkcs1v15, kms.UnsupportedOperation, "RSAES_OAEP_SHA_256"},
		"nothing where all is right":           {func(*kms.ImportParametersRequest) {}, "", ""},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			req := sm2(newKey(hsm.AES256))
			tc.change(&req)
			_, err := s.GetParametersForImport(t.Context(), req)
			if tc.code != "" {
				wantError(t, err, tc.code, tc.says)
			} else if err != nil {
				t.Error(err)
			}
			if pairs, err := hsmtest.PairsOf(t.Context(), s.Module, req.Key.ID); tc.code != "" && (err != nil || len(pairs) > 0) {
				t.Errorf("%d pairs were made (%v)", len(pairs), err)
			}
		})
	}
}

func TestImportToken_isTakenNowhereElse(t *testing.T) {
	t.Parallel()
	s, elsewhere := newService(t), newService(t)
	key, other := newKey(hsm.AES256), newKey(hsm.AES256)
	material := random(32)
	p := s.parameters(t, sm2(key))
	good := request(t, key, p, wrapping.SM2PKE, material)
	refused := func(s service, req kms.ImportKeyMaterialRequest) string {
		_, err := s.ImportKeyMaterial(t.Context(), req)
		return wantError(t, err, kms.InvalidImportToken)
	}

	messages := map[string]string{}
	for at := range p.ImportToken {
		req := good
		req.ImportToken = flipped(p.ImportToken, at)
		messages[fmt.Sprintf("byte %d changed", at)] = refused(s, req)
	}
	for n := 1; n < len(p.ImportToken); n++ {
		req := good
		req.ImportToken = p.ImportToken[:n]
		messages[fmt.Sprintf("cut to %d bytes", n)] = refused(s, req)
	}
	req := good
	req.ImportToken = append(bytes.Clone(p.ImportToken), 0)
	messages["a byte more"] = refused(s, req)
	req = good
	req.Key = other
	messages["another key"] = refused(s, req)
	req = good
	req.ImportToken = s.parameters(t, sm2(other)).ImportToken
	messages["the token of another key"] = refused(s, req)
	messages["another module"] = refused(elsewhere, good)
	wantSame(t, messages)
	wantNoKey(t, s, key)
	wantNoKey(t, s, other)

	if _, err := s.ImportKeyMaterial(t.Context(), good); err != nil {
		t.Errorf("the token in its own place: %v", err)
	}
}

func TestImportToken_ofOnePairWithMaterialForAnother_doesNotUnwrap(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	first := sm2(key)
	first.ClientToken = "first"
	one, two := s.parameters(t, first), s.parameters(t, sm2(key))
	req := request(t, key, one, wrapping.SM2PKE, random(32))
	req.ImportToken = two.ImportToken
	_, err := s.ImportKeyMaterial(t.Context(), req)
	wantError(t, err, kms.InvalidKeyMaterial)
}

func TestImportToken_endsAfterADay(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, material := newKey(hsm.AES256), random(32)
	start := s.clock.Now()
	p := s.parameters(t, sm2(key))
	if want := start.Add(24 * time.Hour).Truncate(time.Second); !p.TokenExpireTime.Equal(want) || p.TokenExpireTime.Location() != time.UTC {
		t.Errorf("it ends at %s, want %s in UTC", p.TokenExpireTime, want)
	}
	req := request(t, key, p, wrapping.SM2PKE, material)
	for _, tc := range []struct {
		at   time.Time
		code kms.Code
	}{
		{start, ""},
		{start.Add(12 * time.Hour), ""}, // it may be used again and again
		{p.TokenExpireTime.Add(-time.Nanosecond), ""},
		{p.TokenExpireTime, kms.ExpiredImportToken},
		{p.TokenExpireTime.AddDate(1, 0, 0), kms.ExpiredImportToken},
	} {
		s.clock.set(tc.at)
		_, err := s.ImportKeyMaterial(t.Context(), req)
		switch {
		case tc.code != "":
			wantError(t, err, tc.code, "Wrap the material again")
		case err != nil:
			t.Errorf("at %s: %v", tc.at, err)
		}
	}
	// A wrong key does not learn that a token has ended: that is not for it to know.
	req.Key = newKey(hsm.AES256)
	_, err := s.ImportKeyMaterial(t.Context(), req)
	wantError(t, err, kms.InvalidImportToken)
}

func TestGetParametersForImport_withTheSameClientToken_answersTheSame(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	req := sm2(key)
	req.ClientToken = "a"
	first := s.parameters(t, req)
	s.clock.set(s.clock.Now().Add(time.Hour))
	again := s.parameters(t, req)
	if !first.PublicKey.Equal(again.PublicKey) || !bytes.Equal(first.ImportToken, again.ImportToken) || !first.TokenExpireTime.Equal(again.TokenExpireTime) {
		t.Errorf("asked again it answers %+v, before %+v", again, first)
	}

	req.ClientToken = "b"
	other := s.parameters(t, req)
	if other.PublicKey.Equal(first.PublicKey) || bytes.Equal(other.ImportToken, first.ImportToken) {
		t.Error("another client token gets the same pair")
	}
	if pairs, err := hsmtest.PairsOf(t.Context(), s.Module, key.ID); err != nil || len(pairs) != 2 {
		t.Errorf("%d pairs, %v; want 2", len(pairs), err)
	}
	// The older pair is as good as the newer one.
	for _, p := range []kms.ImportParameters{first, other, again} {
		if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.SM2PKE, bytes.Repeat([]byte{7}, 32))); err != nil {
			t.Error(err)
		}
	}
	// The same client token of another key is another one.
	theirs := sm2(newKey(hsm.AES256))
	theirs.ClientToken = "a"
	if s.parameters(t, theirs).PublicKey.Equal(first.PublicKey) {
		t.Error("two keys share a pair")
	}
}

// A caller that was away for a day before it read the answer must not get one that has expired.
func TestGetParametersForImport_replacesAPairThatHasEnded(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	first := s.parameters(t, sm2(key))
	s.clock.set(first.TokenExpireTime)
	again := s.parameters(t, sm2(key))
	if again.PublicKey.Equal(first.PublicKey) || !again.TokenExpireTime.Equal(first.TokenExpireTime.Add(kms.TokenLifetime)) {
		t.Errorf("it answers with a pair that ends at %s", again.TokenExpireTime)
	}
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, again, wrapping.SM2PKE, random(32))); err != nil {
		t.Error(err)
	}
}

func TestDestroyImportParameters(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		all  bool
		left int
	}{
		"those that have ended go": {false, 1},
		"all go":                   {true, 0},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			key, neighbour := newKey(hsm.AES256), newKey(hsm.AES256)
			older := s.parameters(t, sm2(key))
			s.parameters(t, sm2(neighbour))
			s.clock.set(older.TokenExpireTime.Add(-time.Hour))
			req := sm2(key)
			req.ClientToken = "newer"
			newer := s.parameters(t, req)

			if !newer.OthersExpireTime.Equal(older.TokenExpireTime) || !older.OthersExpireTime.IsZero() {
				t.Errorf("the other pairs end at %s and %s", newer.OthersExpireTime, older.OthersExpireTime)
			}

			// Nothing has ended yet.
			if next, err := s.DestroyImportParameters(t.Context(), key.ID, false); err != nil || s.pairs(t, key.ID) != 2 || !next.Equal(older.TokenExpireTime) {
				t.Fatalf("%d pairs are left, the next ends at %s, %v", s.pairs(t, key.ID), next, err)
			}
			s.clock.set(older.TokenExpireTime)
			for range 2 {
				next, err := s.DestroyImportParameters(t.Context(), key.ID, tc.all)
				if err != nil || next.IsZero() != tc.all || (!tc.all && !next.Equal(newer.TokenExpireTime)) {
					t.Fatalf("the next ends at %s, %v", next, err)
				}
			}
			if n := s.pairs(t, key.ID); n != tc.left {
				t.Errorf("%d pairs are left, want %d", n, tc.left)
			}
			if n := s.pairs(t, neighbour.ID); n != 1 {
				t.Errorf("the neighbour has %d pairs, want 1", n)
			}
			_, err := s.ImportKeyMaterial(t.Context(), request(t, key, newer, wrapping.SM2PKE, random(32)))
			if tc.all {
				wantError(t, err, kms.InvalidImportToken, "Request new import parameters")
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// A user who may request parameters must not be able to fill a token with pairs.
func TestGetParametersForImport_keepsFewPairsAtOnce(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := newKey(hsm.AES256)
	req := sm2(key)
	for n := range kms.MaxWrappingKeys {
		req.ClientToken = string(rune('a' + n))
		s.parameters(t, req)
	}
	again := s.parameters(t, req) // asked again for the last one
	req.ClientToken = "one more"
	_, err := s.GetParametersForImport(t.Context(), req)
	wantError(t, err, kms.RejectedThrottling)
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, again, wrapping.SM2PKE, random(32))); err != nil {
		t.Errorf("those that there are serve no more: %v", err)
	}

	s.clock.set(s.clock.Now().Add(kms.TokenLifetime))
	s.parameters(t, req)
	if pairs, err := hsmtest.PairsOf(t.Context(), s.Module, key.ID); err != nil || len(pairs) != 1 {
		t.Errorf("%d pairs, %v; those that have ended should be gone", len(pairs), err)
	}
}
