package hsmtest

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// The material of a generated key is unknown. So these tests compare what the module does with the key before and after, and
// open what it exports with the recipient's key.

// generatedOwner is the owner of generated keys.
var generatedOwner = hsm.Owner{Namespace: suiteOwner.Namespace, Name: suiteOwner.Name, Origin: hsm.OriginGenerated, KeyID: suiteOwner.KeyID, Number: 64}

// generatedSpecs returns the expected types of generated keys.
func (s *suite) generatedSpecs() []hsm.KeySpec {
	return algorithms[hsm.KeySpec](s, hsm.OperationGenerateMasterKey)
}

// generateKey generates a master key and checks the result.
func (s *suite) generateKey(t testing.TB, id uuid.UUID, spec hsm.KeySpec) hsm.Key {
	t.Helper()
	key, err := s.m.GenerateKey(t.Context(), hsm.GenerateKeyRequest{KeyVersionID: id, Spec: spec, Owner: generatedOwner})
	if err != nil {
		t.Fatalf("GenerateKey(%s): %v", spec, err)
	}
	want := hsm.Key{
		KeyVersionID: id, Spec: spec, Fingerprint: key.Fingerprint, Owner: generatedOwner,
		Custody: s.caps[hsm.OperationGenerateMasterKey][string(spec)],
	}
	if key != want || key.Fingerprint == (hsm.Fingerprint{}) {
		t.Errorf("GenerateKey(%s) = %+v; want %+v with a fingerprint", spec, key, want)
	}
	return key
}

// mustFind checks that the module has a generated key.
func (s *suite) mustFind(t testing.TB, key hsm.Key) {
	t.Helper()
	key.Custody = ""
	if found, err := s.m.FindKey(t.Context(), key.KeyVersionID); err != nil || found != key {
		t.Errorf("FindKey = %+v, %v; want %+v", found, err, key)
	}
}

