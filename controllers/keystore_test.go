package controllers_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestKeyStore_thatCannotBeOpened_saysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spec v1alpha1.KeyStoreSpec
		says string
	}{
		"a library that the administrator did not allow": {tokenSpec("unheard-of", "any"), "unheard-of"},
		"a token that is not there":                      {tokenSpec(onSoftHSM, "no-such-token"), "no token"},
		"two tokens with one label":                      {tokenSpec(onSoftHSM, twinLabel), "serial"},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			o.givePIN(t, o.Namespace, "vQ4-7pZk")
			store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: c.spec}
			o.Make(t, store)
			o.Waits(t, store, v1alpha1.ReasonModuleMisconfigured, c.says)
			harness.WantWords(t, o.Event(t, store, v1alpha1.ReasonModuleMisconfigured), []string{c.says})
		})
	}
}

func TestKeyStore_serves_saysWhatItIsAndCan(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]struct{ manufacturer, capability string }{
		onSoftware: {"", "Import SM2PKE Software"},
		onSoftHSM:  {"SoftHSM project", "Import RSAES_OAEP_SHA_1 Module"},
		onNSS:      {"Mozilla Foundation", "Import RSAES_OAEP_SHA_256 Module"},
	} {
		for _, cluster := range []bool{false, true} {
			name := "KeyStore on " + kind
			if cluster {
				name = "Cluster" + name
			}
			t.Run(name, func(t *testing.T) {
				o := startOperator(t)
				var status v1alpha1.KeyStoreStatus
				if cluster {
					status = o.clusterStore(t, kind).Status
				} else {
					status = o.store(t, kind).Status
				}
				m := status.Module
				if m == nil || m.Library != kind || !strings.Contains(m.Manufacturer, want.manufacturer) {
					t.Errorf("the module is %+v", m)
				}
				if kind != onSoftware && (m.Model == "" || m.Serial == "" || m.Firmware == "") {
					t.Errorf("the module says too little: %+v", m)
				}
				if can := capabilities(status); !slices.Contains(can, want.capability) {
					t.Errorf("%q is not among %q", want.capability, can)
				}
			})
		}
	}
}

// capabilities are "operation algorithm custody".
func capabilities(status v1alpha1.KeyStoreStatus) []string {
	var all []string
	for _, c := range status.Capabilities {
		all = append(all, c.Operation+" "+c.Algorithm+" "+string(c.Custody))
	}
	return all
}

func TestKeyStore_moduleOnly_offersNothingElse(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly })
	for _, c := range store.Status.Capabilities {
		if c.Custody != v1alpha1.Custody(hsm.CustodyModule) {
			t.Errorf("it offers %+v", c)
		}
	}
}

func TestKeyStore_software_warnsOnceOfItsRootKey(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	note := o.Event(t, store, "RootKeyCreated")
	root := o.rootKey(t)
	harness.WantWords(t, note, []string{root.Namespace + "/" + root.Name, "Back it up"})
	o.Restart(t)
	o.serves(t, store)
	if all := o.Events(t, store); len(all) != 1 {
		t.Errorf("want one event, got %q", all)
	}
	if again := o.rootKey(t); again.UID != root.UID || again.ResourceVersion != root.ResourceVersion {
		t.Error("the root key's Secret is another after a restart")
	}
}

// rootKey is the Secret with the software store's root key, whose bytes are hidden from now on.
func (o *operator) rootKey(t testing.TB) *corev1.Secret {
	t.Helper()
	var list corev1.SecretList
	if err := o.List(t.Context(), &list, client.InNamespace(o.OwnNamespace)); err != nil {
		t.Fatal(err)
	}
	for i, s := range list.Items {
		if s.Type == "keyconvoy.io/root-key" {
			o.Hide("root key", s.Data["rootKey"])
			return &list.Items[i]
		}
	}
	t.Fatal("there is no root key")
	return nil
}

// serves waits until an operator that was just started has opened a key store's module.
func (o *operator) serves(t testing.TB, store client.Object) {
	t.Helper()
	harness.Eventually(t, func() string {
		for _, m := range o.Modules() {
			if m.Calls()["Check"] > 0 {
				return ""
			}
		}
		return store.GetName() + " has not been checked"
	})
	o.Ready(t, store)
}

func TestKeyStore_software_makesNoRootKeyBesideSealedKeys(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	key := o.enabledKey(t, "key", nil)
	o.Stop(t)
	root := o.rootKey(t)
	o.Remove(t, root)

	o.Start(t)
	o.Waits(t, store, v1alpha1.ReasonModuleMisconfigured, root.Name, "backup")
	if err := o.Get(t.Context(), client.ObjectKeyFromObject(root), &corev1.Secret{}); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("a root key was made: %v", err)
	}
	o.Ready(t, key) // what was imported is not lost: the Secret may come back

	root.ResourceVersion, root.UID = "", ""
	if err := o.Create(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	o.Restart(t)
	o.Ready(t, store)
}

