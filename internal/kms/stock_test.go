package kms_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// newStocked returns a service that keeps pairs ready.
func newStocked(t *testing.T) service {
	t.Helper()
	s := newService(t)
	s.Stock = kms.NewStock()
	return s
}

// process returns the service of another process with the same module.
func (s service) process() service {
	s.Stock = kms.NewStock()
	return s
}

func (s service) fill(t *testing.T, specs ...wrapping.KeySpec) {
	t.Helper()
	if err := s.FillStock(t.Context(), specs...); err != nil {
		t.Fatal(err)
	}
}

func (s service) allPairs(t *testing.T) []hsm.WrappingKey {
	t.Helper()
	pairs, err := s.Module.ListWrappingKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pairs
}

// created is how many pairs the module was asked for.
func (s service) created() int { return s.module.Calls()["CreateWrappingKey"] }

func rsa2048(key kms.Key) kms.ImportParametersRequest {
	return kms.ImportParametersRequest{
		Key: key, WrappingKeySpec: wrapping.RSA2048, WrappingAlgorithm: wrapping.RSAESOAEPSHA256, ClientToken: uuid.NewString(),
	}
}

func TestStock_givesEachPairToOneKey(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	if n := len(s.allPairs(t)); n != 2 {
		t.Fatalf("%d pairs are ready, want 2", n)
	}
	s.fill(t)
	one, other := newKey(hsm.AES256), newKey(hsm.AES256)
	first, second := s.parameters(t, rsa2048(one)), s.parameters(t, rsa2048(other))
	if n := s.created(); n != 2 {
		t.Errorf("The module was asked for %d pairs, want those that were ready", n)
	}
	if first.PublicKey.Equal(second.PublicKey) {
		t.Fatal("Two keys have one pair")
	}
	if want := s.clock.Now().Add(kms.TokenLifetime).Truncate(time.Second); !first.TokenExpireTime.Equal(want) {
		t.Errorf("The token expires at %s, want %s", first.TokenExpireTime, want)
	}
	material := random(32)
	good := request(t, one, first, wrapping.RSAESOAEPSHA256, material)
	stolen := good
	stolen.Key, stolen.ImportToken = other, second.ImportToken
	_, err := s.ImportKeyMaterial(t.Context(), stolen)
	wantError(t, err, kms.InvalidKeyMaterial)
	if _, err := s.ImportKeyMaterial(t.Context(), good); err != nil {
		t.Error(err)
	}
	// None is ready any more.
	third := s.parameters(t, rsa2048(one))
	if s.created() != 3 || third.PublicKey.Equal(first.PublicKey) || third.PublicKey.Equal(second.PublicKey) {
		t.Errorf("The module was asked for %d pairs, want 3", s.created())
	}
	if !third.OthersExpireTime.Equal(s.clock.Now().Add(2 * kms.TokenLifetime).Truncate(time.Second).Add(time.Second)) {
		t.Errorf("The key's other pair expires at %s", third.OthersExpireTime)
	}
}

// Another process may have given out the pairs that it made.
func TestStock_ofAnotherProcess_isNotGivenOut(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	theirs := s.process()
	theirs.fill(t, wrapping.RSA2048)
	if n := len(s.allPairs(t)); n != 4 {
		t.Errorf("There are %d pairs, want 4", n)
	}
	seen := map[string]bool{}
	for range 2 {
		for _, process := range []service{s, theirs} {
			p := process.parameters(t, rsa2048(newKey(hsm.AES256)))
			if seen[p.PublicKey.Fingerprint()] {
				t.Error("Two processes gave out one pair")
			}
			seen[p.PublicKey.Fingerprint()] = true
		}
	}
}

func TestStock_countsThePairsThatItGave(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	key := newKey(hsm.AES256)
	for range kms.MaxWrappingKeys {
		s.fill(t, wrapping.RSA2048)
		s.parameters(t, rsa2048(key))
	}
	s.fill(t)
	_, err := s.GetParametersForImport(t.Context(), rsa2048(key))
	wantError(t, err, kms.RejectedThrottling, "8 pairs")
	// What was refused is still ready for others.
	before := s.created()
	s.parameters(t, rsa2048(newKey(hsm.AES256)))
	if s.created() != before {
		t.Error("The pair that was refused is lost")
	}
	// The module keeps a pair of the stock for two days.
	s.clock.set(s.clock.Now().Add(2*kms.TokenLifetime + time.Second))
	s.parameters(t, rsa2048(key))
	if n := s.pairs(t, key.ID); n != 1 {
		t.Errorf("The key has %d pairs, want the new one", n)
	}
}

func TestStock_countsThePairsOfANamespace(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	s.parameters(t, rsa2048(newKey(hsm.AES256)))
	for range kms.MaxNamespaceWrappingKeys - 1 {
		s.parameters(t, sm2(newKey(hsm.AES256)))
	}
	_, err := s.GetParametersForImport(t.Context(), sm2(newKey(hsm.AES256)))
	wantError(t, err, kms.RejectedThrottling, "256 import key pairs")
}

