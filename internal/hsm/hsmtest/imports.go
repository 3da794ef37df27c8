package hsmtest

import (
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// testImport imports every key type with every algorithm, and with both common formats of SM2 ciphertext.
func (s *suite) testImport(t *testing.T) {
	for _, spec := range s.keySpecs() {
		for _, alg := range s.importAlgorithms() {
			for _, format := range formatsOf(alg, wrapping.C1C3C2, wrapping.ASN1) {
				material := random(spec.Len())
				pair := s.pairs[pairSpecFor(alg)]
				req := hsm.ImportRequest{
					Owner: suiteOwner, KeyVersionID: s.newID(), Spec: spec, WrappingKey: pair.ID, Algorithm: alg,
					EncryptedMaterial: wrap(t, PublicKey(t, pair), alg, format, material),
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

// testFingerprint checks that the fingerprint is that of independent code, whatever the identifier and the algorithm.
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

// testImportAgain checks that an import of the same material under the same identifier creates nothing, whatever the algorithm.
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
		// There is one key, so it needs to be destroyed once.
		if err := s.m.DestroyKey(t.Context(), key.id); err != nil {
			t.Fatal(err)
		}
		s.mustNotHold(t, key.id)
	}
}

// testImportBack checks that blobs open again after destroyed material was imported again.
func (s *suite) testImportBack(t *testing.T) {
	for _, spec := range s.keySpecs() {
		key := s.newMaster(t, spec)
		blob := s.generate(t, key, 32, s.bind(key))
		if err := s.m.DestroyKey(t.Context(), key.id); err != nil {
			t.Fatal(err)
		}
		open := hsm.OpenRequest{Blob: blob, Binding: s.bind(key)}
		WantKind(t, s.m.VerifyDataKey(t.Context(), open), hsm.NotFound, "VerifyDataKey under a destroyed key")

		req := s.importRequest(t, key.id, spec, s.importAlgorithms()[0], key.material)
		known := fingerprint(t, spec, key.material)
		req.Fingerprint = &known
		s.mustImport(t, req, key.material)
		s.mustOpen(t, key, blob)
	}
}

// mustOpen checks that blobs with the binding of suite.bind open in the module.
func (s *suite) mustOpen(t testing.TB, key master, blobs ...ciphertext.Blob) {
	t.Helper()
	for _, blob := range blobs {
		if err := s.m.VerifyDataKey(t.Context(), hsm.OpenRequest{Blob: blob, Binding: s.bind(key)}); err != nil {
			t.Errorf("VerifyDataKey of a valid blob under %s: %v", key.spec, err)
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

// testImportRaceOther checks that one of several callers imports its material, and the others fail with OtherMaterial.
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
			WantKind(t, err, hsm.OtherMaterial, "ImportKey into a key that another caller imported")
			return
		}
		won <- i
	})
	close(won)
	if len(won) != 1 {
		t.Fatalf("%d callers imported their material, want 1", len(won))
	}
	s.mustHold(t, id, spec, materials[<-won])
}

// testFirstOwner checks that the module stores owners of every form, and that later imports of a key do not change its owner.
func (s *suite) testFirstOwner(t *testing.T) {
	spec, alg := s.keySpecs()[0], s.importAlgorithms()[0]
	for name, owner := range map[string]hsm.Owner{
		"none":                           {},
		"a namespace, as early versions": {Namespace: "team-a"},
		"a generated key":                {Namespace: "team-a", Name: "payments.v1", Origin: hsm.OriginGenerated, Number: 64, KeyID: uuid.New()},
	} {
		t.Run(name, func(t *testing.T) {
			material := random(spec.Len())
			req := s.importRequest(t, s.newID(), spec, alg, material)
			req.Owner = owner
			s.mustImport(t, req, material)
			req.Owner = suiteOwner
			if again, err := s.m.ImportKey(t.Context(), req); err != nil || again.Owner != owner {
				t.Errorf("the second ImportKey = %+v, %v; want the owner %+v", again, err, owner)
			}
			if found, err := s.m.FindKey(t.Context(), req.KeyVersionID); err != nil || found.Owner != owner {
				t.Errorf("FindKey = %+v, %v; want the owner %+v", found, err, owner)
			}
		})
	}
}
