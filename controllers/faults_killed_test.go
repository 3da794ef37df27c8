package controllers_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/kms"
)

// fuse kills an operator after so many of its outside effects: calls that change the module or make something
// in it, and writes to the API server. Nothing that it tries after that gets out, nor is anything answered.
type fuse struct {
	mu      sync.Mutex
	armed   bool
	left    int
	dead    bool
	effects []string // since it was armed
	module  *hsmtest.Recorder
}

var errKilled = errors.New("the operator is dead")

// effects of the module. ExportDataKey changes nothing in it, but what it makes is as good as an effect.
var moduleEffects = []string{
	"Authenticate", "CreateWrappingKey", "DestroyWrappingKey", "ImportKey", "DestroyKey", "GenerateDataKey", "ExportDataKey",
}

func (f *fuse) options() []option {
	return []option{
		withModules(func(r *hsmtest.Recorder) {
			f.mu.Lock()
			f.module = r
			f.mu.Unlock()
			for _, method := range moduleEffects {
				r.After(method, func() { f.effect(method) })
			}
		}),
		withConfig(func(cfg *rest.Config) {
			cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					if f.isDead() {
						return nil, errKilled
					}
					response, err := next.RoundTrip(r)
					if r.Method != http.MethodGet && !strings.Contains(r.URL.Path, "/events") {
						f.effect(r.Method + " " + r.URL.Path[strings.LastIndex(r.URL.Path, "namespaces/")+len("namespaces/"):])
					}
					return response, err
				})
			})
		}),
	}
}

func (f *fuse) isDead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// arm lets n more effects through.
func (f *fuse) arm(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed, f.left, f.effects = true, n, nil
	f.burn()
}

func (f *fuse) effect(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.armed || f.dead {
		return
	}
	f.effects = append(f.effects, what)
	f.left--
	f.burn()
}

func (f *fuse) burn() {
	if f.left > 0 {
		return
	}
	f.dead = true
	for _, method := range append([]string{"FindKey", "ListWrappingKeys", "VerifyDataKey"}, moduleEffects...) {
		f.module.FailAll(method, hsm.Wrap(hsm.Unavailable, errKilled, ""))
	}
}

// disarm says whether the operator was killed, and after which effects. From now on nothing is.
func (f *fuse) disarm() (dead bool, effects []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dead, f.armed, f.dead = f.dead, false, false
	return dead, f.effects
}

// story is one thing that happens to objects of its own: what a user does, how it ends when nobody is killed,
// and what must be so at the end whenever the operator was killed. died is called while it is dead.
type story struct {
	act   func()
	ended func() string
	died  func()
	check func()
}

// killedAfterEach lets a story happen again and again, and kills the operator after its first effect, after its
// second one, and so on, until the story ends before it is killed. Each time it is started again.
func (o *operator) killedAfterEach(t *testing.T, f *fuse, name string, atLeast int, tell func(name string) story) {
	t.Helper()
	for n := 0; ; n++ {
		s := tell(fmt.Sprintf("%s-%d", name, n))
		o.module(t) // it serves
		f.arm(n)
		s.act()
		eventually(t, func() string {
			if f.isDead() {
				return ""
			}
			return s.ended()
		})
		o.stop(t)
		dead, effects := f.disarm()
		if dead && s.died != nil {
			s.died()
		}
		o.start(t)
		eventually(t, s.ended)
		if s.check(); t.Failed() {
			t.Fatalf("%s: killed after %q", name, effects)
		}
		if !dead {
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
		o.read(t, object)
		conditions, observed := statusOf(object)
		for _, c := range conditions {
			if c.Type == v1alpha1.ConditionReady && c.Reason == reason && observed == object.GetGeneration() {
				return ""
			}
		}
		return fmt.Sprintf("%T %s is not %s yet: %s", object, object.GetName(), reason, toJSON(conditions))
	}
}

func TestOperator_killedAfterEachEffect_goesOnWhereItWas(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftHSM, onSoftware} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			var f fuse
			o := startOperator(t, f.options()...)
			var token tokens.Token
			if kind == onSoftHSM {
				token = ownToken(t)
				o.givePIN(t, o.namespace, token.PIN)
				store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: tokenSpec(onSoftHSM, token.Label)}
				o.create(t, store)
				o.ready(t, store)
			} else {
				o.store(t, onSoftware)
			}
			rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
			key := o.enabledKey(t, "key", nil, rsa)
			o.dataKey(t, "dek")

			// The parameters: a finalizer, the token's MAC, the pair, the status.
			o.killedAfterEach(t, &f, "parameters", 4, func(name string) story {
				made := importedKey(name, rsa, withDeletionPolicy(v1alpha1.DeletionDelete))
				return story{
					act:   func() { o.create(t, made) },
					ended: o.endsAs(t, made, v1alpha1.ReasonPendingImport),
					check: func() {
						pairs := o.pairs(t, made)
						if len(pairs) != 1 || pairs[0].PublicKey.Fingerprint() != made.Status.ImportParameters.PublicKeyFingerprint {
							t.Errorf("%s has %d pairs, or publishes another one", name, len(pairs))
						}
						o.remove(t, made)
						o.gone(t, made)
					},
				}
			})
			// The import: the module, the status.
			o.killedAfterEach(t, &f, "import", 2, func(name string) story {
				made := o.pendingKey(t, name, rsa, withDeletionPolicy(v1alpha1.DeletionDelete))
				p, material := made.Status.ImportParameters, o.material(32)
				want, _ := hsm.FingerprintOf(hsm.AES256, material)
				wrapped := inline(wrapUnder(t, p, material), p.ImportToken)
				return story{
					act:   func() { o.give(t, made, wrapped) },
					ended: o.endsAs(t, made, v1alpha1.ReasonSucceeded),
					check: func() {
						found, err := o.module(t).FindKey(t.Context(), uuid.MustParse(made.Status.KeyVersionID))
						if err != nil || found.Fingerprint != want || made.Status.MaterialFingerprint != want.String() {
							t.Errorf("%s is %+v in the module (%v) and says it is %s", name, found, err, made.Status.MaterialFingerprint)
						}
						o.remove(t, made)
						o.gone(t, made)
					},
				}
			})
			// The material is deleted: the module, the status.
			material := o.material(32)
			o.killedAfterEach(t, &f, "material", 2, func(name string) story {
				made := o.enabledKey(t, name, material, rsa, withDeletionPolicy(v1alpha1.DeletionDelete))
				return story{
					act:   func() { o.annotate(t, made, v1alpha1.AnnotationDeleteKeyMaterial, "please") },
					ended: o.endsAs(t, made, v1alpha1.ReasonPendingImport),
					check: func() {
						if o.inModule(t, made) || kms.KeyState(made.Status.KeyState) != kms.StatePendingImport {
							t.Errorf("%s is in the module: %t, and %s", name, o.inModule(t, made), made.Status.KeyState)
						}
						o.importsAgain(t, made, "1", material, noEnd)
						o.remove(t, made)
						o.gone(t, made)
					},
				}
			})
			// The deletion: the pair, the key, the finalizer.
			o.killedAfterEach(t, &f, "deletion", 3, func(name string) story {
				made := o.enabledKey(t, name, nil, rsa, withDeletionPolicy(v1alpha1.DeletionDelete))
				return story{
					act: func() { o.remove(t, made) },
					ended: func() string {
						err := o.Get(t.Context(), client.ObjectKeyFromObject(made), made.DeepCopy())
						if client.IgnoreNotFound(err) != nil {
							t.Fatal(err)
						}
						if err == nil {
							return name + " is still there"
						}
						return ""
					},
					check: func() {
						if o.inModule(t, made) || len(o.pairs(t, made)) > 0 {
							t.Errorf("something of %s is left in the module", name)
						}
					},
				}
			})
			if kind == onSoftHSM { // on either it is the same: the store keeps nothing of them
				o.killedAfterEachEffectOfDataKeys(t, &f)
			}
			o.noOrphans(t, token, key)
		})
	}
}

