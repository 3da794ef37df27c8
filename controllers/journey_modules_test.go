package controllers_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

// A data key under a key in one module becomes a key in another module. Everything is applied at once;
// the import token is all that a person carries.
func TestJourney_fromModuleToModule_staysInsideTheModules(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onNSS)
	to := o.clusterStore(t, onSoftHSM)
	source := o.enabledKey(t, "source", nil, under("RSA_2048", "RSAES_OAEP_SHA_256"))

	k := newDataKey("dek", underKey("source"))
	e := newExport("convoy", toKey("receiver"), withRSA("RSAES_OAEP_SHA_1"))
	receiver := importedKey("receiver", inClusterStore(to.Name), under("RSA_2048", "RSAES_OAEP_SHA_1"), func(s *v1alpha1.ImportedKeySpec) {
		s.Material = &v1alpha1.MaterialSpec{
			EncryptedKeyMaterialFrom: &v1alpha1.EntrySource{Type: v1alpha1.SourceSecret, SecretKeyRef: &v1alpha1.EntryReference{Name: "convoy", Key: "exportedDataKey"}},
			ImportTokenFrom:          &v1alpha1.EntrySource{Type: v1alpha1.SourceConfigMap, ConfigMapKeyRef: &v1alpha1.EntryReference{Name: "token", Key: "token"}},
		}
	})
	o.Make(t, e, receiver, k)
	o.Ready(t, k, e)
	harness.Eventually(t, func() string {
		message := o.Waits(t, receiver, v1alpha1.ReasonSourceNotFound)
		if !strings.Contains(message, "ImportToken: entry token of ConfigMap "+o.Namespace+"/token does not exist") {
			return message
		}
		return ""
	})
	o.configMap(t, "token", "token", receiver.Status.ImportParameters.ImportToken)
	o.enabled(t, receiver)
	for what, custody := range map[string]v1alpha1.Custody{
		"source": source.Status.Custody, "data key": k.Status.Custody, "export": e.Status.Custody, "receiver": receiver.Status.Custody,
	} {
		if custody != v1alpha1.Custody(hsm.CustodyModule) {
			t.Errorf("custody of the %s is %s", what, custody)
		}
	}

	// The control comes after: only the test ever sees the bytes.
	plain := o.openExport(t, o.export(t, "control"), rsaRecipient())
	o.Hide("data key", plain)
	control := o.enabledKey(t, "control", plain, inClusterStore(to.Name), under("RSA_2048", "RSAES_OAEP_SHA_1"))
	fingerprint, err := hsm.FingerprintOf(hsm.AES256, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got := receiver.Status.MaterialFingerprint; got != control.Status.MaterialFingerprint || got != fingerprint.String() {
		t.Errorf("the fingerprint is %s, of a control import %s, of the bytes %s", got, control.Status.MaterialFingerprint, fingerprint)
	}

	// The key in the other module works, and the convoy has ended: nothing is exported again.
	again := o.dataKey(t, "again", underKey("receiver"))
	if got := o.dataKeyBytes(t, again); len(got) != 32 || bytes.Equal(got, plain) {
		t.Error("the key in the other module does not work")
	}
	o.nowhere(t, map[string][]byte{"data key": plain})
	o.Restart(t)
	o.Settled(t, source, k, e, receiver, control)
	wantCounts(t, "a restart", o.Calls(), map[string]int{})
	wantCounts(t, "a restart", o.Requests.In(o.Namespace).Writes, map[string]int{})
}
