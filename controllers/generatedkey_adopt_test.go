package controllers_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func adoptsVersions(of *v1alpha1.GeneratedKey) func(*v1alpha1.GeneratedKeySpec) {
	return func(s *v1alpha1.GeneratedKeySpec) {
		s.Adopt = &v1alpha1.AdoptVersionsSpec{Type: v1alpha1.AdoptByVersion}
		for _, v := range of.Status.Versions { // in any order
			s.Adopt.KeyVersionIDs = append([]v1alpha1.KeyVersionID{v1alpha1.KeyVersionID(v.KeyVersionID)}, s.Adopt.KeyVersionIDs...)
		}
	}
}

func adoptsVersionsByName(s *v1alpha1.GeneratedKeySpec) {
	s.Adopt = &v1alpha1.AdoptVersionsSpec{Type: v1alpha1.AdoptByName}
}

// fingerprints are those of a key's versions, in their order.
func fingerprints(key *v1alpha1.GeneratedKey) (all []string) {
	for _, v := range key.Status.Versions {
		all = append(all, fmt.Sprint(v.Number, " ", v.Fingerprint))
	}
	return all
}

// A cluster is lost. The objects are restored without their statuses, and the module still has the versions.
func TestGeneratedKey_adopted_inAnotherCluster_opensWhatItMade(t *testing.T) {
	t.Parallel()
	env := testenv.Another(t)
	for _, adopt := range map[string]func(*v1alpha1.GeneratedKey) func(*v1alpha1.GeneratedKeySpec){
		"by version": adoptsVersions,
		"by name":    func(*v1alpha1.GeneratedKey) func(*v1alpha1.GeneratedKeySpec) { return adoptsVersionsByName },
	} {
		for _, kind := range []string{onSoftHSM, onSoftware} {
			t.Run(kind, func(t *testing.T) {
				o := startOperator(t)
				o.store(t, kind)
				key := o.generated(t, "key", rotatedEvery("2160h"))
				plain := map[string][]byte{}
				for i := range 3 {
					if i > 0 {
						o.rotate(t, key, fmt.Sprint(i))
					}
					k := o.dataKey(t, fmt.Sprint("dek-", i), underGenerated("key"))
					plain[k.Name] = o.dataKeyBytes(t, k)
				}
				was := key.DeepCopy()
				saved := o.backUp(t)
				o.Stop(t) // and with it the cluster

				o2 := startOperatorOn(t, env, restoredFrom(t, env, o))
				for _, object := range saved {
					if k, ok := object.(*v1alpha1.GeneratedKey); ok {
						adopt(was)(&k.Spec)
					}
					if err := o2.Create(t.Context(), object); err != nil {
						t.Fatal(err)
					}
				}
				restored := &v1alpha1.GeneratedKey{ObjectMeta: named("key")}
				restored.Namespace = o2.Namespace
				o2.Ready(t, restored)
				o2.Event(t, restored, "KeyAdopted")
				if got, want := fmt.Sprint(fingerprints(restored)), fmt.Sprint(fingerprints(was)); got != want || restored.Status.PrimaryVersion != was.Status.PrimaryVersion {
					t.Errorf("the versions are %s, and were %s", got, want)
				}
				for name, want := range plain {
					k := &v1alpha1.DataKey{ObjectMeta: named(name)}
					k.Namespace = o2.Namespace
					o2.Ready(t, k)
					if !bytes.Equal(o2.dataKeyBytes(t, k), want) {
						t.Errorf("%s is another data key", name)
					}
				}
				o2.rotate(t, restored, "again")
				o2.Change(t, restored, func() { restored.Spec.DeletionPolicy = v1alpha1.DeletionDelete })
				o2.Remove(t, restored)
				o2.Gone(t, restored)
				for _, v := range restored.Status.Versions {
					if o2.holds(t, v.KeyVersionID) {
						t.Errorf("version %d is still in the module", v.Number)
					}
				}
			})
		}
	}
}

// holds says whether the module has a key version.
func (o *operator) holds(t testing.TB, version string) bool {
	t.Helper()
	keys, err := o.Module(t).Module.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if k.KeyVersionID.String() == version {
			return true
		}
	}
	return false
}

// remade deletes a key, which stays in the module, and makes one of its name again.
func (o *operator) remade(t testing.TB, key *v1alpha1.GeneratedKey, change ...func(*v1alpha1.GeneratedKeySpec)) *v1alpha1.GeneratedKey {
	t.Helper()
	o.Remove(t, key)
	o.Gone(t, key)
	again := generatedKey(key.Name, change...)
	o.Make(t, again)
	return again
}

