package controllers_test

import (
	"encoding/base64"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func inStatus(s *v1alpha1.ExportedDataKeySpec) { s.Delivery = v1alpha1.DeliveryStatus }

// openStatus opens, as the recipient, the export that is in the status, which must be complete.
func (o *operator) openStatus(t testing.TB, e *v1alpha1.ExportedDataKey, to recipient) []byte {
	t.Helper()
	o.Read(t, e)
	status := e.Status
	if status.SecretRef != nil || status.KeyID == "" || status.KeyVersionID == "" || status.RequestID == "" || status.Custody == "" ||
		status.ExportTime == nil || status.RecipientFingerprint != to.public.Fingerprint() {
		t.Errorf("the status is not that of an export in it: %s", harness.JSON(status))
	}
	wrapped, err := base64.StdEncoding.DecodeString(status.ExportedDataKey)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := to.private.Unwrap(wrapping.Algorithm(e.Spec.WrappingAlgorithm), wrapping.SM2Format(e.Spec.SM2CiphertextFormat), wrapped)
	if err != nil {
		t.Fatalf("the recipient cannot open the export: %v", err)
	}
	o.absent(t, e.Name)
	return plain
}

func TestExportedDataKey_inTheStatus_costsOneWrite_andNothingMore(t *testing.T) {
	t.Parallel()
	o := startWithKey(t, harness.WithHealth(time.Hour)) // a check reads, too
	o.dataKey(t, "dek")
	want := o.openExport(t, o.export(t, "in-secret"), rsaRecipient())

	o.uncounted(t)
	e := newExport("e", inStatus)
	o.Make(t, e)
	o.Ready(t, e)
	o.Settled(t, e)
	wantCounts(t, "the export", o.Writes(), map[string]int{"patch exporteddatakeys/status": 1})
	wantCounts(t, "the export", o.Requests.All().Reads, map[string]int{})
	wantCounts(t, "the export", o.Requests.All().Lists, map[string]int{})
	wantCounts(t, "the export", o.Calls(), map[string]int{"ExportDataKey": 1})
	if string(o.openStatus(t, e, rsaRecipient())) != string(want) {
		t.Error("the data key is another one")
	}
	if message := o.Condition(t, e, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonSucceeded); message != "The exported data key is in status.exportedDataKey." {
		t.Errorf("Ready says %q", message)
	}
	if all := o.Events(t, e); len(all) != 0 {
		t.Errorf("it made events %q", all)
	}

	o.Restart(t)
	o.Settled(t, e)
	o.Again(t, e, func() {
		o.Again(t, o.key(t), func() { o.setPolicy(t, &policy{Recipients: toRecipients(rsaRecipient())}) })
	})
	wantCounts(t, "looking again", o.Writes(), map[string]int{"patch importedkeys/status": 1}) // the generation of the policy
	wantCounts(t, "looking again", o.Calls(), map[string]int{})
}

func TestExportedDataKey_inTheStatus_isMadeAgainForOtherInputs(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "e", inStatus)
	want := o.openStatus(t, e, rsaRecipient())
	for sentence, tc := range map[string]struct {
		to     recipient
		change []exportChange
	}{
		"another RSA key": {otherRSARecipient(), []exportChange{toBlob(otherRSARecipient().public.Base64())}},
		"an SM2 key":      {sm2Recipient(), []exportChange{toBlob(sm2Recipient().public.Base64()), withSM2}},
		"the first key":   {rsaRecipient(), []exportChange{toBlob(rsaRecipient().public.Base64()), withRSA("RSAES_OAEP_SHA_1")}},
	} {
		o.Change(t, e, func() {
			for _, change := range tc.change {
				change(&e.Spec)
			}
		})
		o.Ready(t, e)
		if string(o.openStatus(t, e, tc.to)) != string(want) {
			t.Errorf("%s: the data key is another one", sentence)
		}
	}
}

func TestExportedDataKey_inTheStatus_isTakenOutWithoutConsent_andComesBack(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "e", inStatus)
	want := o.openStatus(t, e, rsaRecipient())
	o.auditLines(t)
	o.Audit.Reset()

	o.ForgetCounts()
	o.setPolicy(t, &policy{Recipients: toRecipients(otherRSARecipient())})
	o.Stalls(t, e, "ForbiddenNoPermission", "exportPolicy.recipients")
	if s := e.Status; s.ExportedDataKey != "" || s.ExportTime != nil || s.InputsDigest != "" || s.RequestID != "" || s.Custody != "" {
		t.Errorf("the status still speaks of an export: %s", harness.StatusJSON(e))
	}
	o.auditSays(t, "WithdrawExport of ExportedDataKey e: Success", "ExportDataKey of ExportedDataKey e: Forbidden.NoPermission")
	if n := o.Writes()["patch exporteddatakeys/status"]; n != 1 {
		t.Errorf("withdrawing took %d writes of the status", n)
	}
	o.Restart(t)
	o.Settled(t, e)
	o.auditSays(t)

	o.setPolicy(t, nil)
	o.Ready(t, e)
	if string(o.openStatus(t, e, rsaRecipient())) != string(want) {
		t.Error("the data key is another one")
	}
}

