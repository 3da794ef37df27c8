package controllers_test

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// moduleOnly forbids a key store to let plaintext out of its module.
func moduleOnly(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly }

// carry puts what an export's Secret holds into a Secret of another cluster, as raw bytes.
func carry(t testing.TB, from *operator, e *v1alpha1.ExportedDataKey, to *operator, name string) {
	t.Helper()
	to.makeSecret(t, &corev1.Secret{ObjectMeta: named(name), Data: map[string][]byte{"material": from.exportedBytes(t, e)}})
}

// carried is the material that carry brought.
func carried(name, token string) *v1alpha1.MaterialSpec {
	return &v1alpha1.MaterialSpec{EncryptedKeyMaterialFrom: fromSecret(name, "material"), ImportToken: token}
}

// Two clusters, two modules of two makers: a data key of the one becomes a master key of the other, and no
// plaintext of it was outside of the two modules.
func TestTwoClusters_aKeyGoesFromModuleToModule(t *testing.T) {
	t.Parallel()
	a := startOperator(t)
	b := startOperatorOn(t, testenv.Another(t))
	a.store(t, onSoftHSM, moduleOnly)
	b.store(t, onNSS, moduleOnly)
	rsa, algorithm := under("RSA_2048", "RSAES_OAEP_SHA_1"), withRSA("RSAES_OAEP_SHA_1")

	// A makes the key, for B's import parameters.
	a.enabledKey(t, "key", nil, rsa)
	dataKey := a.dataKey(t, "dek")
	arriving := b.pendingKey(t, "arriving", rsa)
	p := arriving.Status.ImportParameters
	toB := a.export(t, "to-b", toBlob(p.PublicKey), algorithm)
	if toB.Status.RecipientFingerprint != p.PublicKeyFingerprint {
		t.Errorf("the recipient is %s, not %s", toB.Status.RecipientFingerprint, p.PublicKeyFingerprint)
	}
	carry(t, a, toB, b, "from-a")

	// It is ciphertext for B's pair: B's other keys cannot take it, and neither can A's.
	other := b.pendingKey(t, "other", rsa)
	b.give(t, other, carried("from-a", other.Status.ImportParameters.ImportToken))
	b.Stalls(t, other, kms.InvalidKeyMaterial.Reason())
	b.Change(t, other, func() { other.Spec.Material.ImportToken = p.ImportToken })
	b.Stalls(t, other, kms.InvalidImportToken.Reason())

	b.give(t, arriving, carried("from-a", p.ImportToken))
	b.enabled(t, arriving)

	// What A's module knows of the key, from a copy that A imports beside.
	twin := a.pendingKey(t, "twin", rsa)
	toTwin := a.export(t, "to-twin", toKey("twin"), algorithm)
	carry(t, a, toTwin, a, "from-itself")
	a.give(t, twin, carried("from-itself", twin.Status.ImportParameters.ImportToken))
	a.enabled(t, twin)
	if got, want := arriving.Status.MaterialFingerprint, twin.Status.MaterialFingerprint; got != want || got == "" {
		t.Errorf("B holds the key %s and A holds %s", got, want)
	}
	for what, custody := range map[string]v1alpha1.Custody{
		"A's data key": dataKey.Status.Custody, "A's export": toB.Status.Custody, "B's key": arriving.Status.Custody, "A's twin": twin.Status.Custody,
	} {
		if custody != v1alpha1.Custody(hsm.CustodyModule) {
			t.Errorf("the custody of %s is %s", what, custody)
		}
	}

	// To be sure that the fingerprints are of this key: a third copy, for a recipient that looks at it.
	plain := a.openExport(t, a.export(t, "to-see", algorithm), rsaRecipient())
	a.Hide("the key", plain)
	b.Hide("the key", plain)
	if want, err := hsm.FingerprintOf(hsm.AES256, plain); err != nil || arriving.Status.MaterialFingerprint != want.String() {
		t.Errorf("B holds the key %s, and it is %s (%v)", arriving.Status.MaterialFingerprint, want, err)
	}

	// B works with it, and it goes on from there.
	b.dataKey(t, "dek", underKey("arriving"))
	b.openExport(t, b.export(t, "onward", algorithm), rsaRecipient())

	// B publishes other parameters in time: A's export to the key that it was told of stays as it is.
	before := a.secretOf(t, "to-b").ResourceVersion
	b.renew(t, arriving, "1")
	a.Ready(t, toB)
	if a.secretOf(t, "to-b").ResourceVersion != before {
		t.Error("the export was made again")
	}
}

// Two clusters share a token. Each has a key with the same namespace and name. Each has its own versions, and deletes only those.
func TestTwoClusters_generatedKeysOfOneName_areDifferentKeys(t *testing.T) {
	t.Parallel()
	a, env := startOperator(t), testenv.Another(t)
	if err := env.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: a.Namespace}}); err != nil {
		t.Fatal(err)
	}
	b := startOperatorOn(t, env, harness.WithNamespaces(a.Namespace, env.Namespace(t)))
	a.store(t, onSoftHSM)
	b.store(t, onSoftHSM)
	ofA, ofB := a.generated(t, "key", generatedWith(v1alpha1.DeletionDelete)), b.generated(t, "key", generatedWith(v1alpha1.DeletionDelete))
	a.rotate(t, ofA, "now")
	b.dataKey(t, "dek", underGenerated("key"))
	e := b.export(t, "e", toBlob(sm2Recipient().public.Base64()), withSM2)
	plain := b.openExport(t, e, sm2Recipient())

	a.Remove(t, ofA)
	a.Gone(t, ofA)
	again := b.export(t, "again", toBlob(sm2Recipient().public.Base64()), withSM2)
	if !bytes.Equal(b.openExport(t, again, sm2Recipient()), plain) {
		t.Error("the data key is another one")
	}
	if n := len(b.versionsInModule(t, ofB)); n != 1 {
		t.Errorf("the module has %d versions of the other cluster's key", n)
	}
}
