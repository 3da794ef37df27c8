package controllers_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func dryRun(s *v1alpha1.ExportedDataKeySpec) { s.DryRun = true }

// exportedNothing checks that a dry run wrote no Secret, and says nothing of an export.
func (o *operator) exportedNothing(t testing.TB, e *v1alpha1.ExportedDataKey) {
	t.Helper()
	o.Read(t, e)
	if s := o.secretIn(t, e.Namespace, e.Name); s != nil {
		t.Error("there is a Secret")
	}
	s := e.Status
	if s.SecretRef != nil || s.ExportTime != nil || s.RequestID != "" || s.Custody != "" || s.InputsDigest != "" {
		t.Errorf("the status speaks of an export: %s", harness.StatusJSON(e))
	}
	if meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionReady) {
		t.Error("it is Ready")
	}
	want := map[string]v1alpha1.DryRunResult{ // none for other reasons
		"DryRunOperationError": v1alpha1.DryRunWouldSucceed,
		"ValidationError":      v1alpha1.DryRunWouldFail,
		"AccessDeniedError":    v1alpha1.DryRunWouldFail,
	}[meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReady).Reason]
	if s.DryRunResult != want {
		t.Errorf("the result is %q, want %q", s.DryRunResult, want)
	}
}

func TestDryRun_endsInWhatIsDocumented(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	blob := dataKeyBlob(o, t, "dek")
	elsewhere := o.Env.Namespace(t)
	for name, tc := range map[string]struct {
		change    exportChange
		elsewhere bool
		reason    string
		says      string
		asked     bool // the module was
	}{
		"wrong-type":      {func(s *v1alpha1.ExportedDataKeySpec) { s.WrappingKeySpec = "RSA_4096" }, false, "ValidationError", "The public key is RSA_2048", false},
		"no-public-key":   {toBlob("AAAA"), false, "ValidationError", "PublicKeyBlob", false},
		"another-context": {ofBlob(blob, map[string]v1alpha1.ContextValue{"a": "b"}), false, "ValidationError", "CiphertextBlob", true},
		"no-blob":         {ofBlob("AAAA", nil), false, "ValidationError", "CiphertextBlob", false},
		"not-allowed":     {ofBlobUnder(o.Namespace, "key", blob, nil), true, "AccessDeniedError", "Forbidden.NoPermission: ", false},
		"of-no-key":       {ofBlob(foreignBlob(t, blob), nil), false, "ValidationError", "keyRef: ImportedKey", false},
		"all-right":       {ofDataKey("dek"), false, "DryRunOperationError", "would have succeeded", true},
		"a-right-blob":    {ofBlob(blob, nil), false, "DryRunOperationError", "would have succeeded", true},
	} {
		e := newExport(name, tc.change, dryRun)
		if tc.elsewhere {
			e.Namespace = elsewhere
		}
		before := o.Calls()["ExportDataKey"]
		o.Make(t, e)
		o.Stalls(t, e, tc.reason, tc.reason+": ", tc.says)
		o.exportedNothing(t, e)
		o.Settled(t, e)
		if asked := o.Calls()["ExportDataKey"] - before; (asked > 0) != tc.asked || asked > 3 {
			t.Errorf("%s: the module was asked %d times", name, asked)
		}
	}
}

// foreignBlob is a blob that names a key version that does not exist.
func foreignBlob(t testing.TB, blob string) string {
	t.Helper()
	raw := decoded(t, blob)
	copy(raw, "00000000-0000-5000-8000-000000000000")
	return inline(raw, "").EncryptedKeyMaterial
}

func TestDryRun_waitsForWhatAnExportWaitsFor(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	noDataKey := newExport("no-data-key", ofDataKey("later"), dryRun)
	noRecipient := newExport("no-recipient", toConfigMap("later", "key"), dryRun)
	o.Make(t, noDataKey, noRecipient)
	o.Waits(t, noDataKey, v1alpha1.ReasonKeyNotReady)
	o.Waits(t, noRecipient, v1alpha1.ReasonSourceNotFound)
	o.exportedNothing(t, noDataKey)
	o.dataKey(t, "later")
	o.configMap(t, "later", "key", string(rsaRecipient().pem()))
	for _, e := range []*v1alpha1.ExportedDataKey{noDataKey, noRecipient} {
		o.Stalls(t, e, "DryRunOperationError")
		o.exportedNothing(t, e)
	}
}