// As a Secret would: whatever else is wrong does not keep it alive.
func TestExportedDataKey_inTheStatus_isTakenOutWithoutConsent_alsoWhenTheRecipientIsGone(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	m := o.configMap(t, "map", "key", string(rsaRecipient().pem()))
	e := o.export(t, "e", inStatus, toConfigMap("map", "key"))
	o.Again(t, e, func() { o.Remove(t, m) })
	o.Waits(t, e, v1alpha1.ReasonSourceNotFound)
	o.openStatus(t, e, rsaRecipient())
	o.setPolicy(t, &policy{Recipients: toRecipients(otherRSARecipient())})
	o.Stalls(t, e, "ForbiddenNoPermission")
	if e.Status.ExportedDataKey != "" {
		t.Error("the status still has the export")
	}
}

func TestExportedDataKey_inTheStatus_ofAnObjectThatIsHeldByAFinalizer_isTakenOut(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := newExport("e", inStatus)
	e.Finalizers = []string{"example.com/held"}
	o.Make(t, e)
	o.Ready(t, e)
	o.auditLines(t)
	o.Audit.Reset()
	o.Remove(t, e)
	o.Until(t, e, func() string {
		if e.Status.ExportedDataKey != "" {
			return "the status still has the export"
		}
		return ""
	})
	o.auditSays(t, "WithdrawExport of ExportedDataKey e: Success")
	o.Change(t, e, func() { e.Finalizers = nil })
	o.Gone(t, e)
}

func TestExportedDataKey_inTheStatus_leavesSecretsAlone(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	o.makeSecret(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "e"}, Data: map[string][]byte{"a": []byte("b")}})
	before := o.secretOf(t, "e")
	named := o.export(t, "dek", inStatus) // the DataKey keeps its blob in a Secret of this name
	e := o.export(t, "e", inStatus)
	o.setPolicy(t, &policy{Recipients: toRecipients(otherRSARecipient())})
	o.Stalls(t, e, "ForbiddenNoPermission")
	o.Stalls(t, named, "ForbiddenNoPermission")
	if now := o.secretOf(t, "e"); now.UID != before.UID || now.ResourceVersion != before.ResourceVersion {
		t.Error("the Secret with the name of the object was written")
	}
	o.secretOf(t, "dek")
}

func TestExportedDataKey_inTheStatus_afterADryRun(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := newExport("e", inStatus, dryRun)
	o.Make(t, e)
	o.Stalls(t, e, "DryRunOperationError")
	if e.Status.ExportedDataKey != "" || e.Status.DryRunResult != v1alpha1.DryRunWouldSucceed {
		t.Errorf("the status of the dry run is %s", harness.StatusJSON(e))
	}
	o.Change(t, e, func() { e.Spec.DryRun = false })
	o.Ready(t, e)
	o.openStatus(t, e, rsaRecipient())
}

func TestExportedDataKey_inTheStatus_isRepeatedIfItsModuleWasWrong(t *testing.T) {
	t.Parallel()
	c := newChecks()
	o := startOperator(t, c.options()...)
	store := o.clusterStore(t, onSoftHSM)
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"), inClusterStore(store.Name))
	o.dataKey(t, "dek")
	c.pass(t, o)
	c.Lock()
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	e := o.export(t, "e", inStatus, withRSA("RSAES_OAEP_SHA_1"))
	first := e.Status.ExportedDataKey
	o.Module(t).FailAll("Check", errWrong)
	c.Unlock()
	o.Waits(t, store, v1alpha1.ReasonWrongResult)
	o.Waits(t, e, v1alpha1.ReasonKeyStoreNotReady, "may have returned a wrong result")
	o.Module(t).FailAll("Check", nil)
	o.Ready(t, store)
	c.clock.SetTime(c.clock.Now().Add(10 * time.Second))
	o.Ready(t, e)
	o.openStatus(t, e, rsaRecipient())
	if e.Status.ExportedDataKey == first {
		t.Error("the export was not repeated")
	}
	harness.WantWords(t, o.Event(t, e, "ExportRepeated"), []string{"exported again"})
	if n := o.Calls()["ExportDataKey"]; n != 2 {
		t.Errorf("the module made %d exports, want 2", n)
	}
}

func TestExportedDataKey_inTheStatus_ofTheLongestDataKeyAndRecipient_fits(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	for name, change := range map[string][]exportChange{
		"sm2":       {toBlob(sm2Recipient().public.Base64()), withSM2Format("ASN1")},
		"sm2-plain": {toBlob(sm2Recipient().public.Base64()), withSM2},
	} {
		o.dataKey(t, name, func(s *v1alpha1.DataKeySpec) { s.NumberOfBytes = 1024 })
		e := o.export(t, "e-"+name, append([]exportChange{ofDataKey(name), inStatus}, change...)...)
		if plain := o.openStatus(t, e, sm2Recipient()); len(plain) != 1024 {
			t.Errorf("%s: the data key has %d bytes", name, len(plain))
		}
	}
}
