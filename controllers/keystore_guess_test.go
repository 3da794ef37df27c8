package controllers_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// storeWithPIN makes a KeyStore on a token, with a PIN of its own, in that namespace.
func (o *operator) storeWithPIN(t testing.TB, namespace, name, pin string, token tokens.Token) *v1alpha1.KeyStore {
	t.Helper()
	secret := pinSecret(namespace, pin)
	secret.Name = name
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: tokenSpec(onSoftHSM, token.Label)}
	store.Spec.PKCS11.PINSecretRef.Name = v1alpha1.ObjectName(name)
	o.Make(t, secret, store)
	return store
}

// A tenant who tries PINs finds none, and uses up no other's attempts: neither those of a key store in service, also when it
// is opened again, nor those of another tenant.
func TestKeyStore_guessedPINs_costTheirNamespaceOnly(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	token := ownToken(t)
	thief, neighbour := o.Env.Namespace(t), o.Env.Namespace(t)
	serving := o.storeWithPIN(t, o.Namespace, "serving", token.PIN, token)
	o.Ready(t, serving)
	var guesses []client.Object
	for n := range 8 {
		guess := o.storeWithPIN(t, thief, fmt.Sprint("guess-", n), fmt.Sprintf("%08d", n), token)
		o.Condition(t, guess, v1alpha1.ConditionReady, "False", v1alpha1.ReasonPINRefused)
		guesses = append(guesses, guess)
	}
	found := o.storeWithPIN(t, thief, "found", token.PIN, token)
	o.Waits(t, found, v1alpha1.ReasonPINRefused, "too many wrong PINs")

	o.Change(t, serving, func() { serving.Spec.Custody = v1alpha1.CustodyModuleOnly })
	o.Ready(t, serving)
	o.Ready(t, o.storeWithPIN(t, neighbour, "neighbour", token.PIN, token))

	o.Restart(t)
	o.Settled(t, append(guesses, found, serving)...)
	o.Ready(t, serving)
	o.Waits(t, found, v1alpha1.ReasonPINRefused, "too many wrong PINs")

	var record corev1.Secret
	if err := o.Get(t.Context(), client.ObjectKey{Namespace: o.OwnNamespace, Name: "keyconvoy-pin-record"}, &record); err != nil {
		t.Fatal(err)
	}
	for name, content := range record.Data {
		if strings.Contains(string(content), token.PIN) || strings.Contains(string(content), "00000001") {
			t.Errorf("there is a PIN in %s: %s", name, content)
		}
	}
}

// What comes of how a Secret was written is said before it costs a try.
func TestKeyStore_PINThatNoTokenHas_isNotTried(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		pin    string
		reason string
		says   []string
	}{
		"UTF-8 with a byte-order mark": {"\xef\xbb\xbfvQ4-7pZk", v1alpha1.ReasonPINRefused, []string{"byte-order mark", "was not tried"}},
		"UTF-16, little-endian":        {"\xff\xfe1\x002\x00", v1alpha1.ReasonPINRefused, []string{"byte-order mark"}},
		"UTF-16, big-endian":           {"\xfe\xff\x001\x002", v1alpha1.ReasonPINRefused, []string{"byte-order mark"}},
		"UTF-16 without a mark":        {"1\x002\x003\x004\x00", v1alpha1.ReasonPINRefused, []string{"NUL"}},
		"a NUL at the end":             {"vQ4-7pZk\x00", v1alpha1.ReasonPINRefused, []string{"NUL"}},
		"a NUL before the newline":     {"vQ4-7pZk\x00\n", v1alpha1.ReasonPINRefused, []string{"NUL"}},
		"two lines":                    {"vQ4-7pZk\n87654321\n", v1alpha1.ReasonPINRefused, []string{"several lines"}},
		"two lines of Windows":         {"vQ4-7pZk\r\n\r\nx", v1alpha1.ReasonPINRefused, []string{"several lines"}},
		"nothing":                      {"", v1alpha1.ReasonSourceNotFound, []string{"is empty"}},
		"a newline only":               {"\r\n", v1alpha1.ReasonSourceNotFound, []string{"is empty"}},
	} {
		t.Run(sentence, func(t *testing.T) {
			var openings atomic.Int32
			o := startOperator(t, countOpenings(&openings))
			store := &v1alpha1.KeyStore{ObjectMeta: named("store"), Spec: storeSpec(onSoftHSM)}
			o.givePIN(t, o.Namespace, tc.pin)
			o.Make(t, store)
			says := append(tc.says, "Secret "+o.Namespace+"/"+pinName, "entry "+pinEntry)
			if tc.reason == v1alpha1.ReasonSourceNotFound {
				o.Waits(t, store, tc.reason, says...)
			} else {
				o.Stalls(t, store, tc.reason, says...)
			}
			if n := openings.Load(); n != 0 {
				t.Errorf("it was tried %d times", n)
			}
			o.givePIN(t, o.Namespace, commonToken(onSoftHSM).PIN)
			o.Ready(t, store)
		})
	}
}

func TestKeyStore_refusedPINWithABlank_saysSo(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	token := ownToken(t)
	for n, tc := range []struct {
		pin  string
		says bool
	}{{token.PIN + " ", true}, {token.PIN + "\t\n", true}, {"87654321", false}} {
		o.givePIN(t, o.Namespace, tc.pin)
		store := &v1alpha1.KeyStore{ObjectMeta: named(fmt.Sprint("store-", n)), Spec: tokenSpec(onSoftHSM, token.Label)}
		o.Make(t, store)
		said := o.Condition(t, store, v1alpha1.ConditionReady, "False", v1alpha1.ReasonPINRefused)
		if strings.Contains(said, "begins or ends with a blank") != tc.says {
			t.Errorf("of %q it says %q", tc.pin, said)
		}
	}
}
