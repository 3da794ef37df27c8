package kms_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// generatedKey makes a key with its first version.
func (s service) generatedKey(t testing.TB, spec hsm.KeySpec) kms.Key {
	t.Helper()
	id := uuid.New()
	key := kms.Key{
		ID: id, Spec: spec, Origin: kms.OriginModule, State: kms.StateEnabled,
		Primary: kms.Version{ID: kms.VersionID(id, 1), Number: 1}, Namespace: "team-a", Name: "payments",
	}
	first, err := s.CreateKeyVersion(t.Context(), key)
	if err != nil {
		t.Fatalf("CreateKeyVersion: %v", err)
	}
	key.Primary = first
	return key
}

// rotated makes a new version of a key the primary one.
func (s service) rotated(t testing.TB, key kms.Key) kms.Key {
	t.Helper()
	next, err := s.CreateKeyVersion(t.Context(), key)
	if err != nil {
		t.Fatalf("CreateKeyVersion: %v", err)
	}
	key.Former = append(key.Former[:len(key.Former):len(key.Former)], key.Primary)
	key.Primary = next
	return key
}

// exported returns the data key in a blob, by its export.
func (s service) exported(t testing.TB, key kms.Key, blob kms.Blob, context kms.EncryptionContext) []byte {
	t.Helper()
	req := export(t, key, blob, wrapping.ECSM2)
	req.EncryptionContext = context
	made, err := s.ExportDataKey(t.Context(), req)
	if err != nil {
		t.Fatalf("ExportDataKey: %v", err)
	}
	if made.KeyVersionID != blob.KeyVersionID() {
		t.Errorf("the export names version %s, and the blob %s", made.KeyVersionID, blob.KeyVersionID())
	}
	dataKey, err := recipient(t, wrapping.ECSM2).Unwrap(wrapping.SM2PKE, "", made.ExportedDataKey)
	if err != nil {
		t.Fatal(err)
	}
	return dataKey
}

func TestCreateKeyVersion_numbersVersionsFromOne(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, spec := range hsm.KeySpecs() {
		key := s.generatedKey(t, spec)
		if key.Primary.ID != kms.VersionID(key.ID, 1) || key.Primary.Number != 1 || key.Primary.Custody != hsm.CustodySoftware {
			t.Errorf("the first version is %+v", key.Primary)
		}
		next := s.rotated(t, key)
		if next.Primary.ID != kms.VersionID(key.ID, 2) || next.Primary.Number != 2 || *next.Primary.Fingerprint == *key.Primary.Fingerprint {
			t.Errorf("the second version is %+v", next.Primary)
		}
	}
}

// An object that adopted a key is another one. A version that it generates is a version of the same key nevertheless.
func TestCreateKeyVersion_ofAnAdoptedKey_continuesTheKey(t *testing.T) {
	t.Parallel()
	s := newService(t)
	former := s.generatedKey(t, hsm.AES256)
	adopted := former
	adopted.ID, adopted.Name = uuid.New(), "renamed"
	adopted = s.rotated(t, adopted)
	found, err := s.module.FindKey(t.Context(), adopted.Primary.ID)
	if err != nil || found.Owner.KeyID != former.ID || found.Owner.Number != 2 {
		t.Errorf("the owner of the version is %+v, %v", found.Owner, err)
	}
	keys, err := s.KeysByName(t.Context(), former)
	if err != nil || len(keys) != 2 {
		t.Errorf("KeysByName finds %d versions, %v", len(keys), err)
	}
}

// A caller that was interrupted, or another operator, finds what the first call made.
func TestCreateKeyVersion_again_findsTheSame(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	s := openService(t, storage, false)
	key := s.generatedKey(t, hsm.AES256)
	next := s.rotated(t, key)
	other := openService(t, storage, false)
	if again := other.rotated(t, key); again.Primary.ID != next.Primary.ID || *again.Primary.Fingerprint != *next.Primary.Fingerprint {
		t.Errorf("another call makes %+v, not %+v", again.Primary, next.Primary)
	}
	if keys, err := s.MasterKeys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("the module has %d versions (%v), want 2", len(keys), err)
	}
}

