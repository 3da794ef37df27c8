package kms_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// lostKey is a key in the module, imported in team-a's name, that a new key would take over.
func lostKey(t testing.TB, s service) (lost, restored kms.Key) {
	t.Helper()
	lost = newKey(hsm.AES256)
	imported, err := s.ImportKeyMaterial(t.Context(), request(t, lost, s.parameters(t, sm2(lost)), wrapping.SM2PKE, random(32)))
	if err != nil {
		t.Fatal(err)
	}
	lost.State, lost.Primary.Fingerprint = kms.StateEnabled, imported.Fingerprint
	restored = newKey(hsm.AES256)
	restored.Name, restored.Primary.ID = "restored", lost.Primary.ID
	return lost, restored
}

func TestAdoptKey_refusesWhatIsNotThisKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	lost, restored := lostKey(t, s)
	notFound := map[kms.Code]map[string]string{kms.ForbiddenKeyVersionNotFound: {}, kms.RejectedPendingImport: {}}
	for sentence, tc := range map[string]struct {
		change func(*kms.Key)
		code   kms.Code
		says   string
	}{
		"a key of another owner": {func(k *kms.Key) { k.Namespace = "team-b" },
			kms.ForbiddenKeyVersionNotFound, "imported from a namespace with the name team-b"},
		"a key of another owner, with the right fingerprint": {func(k *kms.Key) { k.Namespace, k.Primary.Fingerprint = "team-b", lost.Primary.Fingerprint },
			kms.RejectedPendingImport, "imported from a namespace with the name team-b"},
		"a key of another owner, with a wrong fingerprint": {func(k *kms.Key) { k.Namespace, k.Primary.Fingerprint = "team-b", &hsm.Fingerprint{1} },
			kms.RejectedPendingImport, "imported from a namespace with the name team-b"},
		"a key of another owner and another type": {func(k *kms.Key) { k.Namespace, k.Spec = "team-b", hsm.AES128 },
			kms.ForbiddenKeyVersionNotFound, "imported from a namespace with the name team-b"},
		"a key that is not there": {func(k *kms.Key) { k.Namespace, k.Primary.ID = "team-b", uuid.New() },
			kms.ForbiddenKeyVersionNotFound, "imported from a namespace with the name team-b"},
		"a key that is not there, with a fingerprint": {func(k *kms.Key) { k.Primary.ID, k.Primary.Fingerprint = uuid.New(), lost.Primary.Fingerprint },
			kms.RejectedPendingImport, "imported from a namespace with the name team-a"},
		"a key without an owner": {func(k *kms.Key) { k.Namespace = "" },
			kms.ForbiddenKeyVersionNotFound, ""},
		"a key of another length": {func(k *kms.Key) { k.Spec = hsm.AES128 },
			kms.InvalidParameter, "KeySpec: The key in the module is AES_256, not AES_128."},
		"a key of another type": {func(k *kms.Key) { k.Spec = hsm.SM4 },
			kms.InvalidParameter, "KeySpec: The key in the module is AES_256, not SM4."},
		"a key with other material": {func(k *kms.Key) { k.Primary.Fingerprint = &hsm.Fingerprint{1} },
			kms.InvalidKeyMaterial, lost.Primary.Fingerprint.String()},
	} {
		key := restored
		tc.change(&key)
		_, err := s.AdoptKey(t.Context(), key)
		public := wantError(t, err, tc.code, tc.says)
		if same := notFound[tc.code]; same != nil {
			public = strings.ReplaceAll(public, key.Primary.ID.String(), "ID")
			same[sentence] = strings.ReplaceAll(public, "the name "+key.Namespace+".", "the name OWNER.")
		}
	}
	// The answer reveals nothing about the keys of others.
	wantSame(t, notFound[kms.ForbiddenKeyVersionNotFound])
	wantSame(t, notFound[kms.RejectedPendingImport])
	if calls := s.module.Calls(); calls["DestroyKey"] != 0 || calls["ImportKey"] != 1 {
		t.Errorf("a refusal changes the module: %v", calls)
	}
}

func TestAdoptKey_whileTheModuleIsAway_isTemporary(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, restored := lostKey(t, s)
	s.module.FailAll("FindKey", hsm.Errorf(hsm.Unavailable, "it does not answer"))
	_, err := s.AdoptKey(t.Context(), restored)
	wantError(t, err, kms.ServiceUnavailableTemporary)
}

func TestAdoptKey_takesTheKeyWithItsDataKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	lost, restored := lostKey(t, s)
	blob := s.dataKey(t, lost, nil)
	for sentence, fingerprint := range map[string]*hsm.Fingerprint{
		"of which the fingerprint is not known": nil,
		"of which the fingerprint is known":     lost.Primary.Fingerprint,
	} {
		key := restored
		key.Primary.Fingerprint = fingerprint
		got, err := s.AdoptKey(t.Context(), key)
		if err != nil || got.Fingerprint != *lost.Primary.Fingerprint {
			t.Errorf("a key %s: %+v, %v; want fingerprint %s", sentence, got, err, lost.Primary.Fingerprint)
		}
		if got.Custody != "" {
			t.Errorf("a key %s: custody %s, which cannot be known", sentence, got.Custody)
		}
		key.State = kms.StateEnabled
		if err := s.VerifyDataKey(t.Context(), key, blob, nil); err != nil {
			t.Errorf("a data key from before the loss: %v", err)
		}
	}
}

