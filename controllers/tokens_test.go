package controllers_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// The kinds of store that tests run on, and the names of the libraries behind them.
const (
	onSoftware = "software"
	onSoftHSM  = "softhsm"
	onNSS      = "nss"
)

// process stands for all tests: what they share is cleaned up after the last one.
//
// Tokens are shared because a library sees new ones only when it is initialised, which disturbs its
// users, and keys do not collide: they are named after their objects.
var process processTB

type processTB struct {
	testing.TB
	mu      sync.Mutex
	cleanup []func()
}

func (p *processTB) Helper()                         {}
func (p *processTB) Fatal(args ...any)               { panic(fmt.Sprint(args...)) }
func (p *processTB) Fatalf(text string, args ...any) { panic(fmt.Sprintf(text, args...)) }

func (p *processTB) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanup = append(p.cleanup, f)
}

func (p *processTB) end() {
	for _, f := range slices.Backward(p.cleanup) {
		f()
	}
}

// twinLabel is the label of two tokens.
const twinLabel = "twins"

// softHSMTokens are made before the library is initialised: common for the tests that need any, and those that
// only tests of PINs log in to.
var softHSMTokens = sync.OnceValue(func() (made struct {
	common tokens.Token
	pins   chan tokens.Token
}) {
	made.common = tokens.SoftHSM(&process)
	tokens.SoftHSMLabelled(&process, twinLabel)
	tokens.SoftHSMLabelled(&process, twinLabel)
	made.pins = make(chan tokens.Token, 24)
	for range cap(made.pins) {
		made.pins <- tokens.SoftHSM(&process)
	}
	return made
})

var nssToken = sync.OnceValue(func() tokens.Token { return tokens.NSS(&process) })

// commonToken is the token that tests share.
func commonToken(kind string) tokens.Token {
	if kind == onNSS {
		return nssToken()
	}
	return softHSMTokens().common
}

// ownToken is a SoftHSM token that no other test logs in to.
func ownToken(t testing.TB) tokens.Token {
	t.Helper()
	select {
	case token := <-softHSMTokens().pins:
		return token
	default:
		t.Fatal("no token is left: make more in softHSMTokens")
		return tokens.Token{}
	}
}

// pinName is the Secret, and pinEntry the entry in it, with a token's PIN.
const (
	pinName  = "pin"
	pinEntry = "pin"
)

func pinSecret(namespace, pin string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pinName},
		Data:       map[string][]byte{pinEntry: []byte(pin)},
	}
}

// storeSpec is a key store on the embedded store or on the token that tests share.
func storeSpec(kind string) v1alpha1.KeyStoreSpec {
	if kind == onSoftware {
		return v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStoreSoftware}
	}
	return tokenSpec(kind, commonToken(kind).Label)
}

func tokenSpec(library, label string) v1alpha1.KeyStoreSpec {
	return v1alpha1.KeyStoreSpec{Type: v1alpha1.KeyStorePKCS11, PKCS11: &v1alpha1.PKCS11Store{
		Module: library, Token: v1alpha1.TokenSelector{Label: label},
		PINSecretRef: &v1alpha1.EntryReference{Name: pinName, Key: pinEntry},
	}}
}

// store makes a KeyStore in the test's namespace, with its PIN, and waits until it serves.
func (o *operator) store(t testing.TB, kind string, change ...func(*v1alpha1.KeyStoreSpec)) *v1alpha1.KeyStore {
	t.Helper()
	s := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(kind)}
	for _, c := range change {
		c(&s.Spec)
	}
	if s.Spec.PKCS11 != nil {
		o.givePIN(t, o.Namespace, commonToken(kind).PIN)
	}
	o.Make(t, s)
	o.Ready(t, s)
	return s
}

// clusterStore makes a ClusterKeyStore, with its PIN in the operator's namespace.
func (o *operator) clusterStore(t testing.TB, kind string, change ...func(*v1alpha1.ClusterKeyStoreSpec)) *v1alpha1.ClusterKeyStore {
	t.Helper()
	s := &v1alpha1.ClusterKeyStore{
		ObjectMeta: metav1.ObjectMeta{Name: o.OwnNamespace}, Spec: v1alpha1.ClusterKeyStoreSpec{KeyStoreSpec: storeSpec(kind)},
	}
	for _, c := range change {
		c(&s.Spec)
	}
	if s.Spec.PKCS11 != nil {
		o.givePIN(t, o.OwnNamespace, commonToken(kind).PIN)
	}
	o.Make(t, s)
	o.Ready(t, s)
	return s
}

// givePIN puts a PIN into its Secret, whether that exists or not.
func (o *operator) givePIN(t testing.TB, namespace, pin string) {
	t.Helper()
	if strings.TrimSpace(pin) != "" {
		o.Hide("PIN "+pin, []byte(pin))
	}
	s := pinSecret(namespace, pin)
	if err := o.Create(t.Context(), s); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	} else if err == nil {
		return
	}
	o.Change(t, s, func() { s.Data = map[string][]byte{pinEntry: []byte(pin)} })
}
