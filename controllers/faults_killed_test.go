package controllers_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// story is one thing that happens to an object of its own: what a user does, how it ends when no process is killed,
// and what must be so at the end whenever the operator was killed. died is called while it is dead.
type story struct {
	object client.Object // none where it is deleted in the end
	act    func()
	ended  func() string
	died   func()
	check  func()
}

// killedAfterEach lets a story happen again and again, and kills the operator before its first effect, right
// after its first one, right after its second one, and so on, until the story ends before it is killed. Each
// time another operator goes on.
func (m *mortal) killedAfterEach(t *testing.T, name string, atLeast int, tell func(name string) story) {
	t.Helper()
	for n := 0; ; n++ {
		s := tell(fmt.Sprintf("%s-%d", name, n))
		m.arm(t, n)
		s.act()
		harness.Eventually(t, func() string {
			if m.isDead() {
				return ""
			}
			return s.ended()
		})
		killed, effects := m.disarm(t)
		if killed {
			if s.died != nil {
				s.died()
			}
			m.begin(t)
			harness.Eventually(t, s.ended)
			m.settled(t, s.object)
		}
		if s.check(); t.Failed() {
			t.Fatalf("%s: killed after %d effects", name, n)
		}
		if !killed {
			if len(effects) < atLeast {
				t.Errorf("%s has the effects %q, fewer than the %d that it should be killed after", name, effects, atLeast)
			}
			return
		}
	}
}

// endsAs asks whether an object is Ready or waits as it should.
func (o *operator) endsAs(t testing.TB, object client.Object, reason string) func() string {
	return func() string {
		o.Read(t, object)
		conditions, observed := harness.StatusOf(object)
		for _, c := range conditions {
			if c.Type == v1alpha1.ConditionReady && c.Reason == reason && observed == object.GetGeneration() {
				return ""
			}
		}
		return fmt.Sprintf("%T %s is not %s yet: %s", object, object.GetName(), reason, harness.JSON(conditions))
	}
}

// The operator is killed with SIGKILL between every two of its outside effects, which another process takes up.
//
// Its processes are this test again, and become what their environment says.
func TestOperator_killedAfterEachEffect_goesOnWhereItWas(t *testing.T) {
	if beChild(t) {
		return
	}
	t.Parallel()
	t.Run(onSoftHSM, func(t *testing.T) {
		token := ownToken(t)
		m := startMortal(t, token)
		m.givePIN(t, m.Namespace, token.PIN)
		store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: tokenSpec(onSoftHSM, token.Label)}
		m.Make(t, store)
		m.Ready(t, store)
		m.killedInEachStory(t, under("RSA_2048", "RSAES_OAEP_SHA_1"), 0)
	})
	t.Run(onSoftware, func(t *testing.T) {
		m := startMortal(t, tokens.Token{})
		m.store(t, onSoftware)
		m.killedInEachStory(t, under("EC_SM2", "SM2PKE"), 1)
	})
}

// killedInEachStory tells all stories; records are how many the store writes for each key and pair.
func (m *mortal) killedInEachStory(t *testing.T, parameters func(*v1alpha1.ImportedKeySpec), records int) {
	t.Helper()
	key := m.enabledKey(t, "key", nil, parameters)
	plain := m.dataKeyBytes(t, m.dataKey(t, "dek"))
	deleted := withDeletionPolicy(v1alpha1.DeletionDelete)

	// The parameters: a finalizer, the pair, its token's MAC, the status.
	m.killedAfterEach(t, "parameters", 4+records, func(name string) story {
		return m.publishes(t, importedKey(name, parameters, deleted))
	})
	// The import: the token's MAC, the module, the status.
	m.killedAfterEach(t, "import", 3+records, func(name string) story {
		return m.imports(t, m.pendingKey(t, name, parameters, deleted))
	})
	// The material is deleted: the module, the status.
	material := m.material(32)
	m.killedAfterEach(t, "material", 2+records, func(name string) story {
		return m.deletesMaterial(t, m.enabledKey(t, name, material, parameters, deleted), material)
	})
	// The deletion: the pair, the key, the finalizer.
	m.killedAfterEach(t, "deletion", 3+2*records, func(name string) story {
		return m.deletes(t, m.enabledKey(t, name, nil, parameters, deleted))
	})
	// The data key: the module, the Secret, the mark on the object, the status.
	m.killedAfterEach(t, "generation", 4, func(name string) story {
		return m.generates(t, newDataKey(name))
	})
	// The export: the module, the Secret, the status.
	m.killedAfterEach(t, "export", 3, func(name string) story {
		return m.exports(t, newExport(name, withRSA("RSAES_OAEP_SHA_1")), plain)
	})
	m.noOrphans(t, m.token, key)
}