// Material comes back into an adopted key as into any other: under parameters of the new key's own.
func TestAdoptKey_takesItsMaterialAgainUnderItsOwnParameters(t *testing.T) {
	t.Parallel()
	s := newService(t)
	lost, material := s.enabled(t, hsm.AES256)
	blob := s.dataKey(t, lost, nil)
	old := s.parameters(t, sm2(lost))
	restored := newKey(hsm.AES256)
	restored.Primary.ID, restored.Primary.Fingerprint = lost.Primary.ID, lost.Primary.Fingerprint
	if err := s.DeleteKeyMaterial(t.Context(), restored); err != nil {
		t.Fatal(err)
	}
	_, err := s.ImportKeyMaterial(t.Context(), request(t, restored, old, wrapping.SM2PKE, material))
	wantError(t, err, kms.InvalidImportToken)
	own := s.parameters(t, sm2(restored))
	_, err = s.ImportKeyMaterial(t.Context(), request(t, restored, own, wrapping.SM2PKE, random(32)))
	wantError(t, err, kms.InvalidKeyMaterial)
	if _, err := s.ImportKeyMaterial(t.Context(), request(t, restored, own, wrapping.SM2PKE, material)); err != nil {
		t.Fatal(err)
	}
	restored.State = kms.StateEnabled
	if err := s.VerifyDataKey(t.Context(), restored, blob, nil); err != nil {
		t.Errorf("a data key from before: %v", err)
	}
}

// The namespace of a request is the only proof of whose key it is.
func TestImportKeyMaterial_versionThatTheModuleHasForAnotherNamespace_isRefused(t *testing.T) {
	t.Parallel()
	s := newService(t)
	lost, material := s.enabled(t, hsm.AES256)
	other := newKey(hsm.AES256)
	other.Namespace = "team-b"
	other.Primary.ID, other.Primary.Fingerprint = lost.Primary.ID, lost.Primary.Fingerprint
	own := s.parameters(t, sm2(other))
	_, err := s.ImportKeyMaterial(t.Context(), request(t, other, own, wrapping.SM2PKE, random(32)))
	wantError(t, err, kms.InvalidKeyMaterial)
	_, err = s.ImportKeyMaterial(t.Context(), request(t, other, own, wrapping.SM2PKE, material))
	wantError(t, err, kms.ForbiddenNoPermission, "imported from a namespace with another name")
	if found, err := s.module.FindKey(t.Context(), lost.Primary.ID); err != nil || found.Owner.Namespace != "team-a" {
		t.Errorf("the key in the module is %+v, %v", found, err)
	}
}

func TestImportKeyMaterial_ofALostKey_restoresTheVersionInAnotherModule(t *testing.T) {
	t.Parallel()
	s, s2 := newService(t), newService(t)
	lost, material := s.enabled(t, hsm.AES256)
	blob := s.dataKey(t, lost, nil)
	restored := newKey(hsm.AES256)
	restored.Name, restored.Primary.ID, restored.Primary.Fingerprint = "restored", lost.Primary.ID, lost.Primary.Fingerprint
	own := s2.parameters(t, sm2(restored))
	_, err := s2.ImportKeyMaterial(t.Context(), request(t, restored, own, wrapping.SM2PKE, random(32)))
	wantError(t, err, kms.InvalidKeyMaterial)
	if _, err := s2.ImportKeyMaterial(t.Context(), request(t, restored, own, wrapping.SM2PKE, material)); err != nil {
		t.Fatal(err)
	}
	restored.State = kms.StateEnabled
	if err := s2.VerifyDataKey(t.Context(), restored, blob, nil); err != nil {
		t.Errorf("a data key from before the loss: %v", err)
	}
}

func TestKeysByName_findsWhatAFormerObjectImported(t *testing.T) {
	t.Parallel()
	s := newService(t)
	pair, err := s.module.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{ID: uuid.New(), Owner: uuid.New(), Spec: wrapping.ECSM2, NotAfter: s.clock.Now()})
	if err != nil {
		t.Fatal(err)
	}
	imported := func(spec hsm.KeySpec, change func(*hsm.Owner)) uuid.UUID {
		owner := hsm.Owner{Namespace: "team-a", Name: "payments", Origin: hsm.OriginImported, Number: 1, KeyID: uuid.New()}
		change(&owner)
		id := uuid.New()
		if _, err := s.module.ImportKey(t.Context(), hsm.ImportRequest{
			KeyVersionID: id, Spec: spec, WrappingKey: pair.ID, Algorithm: wrapping.SM2PKE, Owner: owner,
			EncryptedMaterial: wrap(t, hsmtest.PublicKey(t, pair), wrapping.SM2PKE, random(spec.Len())),
		}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	want := []string{imported(hsm.AES256, func(*hsm.Owner) {}).String(), imported(hsm.AES256, func(*hsm.Owner) {}).String()}
	imported(hsm.AES128, func(*hsm.Owner) {})
	imported(hsm.AES256, func(o *hsm.Owner) { o.Namespace = "team-b" })
	imported(hsm.AES256, func(o *hsm.Owner) { o.Name = "payment" })
	imported(hsm.AES256, func(o *hsm.Owner) { o.Origin = hsm.OriginGenerated })
	imported(hsm.AES256, func(o *hsm.Owner) { *o = hsm.Owner{Namespace: "team-a"} }) // as early versions stored it
	imported(hsm.AES256, func(o *hsm.Owner) { *o = hsm.Owner{} })

	var got []string
	keys, err := s.KeysByName(t.Context(), newKey(hsm.AES256))
	for _, key := range keys {
		got = append(got, key.KeyVersionID.String())
	}
	if slices.Sort(want); err != nil || !slices.Equal(got, want) {
		t.Errorf("KeysByName = %v, %v; want %v", got, err, want)
	}
}
