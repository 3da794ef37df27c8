package hsmtest

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// quickPair returns the type of pair that takes the least time to generate.
func (s *suite) quickPair() wrapping.KeySpec {
	if _, ok := s.pairs[wrapping.ECSM2]; ok {
		return wrapping.ECSM2
	}
	return wrapping.RSA2048
}

func samePair(a, b hsm.WrappingKey) bool {
	return sameListed(a, b) && bytes.Equal(a.PublicKey, b.PublicKey)
}

// sameListed compares the fields of pairs that a list has.
func sameListed(a, b hsm.WrappingKey) bool {
	return a.ID == b.ID && a.Owner == b.Owner && a.Namespace == b.Namespace && a.Spec == b.Spec && a.NotAfter.Equal(b.NotAfter)
}

// PairsOf returns the pairs of a module with that owner.
func PairsOf(ctx context.Context, m hsm.Keys, owner uuid.UUID) ([]hsm.WrappingKey, error) {
	all, err := m.ListWrappingKeys(ctx)
	return slices.DeleteFunc(all, func(pair hsm.WrappingKey) bool { return pair.Owner != owner }), err
}

// mustList checks that the owner has exactly these pairs.
func (s *suite) mustList(t testing.TB, owner uuid.UUID, want ...hsm.WrappingKey) {
	t.Helper()
	got, err := PairsOf(t.Context(), s.m, owner)
	if err != nil {
		t.Fatalf("ListWrappingKeys: %v", err)
	}
	all := len(got) == len(want)
	for _, pair := range want {
		all = all && slices.ContainsFunc(got, func(other hsm.WrappingKey) bool { return other.PublicKey == nil && sameListed(pair, other) })
	}
	if !all {
		t.Errorf("ListWrappingKeys = %+v; want %+v", got, want)
	}
}

// testWrappingKeyOnce checks that a second request with the same identifier returns the first pair, whatever its other fields.
func (s *suite) testWrappingKeyOnce(t *testing.T) {
	req := s.pairRequest(s.quickPair(), uuid.New())
	first, err := s.m.CreateWrappingKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	want := hsm.WrappingKey{ID: req.ID, Owner: req.Owner, Namespace: suiteNamespace, Spec: req.Spec, NotAfter: time.Unix(req.NotAfter.Unix(), 0), PublicKey: first.PublicKey}
	if !samePair(first, want) {
		t.Errorf("CreateWrappingKey = %+v; want %+v", first, want)
	}
	req.NotAfter = req.NotAfter.Add(time.Hour)
	second, err := s.m.CreateWrappingKey(t.Context(), req)
	if err != nil || !samePair(first, second) {
		t.Errorf("the second CreateWrappingKey = %+v, %v; want the first pair, %+v", second, err, first)
	}
	s.mustList(t, req.Owner, first)
}

func (s *suite) testWrappingKeyRace(t *testing.T) {
	req := s.pairRequest(s.quickPair(), uuid.New())
	made := make([]hsm.WrappingKey, 4)
	atOnce(len(made), func(i int) {
		var err error
		if made[i], err = s.m.CreateWrappingKey(t.Context(), req); err != nil {
			t.Errorf("CreateWrappingKey: %v", err)
		}
	})
	for _, pair := range made[1:] {
		if !samePair(pair, made[0]) {
			t.Errorf("one caller got %+v, another %+v", made[0], pair)
		}
	}
	s.mustList(t, req.Owner, made[0])
	if err := s.m.DestroyWrappingKey(t.Context(), req.ID); err != nil {
		t.Fatal(err)
	}
	s.mustList(t, req.Owner)
}