func (m *mortal) publishes(t *testing.T, key *v1alpha1.ImportedKey) story {
	return story{
		object: key,
		act:    func() { m.Make(t, key) },
		ended:  m.endsAs(t, key, v1alpha1.ReasonPendingImport),
		check: func() {
			pairs := m.pairs(t, key)
			if len(pairs) != 1 || pairs[0].ID != publishedPair(t, key) {
				t.Errorf("%s has %d pairs, or publishes another one", key.Name, len(pairs))
			}
			m.Remove(t, key)
			m.Gone(t, key)
		},
	}
}

func (m *mortal) imports(t *testing.T, key *v1alpha1.ImportedKey) story {
	p, material := key.Status.ImportParameters, m.material(32)
	wrapped := inline(wrapUnder(t, p, material), p.ImportToken)
	return story{
		object: key,
		act:    func() { m.give(t, key, wrapped) },
		ended:  m.endsAs(t, key, v1alpha1.ReasonSucceeded),
		check: func() {
			want, err := hsm.FingerprintOf(hsm.AES256, material)
			if err != nil {
				t.Fatal(err)
			}
			found, err := m.Module(t).FindKey(t.Context(), uuid.MustParse(key.Status.KeyVersionID))
			if err != nil || found.Fingerprint != want || key.Status.MaterialFingerprint != want.String() {
				t.Errorf("%s is %+v in the module (%v) and says it is %s", key.Name, found, err, key.Status.MaterialFingerprint)
			}
			m.Remove(t, key)
			m.Gone(t, key)
		},
	}
}

func (m *mortal) deletesMaterial(t *testing.T, key *v1alpha1.ImportedKey, material []byte) story {
	return story{
		object: key,
		act:    func() { m.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "please") },
		ended:  m.endsAs(t, key, v1alpha1.ReasonPendingImport),
		check: func() {
			if there := m.inModule(t, key); there || kms.KeyState(key.Status.KeyState) != kms.StatePendingImport {
				t.Errorf("%s is in the module: %t, and %s", key.Name, there, key.Status.KeyState)
			}
			m.importsAgain(t, key, "1", material, noEnd)
			m.Remove(t, key)
			m.Gone(t, key)
		},
	}
}

func (m *mortal) deletes(t *testing.T, key *v1alpha1.ImportedKey) story {
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
		check: func() {
			if m.inModule(t, key) || len(m.pairs(t, key)) > 0 {
				t.Errorf("something of %s is left in the module", key.Name)
			}
		},
	}
}

func (m *mortal) generates(t *testing.T, k *v1alpha1.DataKey) story {
	kept := keptSecret{o: m.operator, t: t, name: k.Name}
	return story{
		object: k,
		act:    func() { m.Make(t, k) },
		ended:  m.endsAs(t, k, v1alpha1.ReasonSucceeded),
		died:   kept.remember,
		check: func() {
			kept.check()
			m.checkSecretOf(t, k, k.Name)
			if n := len(m.dataKeyBytes(t, k)); n != 32 {
				t.Errorf("%s has %d bytes", k.Name, n)
			}
		},
	}
}