func TestDryRun_ofAKeyThatMayNotBeUsed_isRepeatedWhenItMay(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	key := importedKey("key")
	key.Namespace = o.Namespace
	o.Change(t, key, func() { key.Spec.DesiredState = v1alpha1.DesiredDisabled })
	o.Ready(t, key)
	e := newExport("try", dryRun)
	o.Make(t, e)
	o.Stalls(t, e, "ValidationError", "Rejected.Disabled: ")
	o.Change(t, key, func() { key.Spec.DesiredState = v1alpha1.DesiredEnabled })
	o.Stalls(t, e, "DryRunOperationError")
	o.exportedNothing(t, e)
}

// An error that no one can repair is no outcome: the operator retries, as without a dry run.
func TestDryRun_whileTheModuleIsDown_isTriedAgain(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	module := o.Module(t)
	module.FailAll("ExportDataKey", hsm.Errorf(hsm.Unavailable, "The module is restarting."))
	e := newExport("try", dryRun)
	o.Make(t, e)
	o.Waits(t, e, "ServiceUnavailableTemporary")
	o.exportedNothing(t, e)
	module.FailAll("ExportDataKey", nil)
	o.Stalls(t, e, "DryRunOperationError")
	o.exportedNothing(t, e)
}

func TestDryRun_costsOneStatusWriteAndOneCall(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	o.uncounted(t)
	e := newExport("try", dryRun)
	o.Make(t, e)
	o.Stalls(t, e, "DryRunOperationError")
	o.Event(t, e, "DryRunOperationError")
	check := func(when string) {
		t.Helper()
		if w := o.Writes(); len(w) != 2 || w["patch exporteddatakeys/status"] != 1 || w["create events"] != 1 {
			t.Errorf("%s it wrote: %v", when, w)
		}
		if calls := o.Calls(); len(calls) != 1 || calls["ExportDataKey"] != 1 {
			t.Errorf("%s it called: %v", when, calls)
		}
	}
	check("once")
	// An unrelated change causes no reconcile.
	o.Make(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "another"}})
	o.Make(t, newExport("waiting", ofDataKey("later")))
	o.Waits(t, newIn(o, "waiting"), v1alpha1.ReasonKeyNotReady)
	if calls := o.Calls(); calls["ExportDataKey"] != 1 {
		t.Errorf("later it called: %v", calls)
	}
}

// newIn names an export of the test's namespace.
func newIn(o *operator, name string) *v1alpha1.ExportedDataKey {
	return &v1alpha1.ExportedDataKey{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: name}}
}

func TestDryRun_switchedOff_exports_andSwitchedOnAgain_leavesTheExport(t *testing.T) {
	t.Parallel()
	o := startToSpread(t, "Same")
	e := newExport("export", dryRun)
	o.Make(t, e)
	o.Stalls(t, e, "DryRunOperationError")
	o.exportedNothing(t, e)

	o.Change(t, e, func() { e.Spec.DryRun = false })
	o.Ready(t, e)
	if e.Status.DryRunResult != "" {
		t.Errorf("after the dry run the result is %q", e.Status.DryRunResult)
	}
	secret := o.checkExport(t, e, rsaRecipient())

	o.Change(t, e, func() { dryRun(&e.Spec) })
	o.Stalls(t, e, "DryRunOperationError")
	// Also for another recipient: that is what one tries it for.
	o.Change(t, e, func() { toBlob(otherRSARecipient().public.Base64())(&e.Spec) })
	o.Stalls(t, e, "DryRunOperationError")
	// And for one to whom the owner does not consent: the export that stands is consented to.
	key := &v1alpha1.ImportedKey{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: "key"}}
	o.Read(t, key)
	o.Change(t, key, func() { key.Spec.ExportPolicy.Recipients = toRecipients(rsaRecipient()) })
	o.Stalls(t, e, "AccessDeniedError", "does not consent to exports for this recipient")
	if now := o.secretOf(t, e.Name); now.ResourceVersion != secret.ResourceVersion {
		t.Error("the dry run wrote the Secret")
	}
	o.Change(t, key, func() { key.Spec.ExportPolicy.Recipients = nil })
	o.Stalls(t, e, "DryRunOperationError")
	o.Change(t, e, func() { e.Spec.DryRun = false })
	o.Ready(t, e)
	o.checkExport(t, e, otherRSARecipient())
}
