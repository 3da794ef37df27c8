package hsmtest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func (s *suite) testCapabilities(t *testing.T) {
	for range 2 { // their order is stable
		if got := s.m.Capabilities(); !slices.Equal(got, s.Target.Capabilities) {
			t.Errorf("Capabilities =\n%v; want\n%v", got, s.Target.Capabilities)
		}
	}
	info, again := s.m.Info(), s.m.Info()
	if info.Library == "" || info != again {
		t.Errorf("Info = %+v and then %+v: it must name the library and not change", info, again)
	}
}

func (s *suite) testCheck(t *testing.T) {
	if err := s.m.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
}

// testNotSupported asks for everything that the expected capabilities do not have.
func (s *suite) testNotSupported(t *testing.T) {
	for _, spec := range append(hsm.KeySpecs(), "DES", "") {
		if !s.has(hsm.OperationMasterKey, string(spec)) {
			s.mustNotImport(t, spec, s.importAlgorithms()[0])
		}
	}
	for _, alg := range append(wrapping.Algorithms(), "ROT13", "") {
		if !s.has(hsm.OperationImport, string(alg)) {
			s.mustNotImport(t, s.keySpecs()[0], alg)
		}
		if !s.has(hsm.OperationExport, string(alg)) {
			s.mustNotExport(t, alg)
		}
	}
	for _, spec := range append(wrapping.KeySpecs(), "RSA_1024", "") {
		if s.algorithmFor(spec) == "" {
			_, err := s.m.CreateWrappingKey(t.Context(), s.pairRequest(spec, uuid.New()))
			wantKind(t, err, hsm.NotSupported, "CreateWrappingKey(%q), under which nothing can be imported", spec)
		}
	}
}

// mustNotImport checks that material which is in order is refused for the key type or the algorithm.
func (s *suite) mustNotImport(t *testing.T, spec hsm.KeySpec, alg wrapping.Algorithm) {
	t.Helper()
	n := spec.Len()
	if n == 0 {
		n = 16
	}
	pair, ok := s.pairs[pairSpecFor(alg)]
	if !ok {
		return // there is no such pair, and none can be made: testNotSupported asks for one
	}
	encrypted := random(256)
	if alg.Valid() {
		encrypted = wrap(t, pair.PublicKey, alg, "", random(n))
	}
	req := hsm.ImportRequest{
		Owner: suiteOwner, KeyVersionID: s.newID(), Spec: spec, WrappingKey: pair.ID, Algorithm: alg, EncryptedMaterial: encrypted,
	}
	_, err := s.m.ImportKey(t.Context(), req)
	wantKind(t, err, hsm.NotSupported, "ImportKey of a %q key under %q", spec, alg)
	s.mustNotHold(t, req.KeyVersionID)
}

func (s *suite) mustNotExport(t *testing.T, alg wrapping.Algorithm) {
	t.Helper()
	spec := s.keySpecs()[0]
	_, err := s.m.ExportDataKey(t.Context(), hsm.ExportRequest{
		OpenRequest: hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(s.masters[spec])},
		Recipient:   recipient(t, alg).Public(),
		Algorithm:   alg,
	})
	wantKind(t, err, hsm.NotSupported, "ExportDataKey with %q", alg)
}

// testContextDone: no call begins with a context that is done, and none of them has an effect.
func (s *suite) testContextDone(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	spec, alg := s.keySpecs()[0], s.importAlgorithms()[0]
	key, pair := s.masters[spec], s.pairRequest(s.quickPair(), uuid.New())
	open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
	req := s.importRequest(t, s.newID(), spec, alg, random(spec.Len()))
	calls := map[string]func() error{
		"Check":              func() error { return s.m.Check(done) },
		"CreateWrappingKey":  func() error { _, err := s.m.CreateWrappingKey(done, pair); return err },
		"ListWrappingKeys":   func() error { _, err := s.m.ListWrappingKeys(done, pair.Owner); return err },
		"DestroyWrappingKey": func() error { return s.m.DestroyWrappingKey(done, s.pairs[pairSpecFor(alg)].ID) },
		"Authenticate":       func() error { _, err := s.m.Authenticate(done, []byte(tagMessage)); return err },
		"ImportKey":          func() error { _, err := s.m.ImportKey(done, req); return err },
		"FindKey":            func() error { _, err := s.m.FindKey(done, key.id); return err },
		"DestroyKey":         func() error { return s.m.DestroyKey(done, key.id) },
		"GenerateDataKey": func() error {
			_, err := s.m.GenerateDataKey(done, hsm.GenerateRequest{KeyVersionID: key.id, Length: 32})
			return err
		},
		"VerifyDataKey": func() error { return s.m.VerifyDataKey(done, open) },
	}
	for _, alg := range s.exportAlgorithms() {
		calls["ExportDataKey with "+string(alg)] = func() error {
			_, err := s.m.ExportDataKey(done, hsm.ExportRequest{OpenRequest: open, Recipient: recipient(t, alg).Public(), Algorithm: alg})
			return err
		}
	}
	for name, call := range calls {
		err := call()
		wantKind(t, err, hsm.Unavailable, "%s", name)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v does not have context.Canceled in its chain", name, err)
		}
	}
	s.mustNotHold(t, req.KeyVersionID)
	s.mustHold(t, key.id, spec, key.material)
	s.mustList(t, pair.Owner)
	s.mustList(t, s.pairs[pairSpecFor(alg)].Owner, s.pairs[pairSpecFor(alg)])
}