func TestCreateKeyVersion_beyondTheMaximum_isRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := s.generatedKey(t, hsm.AES128)
	for len(key.Former)+1 < kms.MaxVersions {
		key = s.rotated(t, key)
	}
	s.module.Reset()
	_, err := s.CreateKeyVersion(t.Context(), key)
	wantError(t, err, kms.UnsupportedOperation, "The key has 64 versions, the maximum")
	if calls := s.module.Calls(); len(calls) > 0 {
		t.Errorf("the module was asked: %v", calls)
	}
}

// A user who knows a key's identifier knows those of its coming versions. A version that someone imported there is none of the key's.
func TestCreateKeyVersion_ofWhichSomeoneImportedTheMaterial_isRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key := s.generatedKey(t, hsm.AES256)
	planted := newKey(hsm.AES256)
	planted.Primary.ID = kms.VersionID(key.ID, 2)
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, planted, s.parameters(t, sm2(planted)), wrapping.SM2PKE, random(32))); err != nil {
		t.Fatal(err)
	}
	_, err := s.CreateKeyVersion(t.Context(), key)
	wantError(t, err, kms.InvalidKeyMaterial)
}

// The verb export on imported keys gives no key that the module generated.
func TestAdoptKey_ofTheOtherOrigin_isNotFound(t *testing.T) {
	t.Parallel()
	s := newService(t)
	generated := s.generatedKey(t, hsm.AES256)
	heir := newKey(hsm.AES256)
	heir.Primary.ID = generated.Primary.ID
	_, err := s.AdoptKey(t.Context(), heir)
	wantError(t, err, kms.ForbiddenKeyVersionNotFound)
}

func TestOperations_ofTheOtherOrigin_areRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	generated := s.generatedKey(t, hsm.AES256)
	imported, material := s.enabled(t, hsm.AES256)
	p := s.parameters(t, sm2(imported))
	s.module.Reset()
	for _, state := range kms.KeyStates() {
		generated.State, imported.State = state, state
		_, err := s.GetParametersForImport(t.Context(), sm2(generated))
		wantError(t, err, kms.UnsupportedOrigin)
		_, err = s.ImportKeyMaterial(t.Context(), request(t, generated, p, wrapping.SM2PKE, material))
		wantError(t, err, kms.UnsupportedOrigin)
		wantError(t, s.DeleteKeyMaterial(t.Context(), generated), kms.UnsupportedOrigin)
		_, err = s.CreateKeyVersion(t.Context(), imported)
		wantError(t, err, kms.UnsupportedOrigin)
	}
	if calls := s.module.Calls(); len(calls) > 0 {
		t.Errorf("the module was asked: %v", calls)
	}
}

func TestOldVersions_openWhatTheyMade(t *testing.T) {
	t.Parallel()
	s := newService(t)
	context := kms.EncryptionContext{"app": "ledger"}
	key := s.generatedKey(t, hsm.AES256)
	old := s.dataKey(t, key, context)
	dataKey := s.exported(t, key, old, context)
	key = s.rotated(t, key)
	if blob := s.dataKey(t, key, context); blob.KeyVersionID() != key.Primary.ID {
		t.Errorf("a data key was made under version %s, which is not the primary one", blob.KeyVersionID())
	}
	if again := s.exported(t, key, old, context); !bytes.Equal(again, dataKey) {
		t.Error("the old blob has another data key after the rotation")
	}
}

