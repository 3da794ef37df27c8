package controllers_test

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
)

func TestExportedDataKey_blobThatDoesNotOpen_isRefused(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	ledger := map[string]v1alpha1.ContextValue{"app": "ledger"}
	blob := o.dataKey(t, "own", withContext(ledger)).Status.CiphertextBlob
	const unopened = "CiphertextBlob: It cannot be decrypted: it is damaged, or belongs to another key or another EncryptionContext."
	for name, c := range map[string]struct {
		blob    string
		context map[string]v1alpha1.ContextValue
		says    string
	}{
		"cut-short":       {cutShort(t, blob), ledger, unopened},
		"another-context": {blob, map[string]v1alpha1.ContextValue{"app": "Ledger"}, unopened},
		"no-context":      {blob, nil, unopened},
		"more-context":    {blob, map[string]v1alpha1.ContextValue{"app": "ledger", "x": ""}, unopened},
		"no-base64":       {"&&&", ledger, "CiphertextBlob: It is not a CiphertextBlob"},
		"too-short":       {"AAAA", ledger, "CiphertextBlob: It is not a CiphertextBlob"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExport(name, ofBlob(c.blob, c.context))
			o.Make(t, e)
			o.Stalls(t, e, "InvalidParameter", "InvalidParameter: ", c.says)
			o.absent(t, name)
		})
	}
}

func TestExportedDataKey_inlineBlob_isExported(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	ledger := map[string]v1alpha1.ContextValue{"app": "ledger"}
	k := o.dataKey(t, "own", withContext(ledger))
	want := o.dataKeyBytes(t, k)
	e := o.export(t, "e", ofBlob(inLines(k.Status.CiphertextBlob), ledger))
	o.checkExport(t, e, rsaRecipient())
	if !bytes.Equal(o.openExport(t, e, rsaRecipient()), want) {
		t.Error("it is another data key")
	}
	if e.Status.KeyID != k.Status.KeyID || e.Status.KeyVersionID != k.Status.KeyVersionID {
		t.Errorf("the status names key %s, version %s", e.Status.KeyID, e.Status.KeyVersionID)
	}
}

// The blob names its key, so a copy of it in another namespace does not go round the owner.
func TestExportedDataKey_blobOfAnotherNamespace_isNotExported(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	blob := o.dataKey(t, "dek").Status.CiphertextBlob
	e := newExport("thief", ofBlobUnder(o.Namespace, "key", blob, nil))
	e.Namespace = o.Env.Namespace(t)
	o.Make(t, e)
	o.Stalls(t, e, "ForbiddenNoPermission", "Forbidden.NoPermission: ", "does not consent to exports in this namespace")
	if n := o.Calls()["ExportDataKey"]; n != 0 {
		t.Errorf("the module was asked %d times", n)
	}
}

func TestExportedDataKey_blobOfNoKey_isRefused(t *testing.T) {
	t.Parallel()
	o := startWithKey(t)
	blob, err := ciphertext.Parse(o.dataKey(t, "dek").Status.CiphertextBlob)
	if err != nil {
		t.Fatal(err)
	}
	blob.KeyVersionID = uuid.New()
	e := newExport("e", ofBlob(blob.String(), nil))
	o.Make(t, e)
	o.Stalls(t, e, "InvalidParameter", "keyRef: ImportedKey "+o.Namespace+"/key does not exist, or is not the key that ciphertextBlob was made under")
	o.absent(t, "e")
}
