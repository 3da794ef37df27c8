package hsmtest

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func (s *suite) testCapabilities(t *testing.T) {
	first := s.describe(t)
	if first.Info.Library == "" {
		t.Errorf("Info = %+v, want a library", first.Info)
	}
	if !slices.Equal(first.Capabilities, s.Target.Capabilities) {
		t.Errorf("Capabilities =\n%v; want\n%v", first.Capabilities, s.Target.Capabilities)
	}
	p := first.KeyProtection
	if p.State != hsm.Enforced && p.State != hsm.NotEnforced || (len(p.Methods) > 0) != (p.State == hsm.NotEnforced) {
		t.Errorf("KeyProtection = %+v, want methods if and only if the state is NotEnforced", p)
	}
	clear(first.Capabilities) // the caller may change the result
	clear(p.Methods)
	clear(first.Probes)
	if second, third := s.describe(t), s.describe(t); !reflect.DeepEqual(second, third) || !slices.Equal(second.Capabilities, s.Target.Capabilities) {
		t.Errorf("Describe =\n%+v and then\n%+v without a restart", second, third)
	}
}

func (s *suite) describe(t *testing.T) hsm.Description {
	t.Helper()
	described, err := s.m.Describe(t.Context())
	if err != nil {
		t.Fatalf("Describe: %v", err)
	}
	return described
}

func (s *suite) testCheck(t *testing.T) {
	if err := s.m.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
}

// testNotSupported tries everything that is not in the expected capabilities.
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
			WantKind(t, err, hsm.NotSupported, "CreateWrappingKey(%q), under which no algorithm imports", spec)
		}
	}
}

// mustNotImport checks that valid material is rejected because of the key type or the algorithm.
func (s *suite) mustNotImport(t *testing.T, spec hsm.KeySpec, alg wrapping.Algorithm) {
	t.Helper()
	n := spec.Len()
	if n == 0 {
		n = 16
	}
	pair, ok := s.pairs[pairSpecFor(alg)]
	if !ok {
		return // there is no such pair, as testNotSupported checks
	}
	encrypted := random(256)
	if alg.Valid() {
		encrypted = wrap(t, PublicKey(t, pair), alg, "", random(n))
	}
	req := hsm.ImportRequest{
		Owner: suiteOwner, KeyVersionID: s.newID(), Spec: spec, WrappingKey: pair.ID, Algorithm: alg, EncryptedMaterial: encrypted,
	}
	_, err := s.m.ImportKey(t.Context(), req)
	WantKind(t, err, hsm.NotSupported, "ImportKey of a %q key under %q", spec, alg)
	s.mustNotHold(t, req.KeyVersionID)
}

func (s *suite) mustNotExport(t *testing.T, alg wrapping.Algorithm) {
	t.Helper()
	spec := s.keySpecs()[0]
	_, err := s.m.ExportDataKey(t.Context(), hsm.ExportRequest{
		OpenRequest: hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(s.masters[spec])},
		Recipient:   recipient(t, alg).Public().SPKI(),
		Algorithm:   alg,
	})
	WantKind(t, err, hsm.NotSupported, "ExportDataKey with %q", alg)
}

// testContextDone checks that no call has an effect if its context is done.
func (s *suite) testContextDone(t *testing.T) {
	done, cancel := context.WithCancel(t.Context())
	cancel()
	spec, alg := s.keySpecs()[0], s.importAlgorithms()[0]
	key, pair := s.masters[spec], s.pairRequest(s.quickPair(), uuid.New())
	open := hsm.OpenRequest{Blob: s.blobs[spec], Binding: s.bind(key)}
	req := s.importRequest(t, s.newID(), spec, alg, random(spec.Len()))
	calls := map[string]func() error{
		"Describe":           func() error { _, err := s.m.Describe(done); return err },
		"Check":              func() error { return s.m.Check(done) },
		"CreateWrappingKey":  func() error { _, err := s.m.CreateWrappingKey(done, pair); return err },
		"ListWrappingKeys":   func() error { _, err := s.m.ListWrappingKeys(done); return err },
		"ListKeys":           func() error { _, err := s.m.ListKeys(done); return err },
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
		"GenerateKey": func() error {
			_, err := s.m.GenerateKey(done, hsm.GenerateKeyRequest{KeyVersionID: req.KeyVersionID, Spec: spec, Owner: generatedOwner})
			return err
		},
		"ReencryptDataKey": func() error {
			_, err := s.m.ReencryptDataKey(done, hsm.ReencryptRequest{OpenRequest: open, NewKeyVersionID: key.id, NewBinding: s.bind(key)})
			return err
		},
	}
	for _, alg := range s.exportAlgorithms() {
		calls["ExportDataKey with "+string(alg)] = func() error {
			_, err := s.m.ExportDataKey(done, hsm.ExportRequest{OpenRequest: open, Recipient: recipient(t, alg).Public().SPKI(), Algorithm: alg})
			return err
		}
	}
	for name, call := range calls {
		err := call()
		WantKind(t, err, hsm.Unavailable, "%s", name)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v does not have context.Canceled in its chain", name, err)
		}
	}
	s.mustNotHold(t, req.KeyVersionID)
	s.mustHold(t, key.id, spec, key.material)
	s.mustList(t, pair.Owner)
	s.mustList(t, s.pairs[pairSpecFor(alg)].Owner, s.pairs[pairSpecFor(alg)])
}
