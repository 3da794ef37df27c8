package controllers_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// beforeRead does something once, just before the operator reads an object live.
type beforeRead struct {
	path string // how the request's path ends

	mu sync.Mutex
	do func()
}

func (b *beforeRead) arm(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.do = do
}

func (b *beforeRead) option() harness.Option {
	return harness.WithConfig(func(cfg *rest.Config) {
		cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, b.path) {
					b.mu.Lock()
					do := b.do
					b.do = nil
					b.mu.Unlock()
					if do != nil {
						do()
					}
				}
				return next.RoundTrip(r)
			})
		})
	})
}

// Someone who may write the recipient's object changes it after the operator has looked at it, and before it reads it.
func TestApproval_recipientThatIsSwappedAfterTheLook_isNotExportedTo(t *testing.T) {
	t.Parallel()
	for path, tc := range map[string]struct {
		source client.Object
		change exportChange
		swap   func(client.Object)
	}{
		"/configmaps/recipient": {
			&corev1.ConfigMap{ObjectMeta: named("recipient"), Data: map[string]string{"key": string(rsaRecipient().pem())}},
			toConfigMap("recipient", "key"),
			func(o client.Object) { o.(*corev1.ConfigMap).Data["key"] = string(otherRSARecipient().pem()) },
		},
		"/secrets/recipient": {
			&corev1.Secret{ObjectMeta: named("recipient"), Data: map[string][]byte{"key": rsaRecipient().pem()}},
			toSecret("recipient", "key"),
			func(o client.Object) { o.(*corev1.Secret).Data["key"] = otherRSARecipient().pem() },
		},
	} {
		t.Run(path, func(t *testing.T) {
			read := &beforeRead{path: path}
			o := startToSpread(t, "Same", read.option())
			o.setPolicy(t, &policy{Recipients: toRecipients(rsaRecipient())})
			o.Ready(t, o.key(t))
			tc.source.SetNamespace(o.Namespace)
			o.Make(t, tc.source)
			e := o.export(t, "e", tc.change)
			before := o.Calls()["ExportDataKey"]

			read.arm(func() { o.Change(t, tc.source, func() { tc.swap(tc.source) }) })
			o.Remove(t, o.secretOf(t, "e")) // so that it is exported again
			o.Stalls(t, e, "ForbiddenNoPermission", "exportPolicy.recipients", otherRSARecipient().public.Fingerprint())
			o.Settled(t, e)
			if n := o.Calls()["ExportDataKey"] - before; n != 0 {
				t.Errorf("it was exported %d times to a recipient without consent", n)
			}
			o.absent(t, "e")
		})
	}
}

// slowly has something happen while the module exports.
func (o *operator) slowly(t testing.TB, meanwhile func()) {
	t.Helper()
	module := o.Module(t)
	module.Before("ExportDataKey", func() {
		module.Before("ExportDataKey", nil)
		meanwhile()
	})
}

func TestApproval_consentThatIsWithdrawnDuringTheExport_keepsTheSecretFromBeingWritten(t *testing.T) {
	t.Parallel()
	for sentence, seen := range map[string]bool{"and the operator has seen it": true, "and the approval has become old": false} {
		t.Run(sentence, func(t *testing.T) {
			clock := testClock()
			o := startToSpread(t, "All", harness.WithClock(clock))
			e := o.inTeam(t, "e")
			o.slowly(t, func() {
				o.setPolicy(t, nil)
				if seen {
					o.Ready(t, o.key(t))
				} else {
					clock.SetTime(clock.Now().Add(10 * time.Second))
				}
			})
			o.Make(t, e)
			o.Stalls(t, e, "ForbiddenNoPermission", "exportPolicy.namespaces")
			if n := o.Requests.In(e.Namespace).Writes["apply secrets"]; n != 0 {
				t.Errorf("the Secret was written %d times", n)
			}
		})
	}
}

// Old approvals are asked for again, so that a slow module does not make an export endless.
func TestApproval_thatHasBecomeOldAndStillHolds_isActedOn(t *testing.T) {
	t.Parallel()
	for sentence, change := range map[string]exportChange{
		"a public key in a ConfigMap": toConfigMap("recipient", "key"),
		"a public key in the spec":    toBlob(rsaRecipient().public.Base64()),
		"an import public key":        toKey("other"),
	} {
		t.Run(sentence, func(t *testing.T) {
			clock := testClock()
			o := startToSpread(t, "Same", harness.WithClock(clock))
			o.pendingKey(t, "other", under("RSA_2048", "RSAES_OAEP_SHA_256"))
			o.configMap(t, "recipient", "key", string(rsaRecipient().pem()))
			o.slowly(t, func() { clock.SetTime(clock.Now().Add(time.Minute)) })
			e := o.export(t, "e", change)
			if n := o.Calls()["ExportDataKey"]; n != 1 {
				t.Errorf("it was exported %d times", n)
			}
			if e.Status.SecretRef == nil {
				t.Error("it has no Secret")
			}
		})
	}
}

// The recipient that was approved is no longer the one that is wanted.
func TestApproval_recipientThatChangesDuringASlowExport_isExportedToAnew(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startToSpread(t, "Same", harness.WithClock(clock))
	m := o.configMap(t, "recipient", "key", string(rsaRecipient().pem()))
	o.slowly(t, func() {
		o.Change(t, m, func() { m.Data["key"] = string(otherRSARecipient().pem()) })
		clock.SetTime(clock.Now().Add(time.Minute))
	})
	e := newExport("e", toConfigMap("recipient", "key"))
	o.Make(t, e)
	o.Ready(t, e)
	o.checkExport(t, e, otherRSARecipient())
	if n := o.Writes()["apply secrets"]; n == 0 {
		t.Error("nothing was written")
	}
	if all := o.Events(t, e); len(all) != 0 {
		t.Errorf("the first recipient had an export: %q", all)
	}
}

// An editor of exports keeps the object with a finalizer. The Secret goes all the same.
func TestExportedDataKey_keptByAFinalizer_losesItsSecret(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := newExport("e")
	e.Finalizers = []string{"example.com/held"}
	o.Make(t, e)
	o.Ready(t, e)
	o.Remove(t, e)
	o.Gone(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "e"}})
	o.Change(t, e, func() { e.Finalizers = nil })
	o.Gone(t, e)
}

func TestExportedDataKey_sameSecretAsItsDataKey_saysWhatToDo(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "ledger")
	before := o.secretOf(t, "ledger")
	for name, change := range map[string]exportChange{
		"ledger": func(*v1alpha1.ExportedDataKeySpec) {},
		"other":  withExportTarget(v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{Name: "ledger"}}),
	} {
		e := newExport(name, ofDataKey("ledger"), change)
		o.Make(t, e)
		o.Stalls(t, e, v1alpha1.ReasonTargetNotOwned, "The DataKey ledger keeps its ciphertextBlob in the Secret "+o.Namespace+"/ledger", "create it with another spec.target.name")
		o.Remove(t, e)
	}
	if got := o.secretOf(t, "ledger"); got.ResourceVersion != before.ResourceVersion {
		t.Error("the data key's Secret was touched")
	}
	// Where it is not the same Secret, the same name is no problem.
	o.export(t, "ledger", ofDataKey("ledger"), withExportTarget(v1alpha1.ExportTarget{SecretTarget: v1alpha1.SecretTarget{Name: "ledger-wrapped"}}))
	o.Ready(t, k)
}
