package hsmtest

import (
	"bytes"
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// testReopened checks that the module finds everything that prepare created by its identifier.
func (s *suite) testReopened(t *testing.T) {
	for spec, key := range s.masters {
		s.mustHold(t, key.id, spec, key.material)
		open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
		if err := s.m.VerifyDataKey(t.Context(), open); err != nil {
			t.Errorf("VerifyDataKey of a blob of before the restart under %s: %v", spec, err)
		}
	}
	for spec, key := range s.generated {
		s.mustFind(t, key)
		if again := s.generateKey(t, key.KeyVersionID, spec); again != key {
			t.Errorf("GenerateKey of a %s key of before the restart = %+v; want %+v", spec, again, key)
		}
	}
	for spec, pair := range s.pairs {
		s.mustList(t, pair.Owner, pair)
		again, err := s.m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
			ID: pair.ID, Owner: pair.Owner, Spec: spec, NotAfter: pair.NotAfter,
		})
		if err != nil || !samePair(again, pair) {
			t.Errorf("CreateWrappingKey of a pair of before the restart = %+v, %v; want %+v", again, err, pair)
		}
	}
	for _, alg := range s.importAlgorithms() { // under pairs of before the restart
		spec := s.keySpecs()[0]
		material := random(spec.Len())
		s.mustImport(t, s.importRequest(t, s.newID(), spec, alg, material), material)
	}
	tag, err := s.m.Authenticate(t.Context(), []byte(tagMessage))
	if err != nil || !bytes.Equal(tag, s.tag) {
		t.Errorf("Authenticate = %x, %v; before the restart it was %x", tag, err, s.tag)
	}
}

// testDestroyed destroys everything that the run created, twice.
func (s *suite) testDestroyed(t *testing.T) {
	for range 2 {
		for _, destroy := range s.made {
			if err := destroy(t.Context()); err != nil {
				t.Fatalf("destroying: %v", err)
			}
		}
	}
	s.mustBeDestroyed(t)
}

func (s *suite) testStayedDestroyed(t *testing.T) { s.mustBeDestroyed(t) }

func (s *suite) mustBeDestroyed(t *testing.T) {
	t.Helper()
	for spec, key := range s.masters {
		s.mustNotHold(t, key.id)
		open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
		WantKind(t, s.m.VerifyDataKey(t.Context(), open), hsm.NotFound, "VerifyDataKey under a destroyed key")
	}
	for _, key := range s.generated {
		s.mustNotHold(t, key.KeyVersionID)
	}
	for _, pair := range s.pairs {
		s.mustList(t, pair.Owner)
	}
}

// testUnknownKeys checks that unknown keys are NotFound, and that destroying one succeeds.
func (s *suite) testUnknownKeys(t *testing.T) {
	ctx, id := t.Context(), uuid.New()
	spec, alg := s.keySpecs()[0], s.importAlgorithms()[0]
	s.mustNotHold(t, id)

	_, err := s.m.GenerateDataKey(ctx, hsm.GenerateRequest{KeyVersionID: id, Length: 32})
	WantKind(t, err, hsm.NotFound, "GenerateDataKey")
	open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(s.masters[spec])}
	open.Blob.KeyVersionID = id
	WantKind(t, s.m.VerifyDataKey(ctx, open), hsm.NotFound, "VerifyDataKey")
	_, err = s.m.ReencryptDataKey(ctx, hsm.ReencryptRequest{OpenRequest: open, NewKeyVersionID: s.masters[spec].id})
	WantKind(t, err, hsm.NotFound, "ReencryptDataKey")
	open.Blob.KeyVersionID = s.masters[spec].id
	_, err = s.m.ReencryptDataKey(ctx, hsm.ReencryptRequest{OpenRequest: open, NewKeyVersionID: id})
	WantKind(t, err, hsm.NotFound, "ReencryptDataKey to an unknown key")
	open.Blob.KeyVersionID = id
	for _, alg := range s.exportAlgorithms() {
		_, err = s.m.ExportDataKey(ctx, hsm.ExportRequest{OpenRequest: open, Recipient: recipient(t, alg).Public().SPKI(), Algorithm: alg})
		WantKind(t, err, hsm.NotFound, "ExportDataKey with %s", alg)
	}
	req := s.importRequest(t, s.newID(), spec, alg, random(spec.Len()))
	req.WrappingKey = id
	_, err = s.m.ImportKey(ctx, req)
	WantKind(t, err, hsm.NotFound, "ImportKey under an unknown pair")
	s.mustNotHold(t, req.KeyVersionID)

	for name, destroy := range map[string]func(context.Context, uuid.UUID) error{
		"DestroyKey": s.m.DestroyKey, "DestroyWrappingKey": s.m.DestroyWrappingKey,
	} {
		if err := destroy(ctx, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