// What Argo CD pruned and applies again is the same key.
func TestGeneratedKey_adoptsByName_whatAFormerObjectLeft(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	first := o.generated(t, "key", adoptsVersionsByName) // there is none yet, so it is a new key
	o.rotate(t, first, "now")
	was := fmt.Sprint(fingerprints(first))
	second := o.remade(t, first, adoptsVersionsByName)
	o.hasVersions(t, second, 2)
	o.rotate(t, second, "once more") // the third version is the new object's
	third := o.remade(t, second, adoptsVersionsByName)
	o.hasVersions(t, third, 3)
	for _, k := range o.ownersOf(t, third) {
		if k.KeyID.String() != string(first.UID) {
			t.Errorf("version %d is stored with the key %s, not %s", k.Number, k.KeyID, first.UID)
		}
	}
	if got := fmt.Sprint(fingerprints(third)[:2]); got != was {
		t.Errorf("the versions are %s, and were %s", got, was)
	}
	if third.Status.Versions[2].Custody != v1alpha1.CustodyUnknown || third.Status.KeyID != string(third.UID) {
		t.Errorf("the status is %s", harness.JSON(third.Status))
	}
}

// ownersOf are the owners of a key's versions, as the module has them.
func (o *operator) ownersOf(t testing.TB, key *v1alpha1.GeneratedKey) (owners []hsm.Owner) {
	t.Helper()
	for _, v := range key.Status.Versions {
		found, err := o.Module(t).Module.FindKey(t.Context(), uuid.MustParse(v.KeyVersionID))
		if err != nil {
			t.Fatal(err)
		}
		owners = append(owners, found.Owner)
	}
	return owners
}

// A version that an object of another name generated belongs to the key, too.
func TestGeneratedKey_adoptsByName_keyThatAnotherNameRotated_allVersions(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	first := o.generated(t, "key")
	o.Remove(t, first)
	o.Gone(t, first)
	other := o.generated(t, "other", adoptsVersions(first))
	o.rotate(t, other, "now")
	again := generatedKey("key", adoptsVersionsByName)
	o.Make(t, again)
	o.Waits(t, again, v1alpha1.ReasonKeyVersionTaken)
	o.Remove(t, other)
	o.Gone(t, other)
	o.hasVersions(t, again, 2)
}

func TestGeneratedKey_adoptsByName_keyWithoutAVersion_waitsForIt(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	first := o.generated(t, "key")
	o.rotate(t, first, "now")
	if err := o.Module(t).Module.DestroyKey(t.Context(), uuid.MustParse(first.Status.Versions[0].KeyVersionID)); err != nil {
		t.Fatal(err)
	}
	again := o.remade(t, first, adoptsVersionsByName)
	o.Waits(t, again, kms.ForbiddenKeyVersionNotFound.Reason(), "does not have version 1")
}

