package controllers_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// One token can be reached by several key stores. However an attacker names it, a key in it has one holder.

// secondStore makes another KeyStore on the token that the test's KeyStore has.
func (o *operator) secondStore(t testing.TB, kind, namespace string) v1alpha1.KeyStoreReference {
	t.Helper()
	s := &v1alpha1.KeyStore{Spec: storeSpec(kind)}
	s.Namespace, s.Name = namespace, "second"
	o.givePIN(t, namespace, commonToken(kind).PIN)
	o.Make(t, s)
	o.Ready(t, s)
	return v1alpha1.KeyStoreReference{Kind: "KeyStore", Name: "second"}
}

// adoptingThrough is an impostor with another key store than the key's.
func adoptingThrough(ref v1alpha1.KeyStoreReference, key *v1alpha1.ImportedKey) *v1alpha1.ImportedKey {
	impostor := adopting(key, under("RSA_2048", "RSAES_OAEP_SHA_1"), withDeletionPolicy(v1alpha1.DeletionDelete))
	impostor.Spec.KeyStoreRef = ref
	return impostor
}

func TestKeyHolder_adoptionThroughAnotherKeyStoreOfTheToken_isRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind   string
		second func(*testing.T, *operator) v1alpha1.KeyStoreReference
	}{
		"another KeyStore on SoftHSM": {onSoftHSM, func(t *testing.T, o *operator) v1alpha1.KeyStoreReference {
			return o.secondStore(t, onSoftHSM, o.Namespace)
		}},
		"another KeyStore on NSS": {onNSS, func(t *testing.T, o *operator) v1alpha1.KeyStoreReference {
			return o.secondStore(t, onNSS, o.Namespace)
		}},
		"a ClusterKeyStore on SoftHSM": {onSoftHSM, func(t *testing.T, o *operator) v1alpha1.KeyStoreReference {
			return v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: v1alpha1.ObjectName(o.clusterStore(t, onSoftHSM).Name)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, c.kind)
			rsa := under("RSA_2048", "RSAES_OAEP_SHA_1")
			key := o.enabledKey(t, "key", nil, rsa, func(s *v1alpha1.ImportedKeySpec) {
				s.ExportPolicy = &v1alpha1.ExportPolicy{Recipients: toRecipients(otherRSARecipient())}
			})
			dataKey := o.dataKey(t, "dek")
			second := c.second(t, o)

			attacker := o.editor(t, o.Namespace)
			impostor := adoptingThrough(second, key)
			stolen := newDataKey("stolen", underKey("impostor"))
			stolen.Spec.CiphertextBlob = dataKey.Status.CiphertextBlob
			stolen.Spec.EncryptionContext = dataKey.Spec.EncryptionContext
			export := newExport("export", ofDataKey("stolen"), withRSA("RSAES_OAEP_SHA_1"))
			attacker.makes(t, impostor, stolen, export)
			o.Waits(t, impostor, v1alpha1.ReasonKeyVersionTaken)
			o.Waits(t, export, v1alpha1.ReasonKeyNotReady)
			attacker.removes(t, impostor)
			o.Gone(t, impostor)
			if !o.inModule(t, key) {
				t.Error("the owner's key was destroyed")
			}
			o.Touch(t, key)
			o.enabled(t, key)
		})
	}
}

// The holder's key store may be closed, or gone from the status of a version that did not say which token it was.
func TestKeyHolder_adoptionWhileTheHoldersStoreIsClosed_isRefused(t *testing.T) {
	t.Parallel()
	for name, forget := range map[string]bool{"a holder whose token is known": false, "a holder whose token is not known": true} {
		t.Run(name, func(t *testing.T) {
			o := startOperator(t)
			store := o.clusterStore(t, onSoftHSM)
			key := o.enabledKey(t, "key", nil, inClusterStore(store.Name), under("RSA_2048", "RSAES_OAEP_SHA_1"))
			if key.Status.Token == "" {
				t.Error("the status does not say which token holds the key")
			}
			second := o.secondStore(t, onSoftHSM, o.Namespace)
			o.Remove(t, pinSecret(o.OwnNamespace, ""))
			o.Waits(t, store, v1alpha1.ReasonSourceNotFound)
			if forget {
				o.forceStatus(t, key, func() { key.Status.Token = "" })
			}
			impostor := adoptingThrough(second, key)
			o.editor(t, o.Namespace).makes(t, impostor)
			o.Waits(t, impostor, v1alpha1.ReasonKeyVersionTaken)
		})
	}
}

