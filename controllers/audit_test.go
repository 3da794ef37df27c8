package controllers_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/audit"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// auditLines are the operator's lines, with every field checked for what it must always be.
func (o *operator) auditLines(t testing.TB) []audit.Record {
	t.Helper()
	var all []audit.Record
	requests := map[string]bool{}
	for text := range strings.Lines(o.Audit.String()) {
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.DisallowUnknownFields()
		var r audit.Record
		if err := decoder.Decode(&r); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if r.Audit != audit.Format || r.Time.IsZero() || uuid.Validate(r.RequestID) != nil || requests[r.RequestID] ||
			r.Object.Namespace != o.Namespace || uuid.Validate(r.Object.UID) != nil || r.DurationMillis < 0 {
			t.Errorf("a field is missing or wrong: %s", text)
		}
		requests[r.RequestID] = true
		all = append(all, r)
	}
	return all
}

// auditSays checks which operations were recorded since the last call, in order.
func (o *operator) auditSays(t testing.TB, want ...string) []audit.Record {
	t.Helper()
	harness.Eventually(t, func() string { // a refusal is recorded after the status says it
		if n := strings.Count(o.Audit.String(), "\n"); n < len(want) {
			return fmt.Sprintf("the audit log has %d lines, want %d", n, len(want))
		}
		return ""
	})
	all := o.auditLines(t)
	var got []string
	for _, r := range all {
		got = append(got, fmt.Sprintf("%s of %s %s: %s", r.Operation, r.Object.Kind, r.Object.Name, r.Outcome))
	}
	if !slices.Equal(got, want) {
		t.Errorf("the audit log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	o.Audit.Reset()
	return all
}

// One journey, and each line that it writes.
func TestAudit_recordsEachOperationOnAKey(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftware)
	key := o.pendingKey(t, "key", func(s *v1alpha1.ImportedKeySpec) { s.DeletionPolicy = v1alpha1.DeletionDelete })
	material := o.material(32)
	o.give(t, key, inline(wrapUnder(t, key.Status.ImportParameters, material), key.Status.ImportParameters.ImportToken))
	o.enabled(t, key)
	lines := o.auditSays(t, "GetParametersForImport of ImportedKey key: Success", "ImportKeyMaterial of ImportedKey key: Success")
	for _, r := range lines {
		if r.KeyID != key.Status.KeyID || r.KeyVersionID != key.Status.KeyVersionID || r.Object.UID != string(key.UID) {
			t.Errorf("the line is not of the key: %s", harness.JSON(r))
		}
	}
	if r := lines[0]; r.RecipientFingerprint != key.Status.ImportParameters.PublicKeyFingerprint || string(r.Algorithm) != string(key.Spec.ImportParameters.WrappingAlgorithm) {
		t.Errorf("the line is not of the parameters: %s", harness.JSON(r))
	}
	if r := lines[1]; r.Custody != hsm.CustodySoftware {
		t.Errorf("the import has no custody: %s", harness.JSON(r))
	}

	o.dataKey(t, "dek", withContext(map[string]v1alpha1.ContextValue{"canary-name": "canary-value"}))
	e := o.export(t, "for-rsa")
	if text := o.Audit.String(); strings.Contains(text, "canary") || strings.Contains(text, dataKeyBlob(o, t, "dek")) {
		t.Errorf("the audit log has the EncryptionContext, or the blob: %s", text)
	}
	lines = o.auditSays(t, "GenerateDataKeyWithoutPlaintext of DataKey dek: Success", "ExportDataKey of ExportedDataKey for-rsa: Success")
	want := audit.Record{
		Audit: audit.Format, Time: lines[1].Time, RequestID: e.Status.RequestID, Operation: audit.ExportDataKey,
		Object: audit.Object{Kind: "ExportedDataKey", Namespace: o.Namespace, Name: "for-rsa", UID: string(e.UID)},
		KeyID:  key.Status.KeyID, KeyVersionID: key.Status.KeyVersionID, RecipientFingerprint: e.Status.RecipientFingerprint,
		Algorithm: wrapping.Algorithm(e.Spec.WrappingAlgorithm), Custody: hsm.CustodySoftware,
		Outcome: audit.Success, DurationMillis: lines[1].DurationMillis,
	}
	if lines[1] != want {
		t.Errorf("the export is recorded as\n%s, want\n%s", harness.JSON(lines[1]), harness.JSON(want))
	}

	// The owner withdraws consent. A restart asks for it again, and has nothing new to tell.
	o.Change(t, key, func() {
		key.Spec.ExportPolicy = &v1alpha1.ExportPolicy{Recipients: []v1alpha1.ExportRecipient{{Fingerprint: "SHA256:" + strings.Repeat("0", 64)}}}
	})
	o.Stalls(t, e, "ForbiddenNoPermission")
	lines = o.auditSays(t, "WithdrawExport of ExportedDataKey for-rsa: Success", "ExportDataKey of ExportedDataKey for-rsa: Forbidden.NoPermission")
	for _, r := range lines {
		if r.KeyID != key.Status.KeyID || r.KeyVersionID != key.Status.KeyVersionID || r.RecipientFingerprint != want.RecipientFingerprint {
			t.Errorf("the line does not say what was refused: %s", harness.JSON(r))
		}
	}
	o.Restart(t)
	o.Settled(t, key, e)
	o.auditSays(t)

	o.Annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "now")
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	lines = o.auditLines(t)
	if len(lines) == 0 || lines[0].Operation != audit.DeleteKeyMaterial || lines[0].Outcome != audit.Success {
		t.Errorf("the deletion of the material is recorded as %s", harness.JSON(lines))
	}
	o.auditLines(t)
	o.Audit.Reset()

	o.Remove(t, key)
	o.Gone(t, key)
	lines = o.auditLines(t)
	var destroyed []audit.Operation
	for _, r := range lines {
		if r.Object.Kind == "ImportedKey" && r.Operation != audit.GetParametersForImport {
			destroyed = append(destroyed, r.Operation)
		}
	}
	if !slices.Equal(destroyed, []audit.Operation{audit.DestroyImportParameters, audit.DestroyKey}) {
		t.Errorf("the end of the key is recorded as %s", harness.JSON(lines))
	}
}

