package controllers_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// generatedKey is a key in the store of the test's namespace.
func generatedKey(name string, change ...func(*v1alpha1.GeneratedKeySpec)) *v1alpha1.GeneratedKey {
	key := &v1alpha1.GeneratedKey{
		ObjectMeta: named(name),
		Spec: v1alpha1.GeneratedKeySpec{
			KeyStoreRef: v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "store"}, KeySpec: v1alpha1.KeySpec(hsm.AES256),
		},
	}
	for _, c := range change {
		c(&key.Spec)
	}
	return key
}

func rotatedEvery(interval string) func(*v1alpha1.GeneratedKeySpec) {
	return func(s *v1alpha1.GeneratedKeySpec) { s.Rotation = &v1alpha1.RotationSpec{Interval: interval} }
}

func generatedSpec(spec hsm.KeySpec) func(*v1alpha1.GeneratedKeySpec) {
	return func(s *v1alpha1.GeneratedKeySpec) { s.KeySpec = v1alpha1.KeySpec(spec) }
}

func generatedWith(policy v1alpha1.DeletionPolicy) func(*v1alpha1.GeneratedKeySpec) {
	return func(s *v1alpha1.GeneratedKeySpec) { s.DeletionPolicy = policy }
}

// underGenerated puts a data key under a GeneratedKey.
func underGenerated(name string) func(*v1alpha1.DataKeySpec) {
	return func(s *v1alpha1.DataKeySpec) {
		s.KeyRef = v1alpha1.KeyReference{Kind: "GeneratedKey", Name: v1alpha1.ObjectName(name)}
	}
}

// generated makes a key and waits until it is Enabled.
func (o *operator) generated(t testing.TB, name string, change ...func(*v1alpha1.GeneratedKeySpec)) *v1alpha1.GeneratedKey {
	t.Helper()
	key := generatedKey(name, change...)
	o.Make(t, key)
	o.Ready(t, key)
	if key.Status.KeyState != "Enabled" || len(key.Status.Versions) != 1 {
		t.Fatalf("the key is %s with %d versions", key.Status.KeyState, len(key.Status.Versions))
	}
	return key
}

// rotate asks for a rotation and waits until it is done.
func (o *operator) rotate(t testing.TB, key *v1alpha1.GeneratedKey, asked string) {
	t.Helper()
	o.Read(t, key)
	versions := len(key.Status.Versions)
	o.Annotate(t, key, v1alpha1.AnnotationRotate, asked)
	o.hasVersions(t, key, versions+1)
}

// hasVersions waits until a key is Ready with that many versions, the last of which is the primary one.
func (o *operator) hasVersions(t testing.TB, key *v1alpha1.GeneratedKey, n int) {
	t.Helper()
	o.Until(t, key, func() string {
		if len(key.Status.Versions) != n {
			return "the key has other versions: " + harness.JSON(key.Status)
		}
		return ""
	})
	o.Ready(t, key)
	for i, v := range key.Status.Versions {
		state := v1alpha1.VersionActive
		if i == n-1 {
			state = v1alpha1.VersionPrimary
		}
		if int(v.Number) != i+1 || v.State != state || (v.KeyVersionID == key.Status.PrimaryVersion) != (i == n-1) {
			t.Errorf("the versions are %s, and %s is primary", harness.JSON(key.Status.Versions), key.Status.PrimaryVersion)
		}
	}
}

// versionsInModule are the versions of a key that the module has.
func (o *operator) versionsInModule(t testing.TB, key *v1alpha1.GeneratedKey) []uuid.UUID {
	t.Helper()
	keys, err := o.Module(t).Module.ListKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []uuid.UUID
	for _, k := range keys {
		if k.Owner.KeyID.String() == string(key.UID) {
			ids = append(ids, k.KeyVersionID)
		}
	}
	return ids
}