// forceStatus changes a status as only the operator may.
func (o *operator) forceStatus(t testing.TB, object client.Object, change func()) {
	t.Helper()
	o.Read(t, object)
	before := object.DeepCopyObject().(client.Object)
	change()
	if err := o.Status().Patch(t.Context(), object, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// Two objects that both hold a key, as a version left them that let the second one adopt: the first one has the say.
func TestKeyHolder_secondHolder_neitherConsentsNorDestroys(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	dataKey := o.dataKey(t, "dek")
	second := o.secondStore(t, onSoftHSM, o.Namespace)
	impostor := adoptingThrough(second, key)
	attacker := o.editor(t, o.Namespace)
	attacker.makes(t, impostor)
	o.Waits(t, impostor, v1alpha1.ReasonKeyVersionTaken)
	o.forceStatus(t, impostor, func() {
		impostor.Status.HasMaterial = true
		impostor.Status.KeyState, impostor.Status.Custody = v1alpha1.KeyState(kms.StateEnabled), v1alpha1.CustodyUnknown
		impostor.Status.MaterialFingerprint, impostor.Status.Token = key.Status.MaterialFingerprint, key.Status.Token
	})
	o.Touch(t, impostor)

	stolen := newDataKey("stolen", underKey("impostor"))
	stolen.Spec.CiphertextBlob, stolen.Spec.EncryptionContext = dataKey.Status.CiphertextBlob, dataKey.Spec.EncryptionContext
	export := newExport("export", ofDataKey("stolen"), withRSA("RSAES_OAEP_SHA_1"))
	attacker.makes(t, stolen)
	o.Ready(t, stolen)
	attacker.makes(t, export)
	o.Stalls(t, export, kms.ForbiddenNoPermission.Reason(), "An object other than")

	o.Annotate(t, impostor, v1alpha1.AnnotationDeleteKeyMaterial, "now")
	o.Waits(t, impostor, v1alpha1.ReasonPendingImport)
	attacker.removes(t, impostor)
	o.Gone(t, impostor)
	if n := o.Calls()["DestroyKey"]; n != 0 || !o.inModule(t, key) {
		t.Errorf("the second holder destroyed the key: %d calls", n)
	}
	own := newExport("own", withRSA("RSAES_OAEP_SHA_1"))
	o.Make(t, own)
	o.Ready(t, own)
}

// Two that ask at once for a key that was left behind, through two key stores.
func TestKeyHolder_twoThatAdoptAtOnce_oneGetsIt(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM)
	key := o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.Remove(t, key)
	o.Gone(t, key)
	second := o.secondStore(t, onSoftHSM, o.Namespace)
	a, b := adopting(key, under("RSA_2048", "RSAES_OAEP_SHA_1")), adoptingThrough(second, key)
	a.Name, b.Name = "a", "b"
	o.Make(t, a, b)
	holders := map[string]bool{}
	for _, k := range []*v1alpha1.ImportedKey{a, b} {
		o.Until(t, k, func() string {
			if taken := reasonOf(k) == v1alpha1.ReasonKeyVersionTaken; !taken && reasonOf(k) != v1alpha1.ReasonSucceeded {
				return k.Name + " is undecided: " + reasonOf(k)
			}
			return ""
		})
		holders[k.Name] = reasonOf(k) == v1alpha1.ReasonSucceeded
	}
	if holders["a"] == holders["b"] {
		t.Errorf("who holds the key: %v", holders)
	}
}

// A software store is its root key: another one has no key of it, whatever its name.
func TestKeyHolder_softwareStores_shareNothing(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	store, cluster := o.store(t, onSoftware), o.clusterStore(t, onSoftware)
	if store.Status.Module.Serial == cluster.Status.Module.Serial {
		t.Fatal("two software stores have one identity")
	}
	key := o.enabledKey(t, "key", nil)
	o.Remove(t, key)
	o.Gone(t, key)
	impostor := adoptingThrough(v1alpha1.KeyStoreReference{Kind: "ClusterKeyStore", Name: v1alpha1.ObjectName(cluster.Name)}, key)
	o.editor(t, o.Namespace).makes(t, impostor)
	o.Waits(t, impostor, kms.ForbiddenKeyVersionNotFound.Reason())
}

func reasonOf(object client.Object) string {
	conditions, _ := harness.StatusOf(object)
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); c != nil {
		return c.Reason
	}
	return ""
}
