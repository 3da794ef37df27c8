package hsmtest

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// testImport: every key type under every algorithm; SM2 ciphertext in both forms that people have.
func (s *suite) testImport(t *testing.T) {
	for _, spec := range s.keySpecs() {
		for _, alg := range s.importAlgorithms() {
			for _, format := range formatsOf(alg, wrapping.C1C3C2, wrapping.ASN1) {
				material := random(spec.Len())
				pair := s.pairs[pairSpecFor(alg)]
				req := hsm.ImportRequest{
					Owner: suiteOwner, KeyVersionID: s.newID(), Spec: spec, WrappingKey: pair.ID, Algorithm: alg,
					EncryptedMaterial: wrap(t, pair.PublicKey, alg, format, material),
				}
				s.mustNotHold(t, req.KeyVersionID)
				s.mustImport(t, req, material)
				s.mustHold(t, req.KeyVersionID, spec, material)
			}
		}
	}
}

// formatsOf returns the SM2 formats for SM2PKE, and one empty format for RSA.
func formatsOf(alg wrapping.Algorithm, sm2 ...wrapping.SM2Format) []wrapping.SM2Format {
	if alg == wrapping.SM2PKE {
		return sm2
	}
	return []wrapping.SM2Format{""}
}

// testFingerprint: equal material has one fingerprint, under whatever identifier and algorithm it
// came in, and it is the one that is computed elsewhere.
func (s *suite) testFingerprint(t *testing.T) {
	for _, spec := range s.keySpecs() {
		for _, material := range [][]byte{make([]byte, spec.Len()), random(spec.Len())} {
			for _, alg := range s.importAlgorithms() {
				req := s.importRequest(t, s.newID(), spec, alg, material)
				s.mustImport(t, req, material)
				s.mustHold(t, req.KeyVersionID, spec, material)
			}
		}
	}
}

// testImportAgain: the same material under the same identifier makes nothing, by whatever way it
// comes, and blobs go on opening.
func (s *suite) testImportAgain(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.newMaster(t, spec)
		blob := s.generate(t, key, 32, s.bind(key))
		known := fingerprint(t, spec, key.material)
		for _, alg := range s.importAlgorithms() {
			req := s.importRequest(t, key.id, spec, alg, key.material)
			s.mustImport(t, req, key.material)
			req.Fingerprint = &known
			s.mustImport(t, req, key.material)
		}
		s.mustOpen(t, key, blob)
		// Nothing was made: one destruction is enough.
		if err := s.m.DestroyKey(t.Context(), key.id); err != nil {
			t.Fatal(err)
		}
		s.mustNotHold(t, key.id)
	}
}

// testImportBack: material that was destroyed comes back, and with it the blobs under it.
func (s *suite) testImportBack(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.newMaster(t, spec)
		blob := s.generate(t, key, 32, s.bind(key))
		if err := s.m.DestroyKey(t.Context(), key.id); err != nil {
			t.Fatal(err)
		}
		open := hsm.OpenRequest{Blob: blob, Binding: s.bind(key)}
		wantKind(t, s.m.VerifyDataKey(t.Context(), open), hsm.NotFound, "VerifyDataKey under a destroyed key")

		req := s.importRequest(t, key.id, spec, s.importAlgorithms()[0], key.material)
		known := fingerprint(t, spec, key.material)
		req.Fingerprint = &known
		s.mustImport(t, req, key.material)
		s.mustOpen(t, key, blob)
	}
}

// mustOpen checks that a blob under the usual binding still opens in the module.
func (s *suite) mustOpen(t testing.TB, key master, blobs ...ciphertext.Blob) {
	t.Helper()
	for _, blob := range blobs {
		if err := s.m.VerifyDataKey(t.Context(), hsm.OpenRequest{Blob: blob, Binding: s.bind(key)}); err != nil {
			t.Errorf("VerifyDataKey of a good blob under %s: %v", key.spec, err)
		}
	}
}

func (s *suite) testImportRace(t *testing.T) {
	spec := s.keySpecs()[0]
	id, material := s.newID(), random(spec.Len())
	atOnce(4, func(i int) {
		algs := s.importAlgorithms()
		s.mustImport(t, s.importRequest(t, id, spec, algs[i%len(algs)], material), material)
	})
	s.mustHold(t, id, spec, material)
	if err := s.m.DestroyKey(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	s.mustNotHold(t, id)
}

// testImportRaceOther: one of the callers binds the key, and the others hear that it is bound.
func (s *suite) testImportRaceOther(t *testing.T) {
	spec, alg := s.keySpecs()[0], s.importAlgorithms()[0]
	id := s.newID()
	materials, requests := make([][]byte, 4), make([]hsm.ImportRequest, 4)
	for i := range requests {
		materials[i] = random(spec.Len())
		requests[i] = s.importRequest(t, id, spec, alg, materials[i])
	}
	won := make(chan int, len(requests))
	atOnce(len(requests), func(i int) {
		if _, err := s.m.ImportKey(t.Context(), requests[i]); err != nil {
			wantKind(t, err, hsm.OtherMaterial, "ImportKey into a key that another caller bound")
			return
		}
		won <- i
	})
	close(won)
	if len(won) != 1 {
		t.Fatalf("%d callers bound the key to their material", len(won))
	}
	s.mustHold(t, id, spec, materials[<-won])
}