func (o *operator) killedAfterEachEffectOfDataKeys(t *testing.T, f *fuse) {
	t.Helper()
	algorithm := withRSA("RSAES_OAEP_SHA_1")
	// The data key: the module, the Secret, the status. What was kept once is kept for ever.
	o.killedAfterEach(t, f, "generation", 3, func(name string) story {
		made := newDataKey(name)
		kept := o.rememberSecret(t, name)
		return story{
			act:   func() { o.create(t, made) },
			ended: o.endsAs(t, made, v1alpha1.ReasonSucceeded),
			died:  kept.remember,
			check: func() { kept.check("ciphertextBlob"); o.checkSecretOf(t, made, name) },
		}
	})
	// The export: the module, the Secret, the status.
	o.killedAfterEach(t, f, "export", 3, func(name string) story {
		made := newExport(name, algorithm)
		kept := o.rememberSecret(t, name)
		return story{
			act:   func() { o.create(t, made) },
			ended: o.endsAs(t, made, v1alpha1.ReasonSucceeded),
			died:  kept.remember,
			check: func() { kept.check("exportedDataKey"); o.checkExport(t, made, rsaRecipient()) },
		}
	})
}

// keptSecret is a Secret as it was when the operator died.
type keptSecret struct {
	o    *operator
	t    testing.TB
	name string
	was  *corev1.Secret
}

func (o *operator) rememberSecret(t testing.TB, name string) *keptSecret {
	return &keptSecret{o: o, t: t, name: name}
}

func (k *keptSecret) remember() {
	s := &corev1.Secret{}
	err := k.o.Get(k.t.Context(), client.ObjectKey{Namespace: k.o.namespace, Name: k.name}, s)
	if client.IgnoreNotFound(err) != nil {
		k.t.Fatal(err)
	}
	if err == nil {
		k.was = s
	}
}

func (k *keptSecret) check(entry string) {
	k.t.Helper()
	if k.was == nil {
		return
	}
	if is := k.o.secretOf(k.t, k.name); is.UID != k.was.UID || !bytes.Equal(is.Data[entry], k.was.Data[entry]) {
		k.t.Errorf("the Secret %s holds something else than before", k.name)
	}
}

// noOrphans checks that the module holds what the ImportedKeys that are left account for, and nothing else.
func (o *operator) noOrphans(t *testing.T, token tokens.Token, keys ...*v1alpha1.ImportedKey) {
	t.Helper()
	var want []string
	for _, key := range keys {
		o.read(t, key)
		want = append(want, fmt.Sprintf("secret keyconvoy:key:%s:%s:%s", key.Status.KeyVersionID, key.Spec.KeySpec, key.Namespace))
		for _, pair := range o.pairs(t, key) {
			for _, half := range []string{"private", "public"} {
				want = append(want, fmt.Sprintf("%s keyconvoy:wrapping:%s:%s:%d", half, key.UID, pair.PublicKey.Spec(), pair.NotAfter.Unix()))
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
	cmd := exec.Command(self, "-test.run=^TestListToken$", "-test.v")
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

// TestListToken is what listToken runs.
func TestListToken(t *testing.T) {
	given := strings.Split(os.Getenv(listedToken), ",")
	if len(given) != 3 {
		t.Skip("it lists a token for another test")
	}
	for _, object := range tokens.Objects(t, tokens.Token{Path: given[0], Label: given[1], PIN: given[2]}) {
		fmt.Println(listedLine + object)
	}
}
