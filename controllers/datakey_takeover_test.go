package controllers_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/testenv/harness"
)

func TestDataKey_aBlobThatDoesNotOpenIsNotTakenOver(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	o.enabledKey(t, "elsewhere", nil)
	ledger := map[string]v1alpha1.ContextValue{"app": "ledger"}
	own := o.dataKey(t, "own", withContext(ledger)).Status.CiphertextBlob
	foreign := o.dataKey(t, "foreign", underKey("elsewhere"), withContext(ledger)).Status.CiphertextBlob
	const unopened = "It cannot be decrypted: it is damaged, or belongs to another key or another EncryptionContext."
	for name, c := range map[string]struct {
		blob    string
		context map[string]v1alpha1.ContextValue
		says    string
	}{
		"of-another-key":        {foreign, ledger, unopened},
		"cut-short":             {cutShort(t, own), ledger, unopened},
		"under-another-context": {own, map[string]v1alpha1.ContextValue{"app": "ledgers"}, unopened},
		"without-its-context":   {own, nil, unopened},
		"not-base64":            {"&&&", ledger, "It is not a CiphertextBlob"},
		"too-short-for-a-blob":  {"AAAA", ledger, "It is not a CiphertextBlob"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newDataKey(name, withBlob(c.blob), withContext(c.context))
			o.Make(t, k)
			message := o.Stalls(t, k, "InvalidParameter", "InvalidParameter: ", "CiphertextBlob: "+c.says)
			if strings.Contains(message, "move the Secret away") {
				t.Errorf("it speaks of a Secret, and there is none: %s", message)
			}
			o.absent(t, name)
		})
	}
	if n := o.Calls()["GenerateDataKey"]; n != 2 {
		t.Errorf("another data key was made instead: %d", n)
	}
}

func TestDataKey_takesABlobOver(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	ledger := map[string]v1alpha1.ContextValue{"app": "ledger"}
	old := o.dataKey(t, "old", withContext(ledger))
	want := o.dataKeyBytes(t, old)
	o.ForgetCounts()
	k := o.dataKey(t, "new", withContext(ledger), withBlob(inLines(old.Status.CiphertextBlob)))
	if k.Status.CiphertextBlob != old.Status.CiphertextBlob {
		t.Errorf("the status has %q", k.Status.CiphertextBlob)
	}
	if k.Status.Custody != v1alpha1.CustodyUnknown {
		t.Errorf("custody is %s; it cannot be known", k.Status.Custody)
	}
	o.checkSecretOf(t, k, "new")
	wantCounts(t, "taking over", o.Calls(), map[string]int{"VerifyDataKey": 1, "Authenticate": 1})
	if got := o.dataKeyBytes(t, k); string(got) != string(want) {
		t.Error("it is another data key")
	}
}

// A consumer that reckons with the length that the spec says must not get another.
func TestDataKey_aBlobOfAnotherLengthIsNotTakenOver(t *testing.T) {
	t.Parallel()
	for store, lengths := range map[string][]int32{onSoftware: {16, 20}, onSoftHSM: {16, 20}} {
		t.Run(store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, store)
			o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
			for _, n := range lengths {
				name := fmt.Sprintf("of-%d", n)
				blob := o.dataKey(t, name, withBytes(n)).Status.CiphertextBlob
				says := []string{fmt.Sprintf("has %d bytes", n), "requires 24", "Create another DataKey"}

				given := newDataKey(name+"-given", withBytes(24), withBlob(blob))
				o.Make(t, given)
				if message := o.Stalls(t, given, "InvalidParameter", says...); strings.Contains(message, "Secret") {
					t.Errorf("it speaks of a Secret, and there is none: %s", message)
				}
				o.absent(t, given.Name)

				found := newDataKey(name+"-found", withBytes(24))
				o.makeSecret(t, o.tagged(t, keptBlob(found.Name, found.Name, blob)))
				o.Make(t, found)
				o.Stalls(t, found, "InvalidParameter", append(says, "is not replaced")...)
				if found.Status.CiphertextBlob != "" || string(o.secretOf(t, found.Name).Data["ciphertextBlob"]) != blob {
					t.Error("it was taken over, or replaced")
				}

				o.dataKey(t, name+"-right", withBytes(n), withBlob(blob))
				o.dataKey(t, name+"-any", withBlob(blob))
			}
			if n := o.Calls()["GenerateDataKey"]; n != len(lengths) {
				t.Errorf("another data key was made instead: %d", n)
			}
		})
	}
}