func (s *suite) testWrappingKeyList(t *testing.T) {
	spec, owner, other := s.quickPair(), uuid.New(), uuid.New()
	s.mustList(t, owner)
	expired := s.pairRequest(spec, owner)
	expired.NotAfter = time.Now().Add(-48 * time.Hour)
	old, err := s.m.CreateWrappingKey(t.Context(), expired)
	if err != nil {
		t.Fatal(err)
	}
	fresh, others := s.newPair(t, spec, owner), s.newPair(t, spec, other)
	s.mustList(t, owner, old, fresh)
	s.mustList(t, other, others)
	if err := s.m.DestroyWrappingKey(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	s.mustList(t, owner, fresh)
	s.mustList(t, other, others)
}

func (s *suite) testWrappingKeyNamespace(t *testing.T) {
	for _, namespace := range []string{strings.Repeat("n", hsm.MaxNamespaceLen+1), "with a blank", "with:colon", "n\x00"} {
		req := s.pairRequest(s.quickPair(), uuid.New())
		req.Namespace = namespace
		_, err := s.m.CreateWrappingKey(t.Context(), req)
		WantKind(t, err, hsm.NotSupported, "a pair of the namespace %q", namespace)
		s.mustList(t, req.Owner)
	}
	req := s.pairRequest(s.quickPair(), uuid.New())
	req.Namespace = strings.Repeat("n", hsm.MaxNamespaceLen)
	pair, err := s.m.CreateWrappingKey(t.Context(), req)
	if err != nil || pair.Namespace != req.Namespace {
		t.Fatalf("CreateWrappingKey = %+v, %v; want the namespace %s", pair, err, req.Namespace)
	}
	s.mustList(t, req.Owner, pair)
}

// testKeyList checks that the list has each key until it is destroyed, and no other objects of the module.
func (s *suite) testKeyList(t *testing.T) {
	key := s.newMaster(t, s.keySpecs()[0])
	listed := func() (all int, found hsm.Key) {
		t.Helper()
		keys, err := s.m.ListKeys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if k.Spec == "" || k.KeyVersionID == uuid.Nil || k.Fingerprint != (hsm.Fingerprint{}) {
				t.Errorf("ListKeys has %+v", k)
			}
			if k.KeyVersionID == key.id {
				all, found = all+1, k
			}
		}
		return all, found
	}
	want := hsm.Key{KeyVersionID: key.id, Spec: key.spec, Owner: suiteOwner}
	if n, found := listed(); n != 1 || found != want {
		t.Errorf("ListKeys has the key %d times, as %+v; want %+v", n, found, want)
	}
	if err := s.m.DestroyKey(t.Context(), key.id); err != nil {
		t.Fatal(err)
	}
	if n, _ := listed(); n != 0 {
		t.Error("ListKeys has a key that was destroyed")
	}
}

func (s *suite) testWrappingKeyDestroyed(t *testing.T) {
	for spec := range s.pairs {
		alg := s.algorithmFor(spec)
		pair := s.newPair(t, spec, uuid.New())
		keySpec := s.keySpecs()[0]
		material := random(keySpec.Len())
		req := hsm.ImportRequest{
			Owner: suiteOwner, KeyVersionID: s.newID(), Spec: keySpec, WrappingKey: pair.ID, Algorithm: alg,
			EncryptedMaterial: wrap(t, PublicKey(t, pair), alg, "", material),
		}
		if err := s.m.DestroyWrappingKey(t.Context(), pair.ID); err != nil {
			t.Fatal(err)
		}
		_, err := s.m.ImportKey(t.Context(), req)
		WantKind(t, err, hsm.NotFound, "ImportKey under a destroyed pair")
		s.mustNotHold(t, req.KeyVersionID)
	}
}

// algorithmFor returns the first import algorithm for that type of pair.
func (s *suite) algorithmFor(spec wrapping.KeySpec) wrapping.Algorithm {
	for _, alg := range s.importAlgorithms() {
		if wrapping.CheckFit(spec, alg) == nil {
			return alg
		}
	}
	return ""
}

// testLongerRSA imports material under RSA_3072 and RSA_4096, and exports data keys of the maximum length to them. It creates one
// pair of each type, because they take long to generate.
func (s *suite) testLongerRSA(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.RSA3072, wrapping.RSA4096} {
		if s.algorithmFor(spec) == "" {
			_, err := s.m.CreateWrappingKey(t.Context(), s.pairRequest(spec, uuid.New()))
			WantKind(t, err, hsm.NotSupported, "a pair of type %s, under which no algorithm imports", spec)
			continue
		}
		pair := s.newPair(t, spec, uuid.New())
		for _, alg := range s.importAlgorithms() {
			if wrapping.CheckFit(spec, alg) != nil {
				continue
			}
			keySpec := s.keySpecs()[0]
			material := random(keySpec.Len())
			s.mustImport(t, hsm.ImportRequest{
				Owner: suiteOwner, KeyVersionID: s.newID(), Spec: keySpec, WrappingKey: pair.ID, Algorithm: alg,
				EncryptedMaterial: wrap(t, PublicKey(t, pair), alg, "", material),
			}, material)
		}
		for _, alg := range s.exportAlgorithms() {
			if wrapping.CheckFit(spec, alg) == nil {
				s.mustRefuseLonger(t, PublicKey(t, pair), alg)
			}
		}
	}
}

// atOnce runs n calls in parallel and waits for them. If one of them calls Fatal, the test fails, but the other calls continue.
func atOnce(n int, call func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			call(i)
		})
	}
	close(start)
	wg.Wait()
}
