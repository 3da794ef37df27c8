package controllers_test

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// A version that is generated twice, or whose data keys are lost, cannot be made again. So the operator is killed between every
// two of its outside effects of a generated key's life: its generation, its rotation, the re-encryption of what is under it, and
// its deletion.
func TestGeneratedKey_operatorKilledAfterEachEffect_losesNothing(t *testing.T) {
	t.Parallel()
	t.Run(onSoftHSM, func(t *testing.T) {
		token := ownToken(t)
		m := startMortal(t, token)
		m.givePIN(t, m.Namespace, token.PIN)
		store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: tokenSpec(onSoftHSM, token.Label)}
		m.Make(t, store)
		m.Ready(t, store)
		m.killedInALife(t, 0)
	})
	t.Run(onSoftware, func(t *testing.T) {
		m := startMortal(t, tokens.Token{})
		m.store(t, onSoftware)
		m.killedInALife(t, 1)
	})
}

// killedInALife tells all stories; records are how many the store writes for each version.
func (m *mortal) killedInALife(t *testing.T, records int) {
	t.Helper()
	deleted := generatedWith(v1alpha1.DeletionDelete)
	// A finalizer, the module, the status.
	m.killedAfterEach(t, "generation", 3+records, func(name string) story {
		key := generatedKey(name, deleted)
		return story{
			object: key,
			act:    func() { m.Make(t, key) },
			ended:  m.endsAs(t, key, v1alpha1.ReasonSucceeded),
			check:  func() { m.hasJust(t, key, 1); m.removes(t, key) },
		}
	})
	// The module, the status.
	m.killedAfterEach(t, "rotation", 2+records, func(name string) story {
		key := m.generated(t, name, deleted)
		return story{
			object: key,
			act:    func() { m.Annotate(t, key, v1alpha1.AnnotationRotate, "now") },
			ended:  func() string { return m.versions(t, key, 2) },
			check:  func() { m.hasJust(t, key, 2); m.removes(t, key) },
		}
	})
	// The rotation, and then the module, the tag, the Secret, the status.
	m.killedAfterEach(t, "reencryption", 6+records, func(name string) story { return m.reencrypts(t, m.generated(t, name, deleted)) })
	// Each of two versions and the next one, the finalizer.
	m.killedAfterEach(t, "end", 4, func(name string) story {
		key := m.generated(t, name, deleted)
		m.rotate(t, key, "now")
		return story{
			act: func() { m.Remove(t, key) },
			ended: func() string {
				err := m.Get(t.Context(), client.ObjectKeyFromObject(key), key.DeepCopy())
				if client.IgnoreNotFound(err) != nil {
					t.Fatal(err)
				}
				if err == nil {
					return key.Name + " is still there"
				}
				return ""
			},
			check: func() { m.hasNone(t, key) },
		}
	})
	m.noOrphans(t, m.token)
}

// reencrypts is the story of a data key that follows a rotation. Whenever the operator dies, its Secret has a blob that opens.
func (m *mortal) reencrypts(t *testing.T, key *v1alpha1.GeneratedKey) story {
	k := m.dataKey(t, key.Name, underGenerated(key.Name), onRotation)
	plain := m.dataKeyBytes(t, k)
	former := *k.Status.DeepCopy()
	return story{
		object: k,
		act:    func() { m.Annotate(t, key, v1alpha1.AnnotationRotate, "now") },
		ended: func() string {
			if problem := m.versions(t, key, 2); problem != "" {
				return problem
			}
			if m.Read(t, k); k.Status.KeyVersionID != key.Status.PrimaryVersion {
				return "the data key is under " + k.Status.KeyVersionID
			}
			return m.endsAs(t, k, v1alpha1.ReasonSucceeded)()
		},
		died: func() {
			s := m.secretOf(t, k.Name)
			if string(s.Data["ciphertextBlob"]) != former.CiphertextBlob && string(s.Data["previousCiphertextBlob"]) != former.CiphertextBlob {
				t.Errorf("the Secret of %s has not the blob that opens: %q", k.Name, s.Data)
			}
		},
		check: func() {
			m.movedTo(t, k, key.Status.PrimaryVersion, former)
			e := m.export(t, k.Name+"-again", ofDataKey(k.Name), toBlob(sm2Recipient().public.Base64()), withSM2)
			if !bytes.Equal(m.openExport(t, e, sm2Recipient()), plain) {
				t.Errorf("%s is another data key", k.Name)
			}
			m.hasJust(t, key, 2)
			m.removes(t, key)
		},
	}
}

// versions says whether a key has that many versions and is Ready.
func (m *mortal) versions(t *testing.T, key *v1alpha1.GeneratedKey, n int) string {
	if m.Read(t, key); len(key.Status.Versions) != n {
		return key.Name + " has other versions"
	}
	return m.endsAs(t, key, v1alpha1.ReasonSucceeded)()
}

// hasJust checks that the module has the first versions of a key, as its status says, and no further one.
func (m *mortal) hasJust(t *testing.T, key *v1alpha1.GeneratedKey, n int) {
	t.Helper()
	for number := 1; number <= n+1; number++ {
		found, err := m.Module(t).FindKey(t.Context(), kms.VersionID(uuid.MustParse(string(key.UID)), number))
		switch {
		case number > n && hsm.KindOf(err) != hsm.NotFound:
			t.Errorf("%s has a version %d that it does not know: %v", key.Name, number, err)
		case number <= n && (err != nil || found.Fingerprint.String() != key.Status.Versions[number-1].Fingerprint):
			t.Errorf("version %d of %s is %+v in the module (%v), and its status is %+v", number, key.Name, found, err, key.Status.Versions)
		}
	}
}

func (m *mortal) hasNone(t *testing.T, key *v1alpha1.GeneratedKey) {
	t.Helper()
	for number := 1; number <= 4; number++ {
		if _, err := m.Module(t).FindKey(t.Context(), kms.VersionID(uuid.MustParse(string(key.UID)), number)); hsm.KindOf(err) != hsm.NotFound {
			t.Errorf("version %d of %s is left in the module: %v", number, key.Name, err)
		}
	}
}

func (m *mortal) removes(t *testing.T, key *v1alpha1.GeneratedKey) {
	t.Helper()
	m.Remove(t, key)
	m.Gone(t, key)
	m.hasNone(t, key)
}