func TestKeyStore_specChange_opensAnotherModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store := o.store(t, onSoftware)
	former := o.Module(t)
	if slices.Contains(capabilities(store.Status), "Import RSAES_PKCS1_V1_5 Software") {
		t.Fatal("PKCS#1 v1.5 is offered without having been allowed")
	}
	o.Change(t, store, func() { store.Spec.AllowPKCS1V15Import = true })
	o.Until(t, store, func() string {
		if !slices.Contains(capabilities(store.Status), "Import RSAES_PKCS1_V1_5 Software") {
			return "PKCS#1 v1.5 is not offered"
		}
		return ""
	})
	o.closed(t, former)
	if n := len(o.Modules()); n != 2 {
		t.Errorf("%d modules were opened, want 2", n)
	}
}

func (o *operator) closed(t testing.TB, m *hsmtest.Recorder) {
	t.Helper()
	harness.Eventually(t, func() string {
		if m.Calls()["Close"] != 1 {
			return "the module is open"
		}
		return ""
	})
}

func TestKeyStore_deletion_closesTheModule(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store, cluster := o.store(t, onSoftware), o.clusterStore(t, onSoftware)
	o.Remove(t, store)
	o.Remove(t, cluster)
	for _, m := range o.Modules() {
		o.closed(t, m)
	}
}

func TestOperator_end_closesTheModules(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	o.Stop(t)
	if n := o.Module(t).Calls()["Close"]; n != 1 {
		t.Errorf("closed %d times", n)
	}
}

func TestKeyStore_restart_writesNothing(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onSoftware, onSoftHSM} {
		t.Run(kind, func(t *testing.T) {
			o := startOperator(t)
			// A token of its own: a ClusterKeyStore's status has the token's keys without a holder, and other tests come and go.
			spec := storeSpec(kind)
			if kind == onSoftHSM {
				spec.PKCS11.Token.Label = ownToken(t).Label
			}
			store := o.store(t, kind, func(s *v1alpha1.KeyStoreSpec) { *s = spec })
			cluster := o.clusterStore(t, kind, func(s *v1alpha1.ClusterKeyStoreSpec) { s.KeyStoreSpec = spec })
			before := []string{store.ResourceVersion, cluster.ResourceVersion}
			o.Restart(t)
			harness.Eventually(t, func() string {
				if n := len(o.Modules()); n != 4 {
					return "not all modules are open"
				}
				return ""
			})
			o.Stop(t) // waits for reconciles under way
			if w := o.Writes(); len(w) != 0 {
				t.Errorf("it wrote: %v", w)
			}
			o.Read(t, store)
			o.Read(t, cluster)
			if after := []string{store.ResourceVersion, cluster.ResourceVersion}; !slices.Equal(before, after) {
				t.Errorf("the objects changed: %v to %v", before, after)
			}
		})
	}
}

// The module is away when the operator starts, and comes back; the objects that wait for it are reconciled.
func TestKeyStore_moduleAway_isTriedAgainAndWakesItsKeys(t *testing.T) {
	t.Parallel()
	away := hsm.Errorf(hsm.Unavailable, "The device does not answer.")
	o := startOperator(t, harness.WithModules(func(m *hsmtest.Recorder) { m.FailAll("Check", away) }))
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftware)}
	key := importedKey("key")
	o.Make(t, store, key)
	o.Waits(t, store, "ServiceUnavailableTemporary", "The device does not answer.")
	o.Waits(t, key, v1alpha1.ReasonKeyStoreNotReady)
	o.Module(t).FailAll("Check", nil)
	o.Ready(t, store)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	o.outages(t, store, 0, 0) // it had not served before
}

// An error of opening that says nothing about the configuration is tried again too.
func TestKeyStore_openFails_isTriedAgain(t *testing.T) {
	t.Parallel()
	tries := 0
	o := startOperator(t, harness.BeforeOpen(func(context.Context, hsm.Config) error {
		if tries++; tries == 1 {
			return hsm.Errorf(hsm.Unavailable, "The device does not answer.")
		}
		return nil
	}))
	store := &v1alpha1.KeyStore{ObjectMeta: metav1.ObjectMeta{Name: "store"}, Spec: storeSpec(onSoftware)}
	o.Make(t, store)
	o.Ready(t, store)
	if tries != 2 {
		t.Errorf("opened %d times", tries)
	}
}