func TestStock_replacesPairsThatAreTooOld(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	old := map[uuid.UUID]bool{}
	for _, pair := range s.allPairs(t) {
		old[pair.ID] = true
	}
	s.clock.set(s.clock.Now().Add(24 * time.Hour))
	p := s.parameters(t, rsa2048(newKey(hsm.AES256)))
	if s.created() != 3 || !p.TokenExpireTime.Equal(s.clock.Now().Add(kms.TokenLifetime).Truncate(time.Second)) {
		t.Errorf("A pair that is too old was given out: it expires at %s", p.TokenExpireTime)
	}
	s.fill(t)
	for _, pair := range s.allPairs(t) {
		if old[pair.ID] {
			t.Error("A pair that is too old is still in the module")
		}
	}
	if n := len(s.allPairs(t)); n != 3 {
		t.Errorf("There are %d pairs, want one that was given out and two that are ready", n)
	}
}

// Processes that end again and again must not fill a token.
func TestStock_leavesATokenWithManyPairsOfOthersAlone(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	owner := s.allPairs(t)[0].Owner
	for range 33 {
		_, err := s.Module.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
			ID: uuid.New(), Owner: owner, Spec: wrapping.ECSM2, NotAfter: s.clock.Now().Add(time.Hour),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	before := s.created()
	s.fill(t, wrapping.RSA3072)
	if s.created() != before {
		t.Error("The stock was filled")
	}
	s.clock.set(s.clock.Now().Add(time.Hour))
	s.fill(t)
	if s.created() != before+2 {
		t.Error("After they expired, the stock is not filled")
	}
}

func TestStock_ofATokenThatWasEmptied_isNotGivenOut(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	for _, pair := range s.allPairs(t) {
		if err := s.Module.DestroyWrappingKey(t.Context(), pair.ID); err != nil {
			t.Fatal(err)
		}
	}
	key := newKey(hsm.AES256)
	p := s.parameters(t, rsa2048(key))
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.RSAESOAEPSHA256, random(32))); err != nil {
		t.Error(err)
	}
}

func TestStock_discarded_isNotInTheModule(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	s.fill(t, wrapping.RSA2048)
	key := newKey(hsm.AES256)
	p := s.parameters(t, rsa2048(key))
	s.Stock.Discard(t.Context(), s.Module)
	if n := len(s.allPairs(t)); n != 1 {
		t.Errorf("There are %d pairs, want the one that was given out", n)
	}
	s.fill(t, wrapping.RSA2048)
	if s.created() != 2 {
		t.Error("A stock that was discarded was filled")
	}
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.RSAESOAEPSHA256, random(32))); err != nil {
		t.Error(err)
	}
}

// Some clients give up before an RSA pair is generated, and ask again.
func TestStock_callerThatDidNotWait_getsThePairWithTheNextCall(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	key, other := newKey(hsm.AES256), newKey(hsm.AES256)
	release := make(chan struct{})
	begun := make(chan struct{}, 8)
	s.module.Before("CreateWrappingKey", func() { begun <- struct{}{}; <-release })
	ctx, giveUp := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := s.GetParametersForImport(ctx, rsa2048(key))
		gaveUp <- err
	}()
	<-begun
	giveUp()
	wantError(t, <-gaveUp, kms.ServiceUnavailableTemporary, "the next request gets it")

	again := make(chan kms.ImportParameters)
	go func() { again <- s.parameters(t, rsa2048(key)) }()
	close(release)
	p := <-again
	if s.created() != 1 {
		t.Errorf("The module was asked for %d pairs, want 1", s.created())
	}
	if s.parameters(t, rsa2048(other)).PublicKey.Equal(p.PublicKey) {
		t.Error("Another key has the same pair")
	}
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.RSAESOAEPSHA256, random(32))); err != nil {
		t.Error(err)
	}
}

// One namespace must not use all that a module can generate.
func TestStock_generationsOfANamespace_areBounded(t *testing.T) {
	t.Parallel()
	s := newStocked(t)
	release := make(chan struct{})
	begun := make(chan struct{}, 8)
	s.module.Before("CreateWrappingKey", func() { begun <- struct{}{}; <-release })
	var calls sync.WaitGroup
	call := func(key kms.Key) {
		calls.Go(func() { _, _ = s.GetParametersForImport(t.Context(), rsa2048(key)) })
		<-begun
	}
	for range 4 {
		call(newKey(hsm.AES256))
	}
	_, err := s.GetParametersForImport(t.Context(), rsa2048(newKey(hsm.AES256)))
	wantError(t, err, kms.RejectedThrottling)
	other := newKey(hsm.AES256)
	other.Namespace = "team-b"
	call(other)
	close(release)
	calls.Wait()
	if pairs, err := hsmtest.PairsOf(t.Context(), s.Module, other.ID); err != nil || len(pairs) != 1 {
		t.Errorf("The key of the other namespace has %d pairs, %v", len(pairs), err)
	}
}