// testGenerateKey checks that a key is generated once, that each is different, and that the recipient of an export gets the data
// key that is under it.
func (s *suite) testGenerateKey(t *testing.T) {
	for _, spec := range s.generatedSpecs() {
		id := s.newID()
		s.mustNotHold(t, id)
		key := s.generateKey(t, id, spec)
		s.mustFind(t, key)
		unknown := master{id: id, spec: spec}
		blob := s.generate(t, unknown, 32, s.bind(unknown))
		if again := s.generateKey(t, id, spec); again != key {
			t.Errorf("GenerateKey(%s) again = %+v; want %+v", spec, again, key)
		}
		s.mustOpen(t, unknown, blob)
		if other := s.generateKey(t, s.newID(), spec); other.Fingerprint == key.Fingerprint {
			t.Errorf("two generated %s keys have the same fingerprint", spec)
		}
		for _, alg := range s.exportAlgorithms() {
			to := recipient(t, alg)
			req := hsm.ExportRequest{OpenRequest: hsm.OpenRequest{Blob: blob, Binding: s.bind(unknown)}, Recipient: to.Public().SPKI(), Algorithm: alg}
			one, err := to.Unwrap(alg, "", s.export(t, unknown, req))
			other, err2 := to.Unwrap(alg, "", s.export(t, unknown, req))
			if err != nil || err2 != nil || len(one) != 32 || !bytes.Equal(one, other) {
				t.Errorf("exports with %s under a generated %s key: %v, %v, %d bytes", alg, spec, err, err2, len(one))
			}
		}
		// There is one key, so it needs to be destroyed once.
		if err := s.m.DestroyKey(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		s.mustNotHold(t, id)
	}
}

// testGenerateKeyOther checks that another key with the identifier is neither returned nor replaced. If an imported key were
// returned, a user with its material could open the data keys.
func (s *suite) testGenerateKeyOther(t *testing.T) {
	specs := s.generatedSpecs()
	if len(specs) < 2 {
		return
	}
	key := s.generateKey(t, s.newID(), specs[0])
	imported := s.newMaster(t, specs[0])
	next := generatedOwner
	next.Number++
	for sentence, req := range map[string]hsm.GenerateKeyRequest{
		"of another type":    {KeyVersionID: key.KeyVersionID, Spec: specs[1], Owner: generatedOwner},
		"of another version": {KeyVersionID: key.KeyVersionID, Spec: specs[0], Owner: next},
		"that is imported":   {KeyVersionID: imported.id, Spec: specs[0], Owner: generatedOwner},
	} {
		_, err := s.m.GenerateKey(t.Context(), req)
		WantKind(t, err, hsm.OtherMaterial, "GenerateKey, with a key %s", sentence)
	}
	_, err := s.m.GenerateKey(t.Context(), hsm.GenerateKeyRequest{KeyVersionID: imported.id, Spec: specs[0], Owner: suiteOwner})
	WantKind(t, err, hsm.NotSupported, "GenerateKey of a key whose origin is an import")
	s.mustFind(t, key)
	s.mustHold(t, imported.id, imported.spec, imported.material)
}

func (s *suite) testGenerateKeyNotSupported(t *testing.T) {
	for _, spec := range append(hsm.KeySpecs(), "DES", "") {
		if s.has(hsm.OperationGenerateMasterKey, string(spec)) {
			continue
		}
		id := s.newID()
		_, err := s.m.GenerateKey(t.Context(), hsm.GenerateKeyRequest{KeyVersionID: id, Spec: spec, Owner: generatedOwner})
		WantKind(t, err, hsm.NotSupported, "GenerateKey of a %q key", spec)
		s.mustNotHold(t, id)
	}
}

func (s *suite) testGenerateKeyRace(t *testing.T) {
	specs := s.generatedSpecs()
	if len(specs) == 0 {
		return
	}
	id, made := s.newID(), make([]hsm.Key, 4)
	atOnce(len(made), func(i int) { made[i] = s.generateKey(t, id, specs[0]) })
	for _, key := range made {
		s.mustFind(t, key)
	}
	if err := s.m.DestroyKey(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	s.mustNotHold(t, id)
}

// testReencrypt moves data keys of every length under another key of every type, which independent code opens.
func (s *suite) testReencrypt(t *testing.T) {
	for _, spec := range s.keySpecs() {
		from := s.masters[spec]
		for _, toSpec := range s.keySpecs() {
			to := s.newMaster(t, toSpec)
			for _, n := range lengths {
				if s.generates(spec, n) && s.generates(toSpec, n) {
					blob := s.generate(t, from, n, s.bind(from))
					s.mustReencrypt(t, from, to, blob, openElsewhere(t, from, blob, s.bind(from)))
				}
			}
		}
	}
}

// mustReencrypt moves a data key to another master key and back.
func (s *suite) mustReencrypt(t testing.TB, from, to master, blob ciphertext.Blob, dataKey []byte) {
	t.Helper()
	moved := s.reencrypt(t, from, to, blob)
	if !bytes.Equal(openElsewhere(t, to, moved, s.bind(to)), dataKey) {
		t.Errorf("the blob of scheme %s contains another data key after its re-encryption", blob.Scheme)
	}
	s.mustOpen(t, to, moved)
	s.mustOpen(t, from, blob) // it still opens
	back := s.reencrypt(t, to, from, moved)
	if !bytes.Equal(openElsewhere(t, from, back, s.bind(from)), dataKey) || bytes.Equal(back.Payload, blob.Payload) && !blob.Scheme.WrapsKeys() {
		t.Errorf("the blob of scheme %s contains another data key after it moved back, or its encryption is not randomized", blob.Scheme)
	}
}

func (s *suite) reencrypt(t testing.TB, from, to master, blob ciphertext.Blob) ciphertext.Blob {
	t.Helper()
	made, err := s.m.ReencryptDataKey(t.Context(), hsm.ReencryptRequest{
		OpenRequest: hsm.OpenRequest{Blob: blob, Binding: s.bind(from)}, NewKeyVersionID: to.id, NewBinding: s.bind(to),
	})
	if err != nil {
		t.Fatalf("ReencryptDataKey of scheme %s from %s to %s: %v", blob.Scheme, from.spec, to.spec, err)
	}
	custody, ok := s.caps[hsm.OperationReencrypt][made.Blob.Scheme.String()]
	if !ok || made.Custody != custody || made.Blob.KeyVersionID != to.id {
		t.Errorf("ReencryptDataKey of scheme %s: scheme %s under %s with custody %s; the capabilities have %s (%v), and the key is %s",
			blob.Scheme, made.Blob.Scheme, made.Blob.KeyVersionID, made.Custody, custody, ok, to.id)
	}
	return made.Blob
}
