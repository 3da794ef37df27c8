package controllers_test

import (
	"bytes"
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

func TestExportedDataKey_custodyThatThePolicyForbidsIsRefused(t *testing.T) {
	t.Parallel()
	o := startOperator(t)
	o.store(t, onSoftHSM, func(s *v1alpha1.KeyStoreSpec) { s.Custody = v1alpha1.CustodyModuleOnly })
	o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
	o.dataKey(t, "dek")
	for name, change := range map[string][]exportChange{
		"oaep-sha-256": {withRSA("RSAES_OAEP_SHA_256")},
		"sm2":          {toBlob(sm2Recipient().public.Base64()), withSM2},
	} {
		e := newExport(name, change...)
		o.Make(t, e)
		o.Stalls(t, e, "UnsupportedOperation", "UnsupportedOperation: This action is not supported. ",
			"The key store does not support Export "+e.Spec.WrappingAlgorithm+", or its custody policy forbids it. Supported: RSAES_OAEP_SHA_1")
		o.Event(t, e, "UnsupportedOperation")
		o.absent(t, name)
	}
	if e := o.export(t, "oaep-sha-1", withRSA("RSAES_OAEP_SHA_1")); e.Status.Custody != v1alpha1.Custody(hsm.CustodyModule) {
		t.Errorf("custody is %s", e.Status.Custody)
	}
	if n := o.Calls()["ExportDataKey"]; n != 1 {
		t.Errorf("the module was asked for %d exports", n)
	}
}

func TestExportedDataKey_custodyIsTheModules(t *testing.T) {
	t.Parallel()
	for store, custodies := range map[string]map[string]hsm.Custody{
		onSoftware: {"RSAES_OAEP_SHA_256": hsm.CustodySoftware, "RSAES_OAEP_SHA_1": hsm.CustodySoftware, "SM2PKE": hsm.CustodySoftware},
		onSoftHSM:  {"RSAES_OAEP_SHA_256": hsm.CustodyHost, "RSAES_OAEP_SHA_1": hsm.CustodyModule, "SM2PKE": hsm.CustodyHost},
		onNSS:      {"RSAES_OAEP_SHA_256": hsm.CustodyModule, "RSAES_OAEP_SHA_1": hsm.CustodyModule, "SM2PKE": hsm.CustodyHost},
	} {
		t.Run(store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, store)
			o.enabledKey(t, "key", nil, under("RSA_2048", "RSAES_OAEP_SHA_1"))
			want := o.dataKeyBytes(t, o.dataKey(t, "dek", withContext(map[string]v1alpha1.ContextValue{"app": "ledger"})))
			exports := map[string]*v1alpha1.ExportedDataKey{
				"RSAES_OAEP_SHA_256": newExport("oaep-sha-256"),
				"RSAES_OAEP_SHA_1":   newExport("oaep-sha-1", withRSA("RSAES_OAEP_SHA_1")),
				"SM2PKE":             newExport("sm2", toBlob(sm2Recipient().public.Base64()), withSM2),
			}
			for algorithm, e := range exports {
				to := rsaRecipient()
				if algorithm == "SM2PKE" {
					to = sm2Recipient()
				}
				o.Make(t, e)
				o.Ready(t, e)
				o.checkExport(t, e, to)
				if got := hsm.Custody(e.Status.Custody); got != custodies[algorithm] {
					t.Errorf("%s: custody is %s, want %s", algorithm, got, custodies[algorithm])
				}
				if !bytes.Equal(o.openExport(t, e, to), want) {
					t.Errorf("%s: it is another data key", algorithm)
				}
			}
		})
	}
}