func TestReEncrypt_keepsTheDataKeyAndItsContext(t *testing.T) {
	t.Parallel()
	s := newService(t)
	context := kms.EncryptionContext{"app": "ledger"}
	former := s.generatedKey(t, hsm.AES256)
	blob := s.dataKey(t, former, context)
	dataKey := s.exported(t, former, blob, context)
	rotated := s.rotated(t, former)
	imported, _ := s.enabled(t, hsm.AES128)
	for sentence, to := range map[string]kms.Key{
		"the new primary version": rotated, "another generated key": s.generatedKey(t, hsm.SM4), "an imported key": imported,
	} {
		moved, err := s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: rotated, CiphertextBlob: blob, EncryptionContext: context, Destination: to, DestinationEncryptionContext: context})
		if err != nil {
			t.Errorf("%s: %v", sentence, err)
			continue
		}
		if moved.KeyID != to.ID || moved.KeyVersionID != to.Primary.ID || moved.CiphertextBlob.KeyVersionID() != to.Primary.ID || moved.Custody != hsm.CustodySoftware {
			t.Errorf("%s: the result is %+v", sentence, moved)
		}
		if got := s.exported(t, to, moved.CiphertextBlob, context); !bytes.Equal(got, dataKey) {
			t.Errorf("%s: the blob has another data key", sentence)
		}
		wantError(t, s.VerifyDataKey(t.Context(), to, moved.CiphertextBlob, nil), kms.InvalidParameter)
	}
}

func TestReEncrypt_needsBothKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	from, to := s.generatedKey(t, hsm.AES256), s.generatedKey(t, hsm.AES256)
	blob := s.dataKey(t, from, nil)
	s.module.Reset()
	for state, code := range map[kms.KeyState]kms.Code{
		kms.StateDisabled: kms.RejectedDisabled, kms.StatePendingDeletion: kms.RejectedPendingDeletion, kms.StateDeleted: kms.ForbiddenKeyNotFound,
	} {
		other := from
		other.State = state
		_, err := s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: other, CiphertextBlob: blob, Destination: to})
		wantError(t, err, code)
		other = to
		other.State = state
		_, err = s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: from, CiphertextBlob: blob, Destination: other})
		wantError(t, err, code)
	}
	_, err := s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: to, CiphertextBlob: blob, Destination: from})
	wantError(t, err, kms.InvalidParameter)
	_, err = s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: from, Destination: to})
	wantError(t, err, kms.MissingParameter)
	if calls := s.module.Calls(); len(calls) > 0 {
		t.Errorf("the module was asked: %v", calls)
	}
	_, err = s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: from, CiphertextBlob: blob, EncryptionContext: kms.EncryptionContext{"a": "b"}, Destination: to})
	wantError(t, err, kms.InvalidParameter)
}

// substitutes is a module that returns another data key than the one that it re-encrypts.
type substitutes struct {
	hsm.Module

	with func(hsm.ReencryptRequest) (hsm.DataKey, error)
	done bool
}

func (m *substitutes) ReencryptDataKey(ctx context.Context, req hsm.ReencryptRequest) (hsm.DataKey, error) {
	if m.done { // the check
		return m.Module.ReencryptDataKey(ctx, req)
	}
	m.done = true
	return m.with(req)
}

// A blob that does not open, or that contains another data key, must never take the place of one that is right.
func TestReEncrypt_wrongResult_fails(t *testing.T) {
	t.Parallel()
	s := newService(t)
	from, to := s.generatedKey(t, hsm.AES256), s.generatedKey(t, hsm.AES256)
	module := s.module
	for name, with := range map[string]func(hsm.ReencryptRequest) (hsm.DataKey, error){
		"another data key": func(req hsm.ReencryptRequest) (hsm.DataKey, error) {
			return module.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: req.NewKeyVersionID, Length: 32, Binding: req.NewBinding})
		},
		"a blob that does not open": func(req hsm.ReencryptRequest) (hsm.DataKey, error) {
			moved, err := module.ReencryptDataKey(t.Context(), req)
			moved.Blob.Payload[0] ^= 1
			return moved, err
		},
	} {
		s.Module = &substitutes{Module: module, with: with}
		req := kms.ReEncryptRequest{Key: from, CiphertextBlob: s.dataKey(t, from, nil), Destination: to}
		made, err := s.ReEncrypt(t.Context(), req)
		if kms.CodeOf(err) != kms.ServiceUnavailableTemporary || !made.CiphertextBlob.IsZero() {
			t.Errorf("%s: %+v, %v", name, made, err)
		}
	}
}