// Anyone who has the token's PIN can write labels. The status has room for the maximum of versions only.
func TestGeneratedKey_adoptsByName_keyWithTooManyVersions_isNotAdopted(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	first := o.generated(t, "key")
	owner := o.ownersOf(t, first)[0]
	for owner.Number = 2; owner.Number <= kms.MaxVersions+1; owner.Number++ {
		req := hsm.GenerateKeyRequest{KeyVersionID: kms.VersionID(owner.KeyID, owner.Number), Spec: hsm.AES256, Owner: owner}
		if _, err := o.Module(t).Module.GenerateKey(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	again := o.remade(t, first, adoptsVersionsByName)
	o.Waits(t, again, kms.UnsupportedOperation.Reason(), "65 versions", "at most 64")
}

func TestImportedKey_adoptsWhatAGeneratedKeyHolds_isWokenWhenThatIsDeleted(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	holder := o.generated(t, "holder")
	key := importedKey("key")
	key.Spec.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: holder.Status.PrimaryVersion}
	o.Make(t, key)
	o.Waits(t, key, v1alpha1.ReasonKeyVersionTaken)
	o.Remove(t, holder)
	o.Gone(t, holder)
	o.Waits(t, key, kms.ForbiddenKeyVersionNotFound.Reason())
}

func TestGeneratedKey_adoptsByName_ofSeveralFormerKeysNone(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	first := o.generated(t, "key")
	second := o.remade(t, first) // another key
	o.Ready(t, second)
	third := o.remade(t, second, adoptsVersionsByName)
	o.Waits(t, third, v1alpha1.ReasonSeveralFormerKeys, "several former keys", first.Status.KeyID, "number of versions 1: ", first.Status.PrimaryVersion, second.Status.PrimaryVersion)
	fourth := o.remade(t, third, adoptsVersions(first))
	o.hasVersions(t, fourth, 1)
	if fourth.Status.PrimaryVersion != first.Status.PrimaryVersion {
		t.Errorf("it adopted %s", fourth.Status.PrimaryVersion)
	}
}

func TestGeneratedKey_adoptsVersions_ofWhichItMayNotHaveOne(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	holder, free, other := o.generated(t, "holder"), o.generated(t, "free"), o.generated(t, "other")
	o.rotate(t, other, "now")
	for _, key := range []*v1alpha1.GeneratedKey{free, other} {
		o.Remove(t, key)
		o.Gone(t, key)
	}
	for sentence, c := range map[string]struct {
		versions []string
		spec     v1alpha1.KeySpec
		reason   string
		says     string
	}{
		"but the last one":    {[]string{other.Status.Versions[0].KeyVersionID}, "AES_256", kms.InvalidParameter.Reason(), "also has version 2"},
		"but the first one":   {[]string{other.Status.Versions[1].KeyVersionID}, "AES_256", kms.InvalidParameter.Reason(), "Version 1 of the key is not among them"},
		"of two keys":         {[]string{free.Status.PrimaryVersion, other.Status.PrimaryVersion}, "AES_256", kms.InvalidParameter.Reason(), "are versions of different keys"},
		"that another holds":  {[]string{free.Status.PrimaryVersion, holder.Status.PrimaryVersion}, "AES_256", v1alpha1.ReasonKeyVersionTaken, "Another object"},
		"that does not exist": {[]string{free.Status.PrimaryVersion, "00000000-0000-5000-8000-000000000000"}, "AES_256", kms.ForbiddenKeyVersionNotFound.Reason(), "that was generated for"},
		"that is imported":    {[]string{o.key(t).Status.KeyVersionID}, "AES_256", v1alpha1.ReasonKeyVersionTaken, "Another object"},
		"of another key type": {[]string{free.Status.PrimaryVersion}, "SM4", kms.InvalidParameter.Reason(), "AES_256, not SM4"},
	} {
		key := generatedKey("adopts", func(s *v1alpha1.GeneratedKeySpec) {
			s.KeySpec, s.DeletionPolicy = c.spec, v1alpha1.DeletionDelete
			s.Adopt = &v1alpha1.AdoptVersionsSpec{Type: v1alpha1.AdoptByVersion}
			for _, v := range c.versions {
				s.Adopt.KeyVersionIDs = append(s.Adopt.KeyVersionIDs, v1alpha1.KeyVersionID(v))
			}
		})
		o.Make(t, key)
		harness.Eventually(t, o.endsAs(t, key, c.reason))
		if conditions := harness.JSON(key.Status.Conditions); !bytes.Contains([]byte(conditions), []byte(c.says)) {
			t.Errorf("versions %s: %s does not say %q", sentence, conditions, c.says)
		}
		o.Remove(t, key)
		o.Gone(t, key)
		for _, v := range c.versions[:1] {
			if !o.holds(t, v) {
				t.Errorf("versions %s: an object that adopted nothing destroyed %s", sentence, v)
			}
		}
	}
}

// A user who may create keys and DataKeys, but may not use the victim's key, asks to adopt its version, alone or after a version of
// their own. While the key only asks, nothing is generated, opened or moved with it.
func TestGeneratedKey_adoptsAVersionThatAnotherHolds_isOfNoUse(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	victim, own := o.generated(t, "victim"), o.generated(t, "own")
	blob := o.dataKey(t, "dek", underGenerated("victim")).Status.CiphertextBlob
	o.Remove(t, own)
	o.Gone(t, own)
	for name, versions := range map[string][]string{
		"alone": {victim.Status.PrimaryVersion}, "beside": {own.Status.PrimaryVersion, victim.Status.PrimaryVersion},
	} {
		thief := generatedKey(name, func(s *v1alpha1.GeneratedKeySpec) {
			s.Adopt = &v1alpha1.AdoptVersionsSpec{Type: v1alpha1.AdoptByVersion}
			for _, v := range versions {
				s.Adopt.KeyVersionIDs = append(s.Adopt.KeyVersionIDs, v1alpha1.KeyVersionID(v))
			}
		})
		o.Make(t, thief)
		harness.Eventually(t, o.endsAs(t, thief, v1alpha1.ReasonKeyVersionTaken))
		o.ForgetCounts()
		moves := newDataKey(name+"-moves", underGenerated(name), onRotation, withBlob(blob))
		generates := newDataKey(name+"-generates", underGenerated(name))
		exports := newExport(name+"-exports", ofBlobUnder("", name, blob, nil), toBlob(sm2Recipient().public.Base64()), withSM2)
		exports.Spec.KeyRef.Kind = "GeneratedKey"
		o.Make(t, moves, generates, exports)
		for _, k := range []*v1alpha1.DataKey{moves, generates} {
			o.Waits(t, k, kms.RejectedPendingImport.Reason(), "GeneratedKey "+o.Namespace+"/"+name+" asks to adopt", "See its conditions")
			if k.Status.CiphertextBlob != "" {
				t.Errorf("%s has the data key %s", k.Name, harness.JSON(k.Status))
			}
		}
		o.Waits(t, exports, kms.RejectedPendingImport.Reason())
		for _, call := range []string{"GenerateDataKey", "VerifyDataKey", "ReencryptDataKey", "ExportDataKey"} {
			if n := o.Calls()[call]; n != 0 {
				t.Errorf("%s: the module was asked %d times for %s", name, n, call)
			}
		}
	}
}