func (m *mortal) exports(t *testing.T, e *v1alpha1.ExportedDataKey, plain []byte) story {
	kept := keptSecret{o: m.operator, t: t, name: e.Name}
	return story{
		object: e,
		act:    func() { m.Make(t, e) },
		ended:  m.endsAs(t, e, v1alpha1.ReasonSucceeded),
		died:   kept.remember,
		check: func() {
			kept.check()
			m.checkExport(t, e, rsaRecipient())
			if !bytes.Equal(m.openExport(t, e, rsaRecipient()), plain) {
				t.Errorf("%s is another data key", e.Name)
			}
		},
	}
}

// keptSecret is a Secret as it was when the operator died: what was kept once is never replaced.
type keptSecret struct {
	o    *operator
	t    testing.TB
	name string
	was  *corev1.Secret
}

func (k *keptSecret) remember() {
	s := &corev1.Secret{}
	err := k.o.Get(k.t.Context(), client.ObjectKey{Namespace: k.o.Namespace, Name: k.name}, s)
	if client.IgnoreNotFound(err) != nil {
		k.t.Fatal(err)
	}
	if err == nil {
		k.was = s
	}
}

func (k *keptSecret) check() {
	k.t.Helper()
	if k.was == nil {
		return
	}
	if is := k.o.secretOf(k.t, k.name); is.UID != k.was.UID || !maps.EqualFunc(is.Data, k.was.Data, bytes.Equal) {
		k.t.Errorf("the Secret %s holds something else than before", k.name)
	}
}

// labelOf is the label of a key that its object imported.
func labelOf(key *v1alpha1.ImportedKey) string {
	return fmt.Sprintf("keyconvoy:key:%s:%s:%s:%s:Imported:1:%s", key.Status.KeyVersionID, key.Spec.KeySpec, key.Namespace, key.Name, key.UID)
}

// noOrphans checks that the module holds what the ImportedKeys that are left account for, and nothing else.
func (o *operator) noOrphans(t *testing.T, token tokens.Token, keys ...*v1alpha1.ImportedKey) {
	t.Helper()
	var want []string
	for _, key := range keys {
		o.Read(t, key)
		want = append(want, "secret "+labelOf(key))
		for _, pair := range o.pairs(t, key) {
			for _, half := range []string{"private", "public"} {
				want = append(want, fmt.Sprintf("%s keyconvoy:wrapping:%s:%s:%d:%s",
					half, key.UID, key.Spec.ImportParameters.WrappingKeySpec, pair.NotAfter.Unix(), key.Namespace))
			}
		}
	}
	if token.Label == "" {
		// One record for each key and pair, and one for the key of import tokens.
		if n, expected := len(o.sealed(t)), len(keys)+(len(want)-len(keys))/2+1; n != expected {
			t.Errorf("the store holds %d records, want %d", n, expected)
		}
		return
	}
	want = append(want, "secret keyconvoy:import-token")
	slices.Sort(want)
	if got := listToken(t, token); !slices.Equal(got, want) {
		t.Errorf("the token holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What is in a token is listed by a process of its own: the library serves this one's modules.

const (
	listedToken = "KEYCONVOY_TEST_TOKEN"
	listedLine  = "object: "
)

func listToken(t testing.TB, token tokens.Token) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, childTest)
	cmd.Env = append(os.Environ(), append(token.Env, listedToken+"="+token.Path+","+token.Label+","+token.PIN)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("listing the token: %v\n%s", err, out)
	}
	var all []string
	for _, line := range strings.Split(string(out), "\n") {
		if object, ok := strings.CutPrefix(line, listedLine); ok {
			all = append(all, object)
		}
	}
	return all
}

// listGivenToken is what the process of listToken does.
func listGivenToken(t *testing.T, variable string) {
	given := strings.Split(variable, ",")
	for _, object := range tokens.Objects(t, tokens.Token{Path: given[0], Label: given[1], PIN: given[2]}) {
		fmt.Println(listedLine + object)
	}
}