// inLines breaks a text as base64(1) does.
func inLines(text string) string {
	var lines []string
	for len(text) > 76 {
		lines, text = append(lines, text[:76]), text[76:]
	}
	return strings.Join(append(lines, text), "\n") + "\n"
}

func TestDataKey_blobThatIsAddedLaterMustBeItsOwn(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	other := o.dataKey(t, "other").Status.CiphertextBlob
	k := o.dataKey(t, "dek")
	blob := k.Status.CiphertextBlob
	o.Change(t, k, func() { k.Spec.CiphertextBlob = blob })
	o.Ready(t, k)

	second := o.dataKey(t, "second")
	o.Change(t, second, func() { second.Spec.CiphertextBlob = other })
	o.Stalls(t, second, "InvalidParameter", "status and spec contain different data keys", "create a new DataKey")
	if got := string(o.secretOf(t, "second").Data["ciphertextBlob"]); got != second.Status.CiphertextBlob {
		t.Error("the Secret was changed")
	}
}

func TestDataKey_lostStatusIsTakenFromTheSecret(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	before := k.DeepCopy().Status
	if before.Custody != v1alpha1.Custody(hsm.CustodySoftware) {
		t.Errorf("custody is %s", before.Custody)
	}
	for _, wake := range []func(){
		func() { o.wakeBySecret(t, "dek") },
		func() { o.Restart(t) },
	} {
		o.ForgetCounts()
		o.loseStatus(t, k)
		wake()
		o.Ready(t, k)
		o.checkSecretOf(t, k, "dek")
		if k.Status.CiphertextBlob != before.CiphertextBlob || k.Status.Custody != v1alpha1.CustodyUnknown || k.Status.KeyVersionID != before.KeyVersionID {
			t.Errorf("the status is %+v, was %+v", k.Status, before)
		}
		wantCounts(t, "taking over", o.Calls(), map[string]int{"VerifyDataKey": 1, "Authenticate": 1})
	}
}

func TestDataKey_takesOverASecretThatWasThereBefore(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	old := o.dataKey(t, "old")
	// Anyone who may write Secrets can write their annotations, so no custody is believed.
	for name, custody := range map[string]string{"with-the-best-custody": "Module", "with-a-custody-that-is-no-word": "Safe", "without-a-custody": ""} {
		t.Run(name, func(t *testing.T) {
			s := o.tagged(t, keptBlob(name, name, old.Status.CiphertextBlob))
			s.Annotations["keyconvoy.io/custody"] = custody
			o.makeSecret(t, s)
			k := o.dataKey(t, name)
			if o.checkSecretOf(t, k, name); k.Status.CiphertextBlob != old.Status.CiphertextBlob || k.Status.Custody != v1alpha1.CustodyUnknown {
				t.Errorf("the status is %+v", k.Status)
			}
		})
	}
}

