package hsmtest

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// quickPair is the type of pair that is made soonest.
func (s *suite) quickPair() wrapping.KeySpec {
	if _, ok := s.pairs[wrapping.ECSM2]; ok {
		return wrapping.ECSM2
	}
	return wrapping.RSA2048
}

func samePair(a, b hsm.WrappingKey) bool {
	return a.ID == b.ID && a.Owner == b.Owner && a.NotAfter.Equal(b.NotAfter) && a.PublicKey.Equal(b.PublicKey)
}

// mustList checks that the owner has those pairs and no others.
func (s *suite) mustList(t testing.TB, owner uuid.UUID, want ...hsm.WrappingKey) {
	t.Helper()
	got, err := s.m.ListWrappingKeys(t.Context(), owner)
	if err != nil {
		t.Fatalf("ListWrappingKeys: %v", err)
	}
	all := len(got) == len(want)
	for _, pair := range want {
		all = all && slices.ContainsFunc(got, func(other hsm.WrappingKey) bool { return samePair(pair, other) })
	}
	if !all {
		t.Errorf("ListWrappingKeys = %+v; want %+v", got, want)
	}
}

// testWrappingKeyOnce: a second request returns the first pair as it is, whatever else it says.
func (s *suite) testWrappingKeyOnce(t *testing.T) {
	req := s.pairRequest(s.quickPair(), uuid.New())
	first, err := s.m.CreateWrappingKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	want := hsm.WrappingKey{ID: req.ID, Owner: req.Owner, NotAfter: time.Unix(req.NotAfter.Unix(), 0), PublicKey: first.PublicKey}
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

func (s *suite) testWrappingKeyDestroyed(t *testing.T) {
	for spec := range s.pairs {
		alg := s.algorithmFor(spec)
		pair := s.newPair(t, spec, uuid.New())
		keySpec := s.keySpecs()[0]
		material := random(keySpec.Len())
		req := hsm.ImportRequest{
			Owner: suiteOwner, KeyVersionID: s.newID(), Spec: keySpec, WrappingKey: pair.ID, Algorithm: alg,
			EncryptedMaterial: wrap(t, pair.PublicKey, alg, "", material),
		}
		if err := s.m.DestroyWrappingKey(t.Context(), pair.ID); err != nil {
			t.Fatal(err)
		}
		_, err := s.m.ImportKey(t.Context(), req)
		wantKind(t, err, hsm.NotFound, "ImportKey under a destroyed pair")
		s.mustNotHold(t, req.KeyVersionID)
	}
}

// algorithmFor is the first import algorithm for that type of pair.
func (s *suite) algorithmFor(spec wrapping.KeySpec) wrapping.Algorithm {
	for _, alg := range s.importAlgorithms() {
		if wrapping.CheckFit(spec, alg) == nil {
			return alg
		}
	}
	return ""
}

// testLongerRSA: material under RSA_3072 and RSA_4096, and data keys to them of just the longest
// length. One pair of each, for they take long to make.
func (s *suite) testLongerRSA(t *testing.T) {
	for _, spec := range []wrapping.KeySpec{wrapping.RSA3072, wrapping.RSA4096} {
		if s.algorithmFor(spec) == "" {
			_, err := s.m.CreateWrappingKey(t.Context(), s.pairRequest(spec, uuid.New()))
			wantKind(t, err, hsm.NotSupported, "a pair of type %s, under which nothing can be imported", spec)
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
				EncryptedMaterial: wrap(t, pair.PublicKey, alg, "", material),
			}, material)
		}
		for _, alg := range s.exportAlgorithms() {
			if wrapping.CheckFit(spec, alg) == nil {
				s.mustRefuseLonger(t, pair.PublicKey, alg)
			}
		}
	}
}

// atOnce runs n calls at the same time and waits for them. A call that ends with Fatal ends itself
// and fails the test, and the others go on.
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
