package hsmtest

import (
	"bytes"
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// testReopened: everything that prepare made is there, found by its identifier alone.
func (s *suite) testReopened(t *testing.T) {
	for spec, key := range s.masters {
		s.mustHold(t, key.id, spec, key.material)
		open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
		if err := s.m.VerifyDataKey(t.Context(), open); err != nil {
			t.Errorf("VerifyDataKey of a blob from before under %s: %v", spec, err)
		}
	}
	for spec, pair := range s.pairs {
		s.mustList(t, pair.Owner, pair)
		again, err := s.m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
			ID: pair.ID, Owner: pair.Owner, Spec: spec, NotAfter: pair.NotAfter,
		})
		if err != nil || !samePair(again, pair) {
			t.Errorf("CreateWrappingKey of a pair from before = %+v, %v; want %+v", again, err, pair)
		}
	}
	for _, alg := range s.importAlgorithms() { // under pairs from before
		spec := s.keySpecs()[0]
		material := random(spec.Len())
		s.mustImport(t, s.importRequest(t, s.newID(), spec, alg, material), material)
	}
	tag, err := s.m.Authenticate(t.Context(), []byte(tagMessage))
	if err != nil || !bytes.Equal(tag, s.tag) {
		t.Errorf("Authenticate = %x, %v; before the restart it was %x", tag, err, s.tag)
	}
}

// testDestroyed destroys everything that the run has made, twice.
func (s *suite) testDestroyed(t *testing.T) {
	for range 2 {
		for _, destroy := range s.made {
			if err := destroy(t.Context()); err != nil {
				t.Fatalf("destroying: %v", err)
			}
		}
	}
	s.mustBeGone(t)
}

func (s *suite) testStayedDestroyed(t *testing.T) { s.mustBeGone(t) }

func (s *suite) mustBeGone(t *testing.T) {
	t.Helper()
	for spec, key := range s.masters {
		s.mustNotHold(t, key.id)
		open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
		wantKind(t, s.m.VerifyDataKey(t.Context(), open), hsm.NotFound, "VerifyDataKey under a destroyed key")
	}
	for _, pair := range s.pairs {
		s.mustList(t, pair.Owner)
	}
}

// testUnknownKeys: what never was is NotFound, and destroying it is no error.
func (s *suite) testUnknownKeys(t *testing.T) {
	ctx, id := t.Context(), uuid.New()
	spec, alg := s.keySpecs()[0], s.importAlgorithms()[0]
	s.mustNotHold(t, id)

	_, err := s.m.GenerateDataKey(ctx, hsm.GenerateRequest{KeyVersionID: id, Length: 32})
	wantKind(t, err, hsm.NotFound, "GenerateDataKey")
	open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(s.masters[spec])}
	open.Blob.KeyVersionID = id
	wantKind(t, s.m.VerifyDataKey(ctx, open), hsm.NotFound, "VerifyDataKey")
	for _, alg := range s.exportAlgorithms() {
		_, err = s.m.ExportDataKey(ctx, hsm.ExportRequest{OpenRequest: open, Recipient: recipient(t, alg).Public(), Algorithm: alg})
		wantKind(t, err, hsm.NotFound, "ExportDataKey with %s", alg)
	}
	req := s.importRequest(t, s.newID(), spec, alg, random(spec.Len()))
	req.WrappingKey = id
	_, err = s.m.ImportKey(ctx, req)
	wantKind(t, err, hsm.NotFound, "ImportKey under a pair that never was")
	s.mustNotHold(t, req.KeyVersionID)

	for name, destroy := range map[string]func(context.Context, uuid.UUID) error{
		"DestroyKey": s.m.DestroyKey, "DestroyWrappingKey": s.m.DestroyWrappingKey,
	} {
		if err := destroy(ctx, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