// What is taken over, what expires, and what fails.
func TestAudit_recordsTakeOversExpiryAndFailures(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, harness.WithClock(clock))
	o.store(t, onSoftware)
	end := clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", o.material(32), end)
	made := o.dataKey(t, "dek")
	o.Audit.Reset()

	o.dataKey(t, "again", withBlob(made.Status.CiphertextBlob))
	o.auditSays(t, "TakeOverDataKey of DataKey again: Success")

	broken := newDataKey("broken", withBlob(cutShort(t, made.Status.CiphertextBlob)))
	o.Make(t, broken)
	o.Stalls(t, broken, "InvalidParameter")
	o.auditSays(t, "TakeOverDataKey of DataKey broken: InvalidParameter")

	clock.SetTime(end)
	o.Touch(t, key)
	o.Waits(t, key, v1alpha1.ReasonPendingImport)
	if lines := o.auditLines(t); len(lines) == 0 || lines[0].Operation != audit.ExpireKeyMaterial {
		t.Errorf("the expiry is recorded as %s", harness.JSON(lines))
	}
}

// In a namespace that is being deleted, what was removed is not made again, and nothing is tried again and again.
func TestTerminatingNamespace_secretsAreNotMadeAgain(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.dataKey(t, "dek")
	e := o.export(t, "for-rsa")
	namespace := &metav1.PartialObjectMetadata{}
	namespace.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	namespace.Name = o.Namespace
	if err := o.Delete(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	secret := o.secretOf(t, "for-rsa")
	for _, object := range []client.Object{secret, o.secretOf(t, "dek")} {
		o.Remove(t, object)
	}
	o.Waits(t, e, v1alpha1.ReasonNamespaceTerminating)
	k := newDataKey("dek")
	k.Namespace = o.Namespace
	o.Waits(t, k, v1alpha1.ReasonNamespaceTerminating)
	o.absent(t, "for-rsa")
	o.Restart(t)
	o.Settled(t, e, k)
	if writes := o.Writes(); writes["patch exporteddatakeys/status"]+writes["patch datakeys/status"] > 0 {
		t.Errorf("the operator writes again: %v", writes)
	}
	if strings.Contains(o.Log.String(), "The operator failed to reconcile the object") {
		t.Errorf("it is logged as a failure:\n%s", o.Log.String())
	}
}