// Someone who has the verb export on the DataKey ledger and may write Secrets gives that name to another data key.
func TestDataKey_blobInASecretThatIsNotItsOwn_isNotTakenOver(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	payroll := o.secretOf(t, o.dataKey(t, "payroll").Name)
	stolen := func(name string, change func(*corev1.Secret)) *corev1.Secret {
		s := keptBlob(name, name, string(payroll.Data["ciphertextBlob"]))
		change(s)
		return s
	}
	tag := func(value string) func(*corev1.Secret) {
		return func(s *corev1.Secret) { s.Annotations["keyconvoy.io/blob-tag"] = value }
	}
	for name, change := range map[string]func(*corev1.Secret){
		"without-a-tag":      func(*corev1.Secret) {},
		"with-the-other-tag": tag(payroll.Annotations["keyconvoy.io/blob-tag"]),
		"with-a-made-up-tag": tag("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
		"with-garbage":       tag("&&&"),
	} {
		t.Run(name, func(t *testing.T) {
			s := o.makeSecret(t, stolen(name, change))
			k := newDataKey(name)
			o.Make(t, k)
			o.Stalls(t, k, "InvalidParameter", "It has no valid tag for DataKey "+name, "put it into spec.ciphertextBlob, which requires the verb export on the ImportedKey key")
			e := newExport(name+"-export", ofDataKey(name))
			o.Make(t, e)
			o.Waits(t, e, v1alpha1.ReasonKeyNotReady)
			if got := o.secretOf(t, name); got.ResourceVersion != s.ResourceVersion || k.Status.CiphertextBlob != "" {
				t.Error("it was taken over, or touched")
			}
			// With the blob in the spec, for which the policy asks the verb export, it is.
			o.Change(t, k, func() { k.Spec.CiphertextBlob = string(payroll.Data["ciphertextBlob"]) })
			o.Ready(t, k, e)
			o.checkSecretOf(t, k, name)
		})
	}
}

func TestDataKey_outlivesItsObject(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	blob := k.Status.CiphertextBlob
	uid := o.secretOf(t, "dek").UID
	o.Remove(t, k)
	o.Gone(t, k)
	again := o.dataKey(t, "dek")
	if s := o.checkSecretOf(t, again, "dek"); s.UID != uid {
		t.Error("the Secret went with the object")
	}
	if again.Status.CiphertextBlob != blob || again.Status.Custody != v1alpha1.CustodyUnknown {
		t.Errorf("another data key took its place: %+v", again.Status)
	}
	if n := o.Calls()["GenerateDataKey"]; n != 1 {
		t.Errorf("%d data keys were made", n)
	}
}

func TestDataKey_keyOfTheSameNameThatIsAnotherKey_isRefused(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	blob := k.Status.CiphertextBlob
	key := importedKey("key")
	key.Namespace = o.Namespace
	o.Remove(t, key)
	o.Gone(t, key)
	o.Waits(t, k, v1alpha1.ReasonKeyNotReady, "ImportedKey key does not exist")

	// The key is there under another name: anyone who may create keys must not be able to have its data keys moved.
	o.Make(t, importedKey("restored", func(s *v1alpha1.ImportedKeySpec) {
		s.Adopt = &v1alpha1.AdoptSpec{KeyVersionID: k.Status.KeyVersionID}
	}))
	o.enabledKey(t, "key", nil)
	o.Stalls(t, k, "InvalidParameter", "keyRef: ", "is now a different key", "adopt.keyVersionID: "+k.Status.KeyVersionID, "adopt.keyVersionIDs", "create a new DataKey")
	if k.Status.CiphertextBlob != blob || string(o.secretOf(t, "dek").Data["ciphertextBlob"]) != blob {
		t.Error("the blob was changed")
	}

	// Its owner names it by its new name. The data key stays what it is.
	o.Change(t, k, func() { k.Spec.KeyRef.Name = "restored" })
	o.Ready(t, k)
	if k.Status.CiphertextBlob != blob || k.Status.KeyRef == nil || k.Status.KeyRef.Name != "restored" {
		t.Errorf("the status is %s", harness.JSON(k.Status))
	}
}

// A backup tool may bring the object before its Secret, and never brings a status. What it does bring says
// that there was a data key.
func TestDataKey_restoredBeforeItsSecret_isNotMadeAnew(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	k := o.dataKey(t, "dek")
	o.Until(t, k, func() string {
		if k.Annotations[v1alpha1.AnnotationDataKeyMade] != k.Status.KeyVersionID {
			return "the object does not say that it has a data key"
		}
		return ""
	})
	blob, secret := k.Status.CiphertextBlob, o.secretOf(t, "dek")
	o.RemoveUnseen(t, k, secret)

	restored := newDataKey("dek")
	restored.Annotations = map[string]string{v1alpha1.AnnotationDataKeyMade: k.Annotations[v1alpha1.AnnotationDataKeyMade]}
	o.Make(t, restored)
	o.Stalls(t, restored, "InvalidParameter", "The data key created under key version", "which is missing. Restore the Secret", v1alpha1.AnnotationDataKeyMade)
	o.makeSecret(t, o.tagged(t, keptBlob("dek", "dek", blob)))
	o.Ready(t, restored)
	if restored.Status.CiphertextBlob != blob {
		t.Error("it is another data key")
	}
	if n := o.Calls()["GenerateDataKey"]; n != 1 {
		t.Errorf("%d data keys were made", n)
	}
}
