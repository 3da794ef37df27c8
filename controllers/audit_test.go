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
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// auditOf takes an operator's audit log.
type auditOf struct{ *operator }

func (a auditOf) Write(line []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.audited.Write(line)
}

func (o *operator) auditLog() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.audited.String()
}

// auditLines are the operator's lines, with every field checked for what it must always be.
func (o *operator) auditLines(t testing.TB) []audit.Record {
	t.Helper()
	var all []audit.Record
	requests := map[string]bool{}
	for text := range strings.Lines(o.auditLog()) {
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.DisallowUnknownFields()
		var r audit.Record
		if err := decoder.Decode(&r); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if r.Audit != audit.Format || r.Time.IsZero() || uuid.Validate(r.RequestID) != nil || requests[r.RequestID] ||
			r.Object.Namespace != o.namespace || uuid.Validate(r.Object.UID) != nil || r.DurationMillis < 0 {
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
	eventually(t, func() string { // a refusal is recorded after the status says it
		if n := strings.Count(o.auditLog(), "\n"); n < len(want) {
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
	o.mu.Lock()
	defer o.mu.Unlock()
	o.audited.Reset()
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
			t.Errorf("the line is not of the key: %s", toJSON(r))
		}
	}
	if r := lines[0]; r.RecipientFingerprint != key.Status.ImportParameters.PublicKeyFingerprint || string(r.Algorithm) != string(key.Spec.ImportParameters.WrappingAlgorithm) {
		t.Errorf("the line is not of the parameters: %s", toJSON(r))
	}
	if r := lines[1]; r.Custody != hsm.CustodySoftware {
		t.Errorf("the import has no custody: %s", toJSON(r))
	}

	o.dataKey(t, "dek", withContext(map[string]v1alpha1.ContextValue{"canary-name": "canary-value"}))
	e := o.export(t, "for-rsa")
	if text := o.auditLog(); strings.Contains(text, "canary") || strings.Contains(text, dataKeyBlob(o, t, "dek")) {
		t.Errorf("the audit log has the EncryptionContext, or the blob: %s", text)
	}
	lines = o.auditSays(t, "GenerateDataKeyWithoutPlaintext of DataKey dek: Success", "ExportDataKey of ExportedDataKey for-rsa: Success")
	want := audit.Record{
		Audit: audit.Format, Time: lines[1].Time, RequestID: e.Status.RequestID, Operation: audit.ExportDataKey,
		Object: audit.Object{Kind: "ExportedDataKey", Namespace: o.namespace, Name: "for-rsa", UID: string(e.UID)},
		KeyID:  key.Status.KeyID, KeyVersionID: key.Status.KeyVersionID, RecipientFingerprint: e.Status.RecipientFingerprint,
		Algorithm: wrapping.Algorithm(e.Spec.WrappingAlgorithm), Custody: hsm.CustodySoftware,
		Outcome: audit.Success, DurationMillis: lines[1].DurationMillis,
	}
	if lines[1] != want {
		t.Errorf("the export is recorded as\n%s, want\n%s", toJSON(lines[1]), toJSON(want))
	}

	// The owner withdraws consent. A restart asks for it again, and has nothing new to tell.
	o.change(t, key, func() {
		key.Spec.ExportPolicy = &v1alpha1.ExportPolicy{Recipients: []v1alpha1.ExportRecipient{{Fingerprint: "SHA256:" + strings.Repeat("0", 64)}}}
	})
	o.stalls(t, e, "ForbiddenNoPermission")
	lines = o.auditSays(t, "WithdrawExport of ExportedDataKey for-rsa: Success", "ExportDataKey of ExportedDataKey for-rsa: Forbidden.NoPermission")
	for _, r := range lines {
		if r.KeyID != key.Status.KeyID || r.KeyVersionID != key.Status.KeyVersionID || r.RecipientFingerprint != want.RecipientFingerprint {
			t.Errorf("the line does not say what was refused: %s", toJSON(r))
		}
	}
	o.restart(t)
	o.settled(t, key, e)
	o.auditSays(t)

	o.annotate(t, key, v1alpha1.AnnotationDeleteKeyMaterial, "now")
	o.waits(t, key, v1alpha1.ReasonPendingImport)
	lines = o.auditLines(t)
	if len(lines) == 0 || lines[0].Operation != audit.DeleteKeyMaterial || lines[0].Outcome != audit.Success {
		t.Errorf("the deletion of the material is recorded as %s", toJSON(lines))
	}
	o.auditLines(t)
	o.mu.Lock()
	o.audited.Reset()
	o.mu.Unlock()

	o.remove(t, key)
	o.gone(t, key)
	lines = o.auditLines(t)
	var destroyed []audit.Operation
	for _, r := range lines {
		if r.Object.Kind == "ImportedKey" && r.Operation != audit.GetParametersForImport {
			destroyed = append(destroyed, r.Operation)
		}
	}
	if !slices.Equal(destroyed, []audit.Operation{audit.DestroyImportParameters, audit.DestroyKey}) {
		t.Errorf("the end of the key is recorded as %s", toJSON(lines))
	}
}

// What is taken over, what expires, and what fails.
func TestAudit_recordsTakeOversExpiryAndFailures(t *testing.T) {
	t.Parallel()
	clock := testClock()
	o := startOperator(t, withClock(clock))
	o.store(t, onSoftware)
	end := clock.Now().Add(time.Hour)
	key := o.keyUntil(t, "key", o.material(32), end)
	made := o.dataKey(t, "dek")
	o.mu.Lock()
	o.audited.Reset()
	o.mu.Unlock()

	o.dataKey(t, "again", withBlob(made.Status.CiphertextBlob))
	o.auditSays(t, "TakeOverDataKey of DataKey again: Success")

	broken := newDataKey("broken", withBlob(cutShort(t, made.Status.CiphertextBlob)))
	o.create(t, broken)
	o.stalls(t, broken, "InvalidParameter")
	o.auditSays(t, "TakeOverDataKey of DataKey broken: InvalidParameter")

	clock.SetTime(end)
	o.touch(t, key)
	o.waits(t, key, v1alpha1.ReasonPendingImport)
	if lines := o.auditLines(t); len(lines) == 0 || lines[0].Operation != audit.ExpireKeyMaterial {
		t.Errorf("the expiry is recorded as %s", toJSON(lines))
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
	namespace.Name = o.namespace
	if err := o.Delete(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	secret := o.secretOf(t, "for-rsa")
	for _, object := range []client.Object{secret, o.secretOf(t, "dek")} {
		o.remove(t, object)
	}
	o.waits(t, e, v1alpha1.ReasonNamespaceTerminating)
	k := newDataKey("dek")
	k.Namespace = o.namespace
	o.waits(t, k, v1alpha1.ReasonNamespaceTerminating)
	o.absent(t, "for-rsa")
	o.restart(t)
	o.settled(t, e, k)
	if writes := o.writes(); writes["patch exporteddatakeys/status"]+writes["patch datakeys/status"] > 0 {
		t.Errorf("the operator writes again: %v", writes)
	}
	if strings.Contains(o.logged(), "The operator failed to reconcile the object") {
		t.Errorf("it is logged as a failure:\n%s", o.logged())
	}
}
