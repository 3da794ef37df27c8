package controllers_test

import (
	"bytes"
	"testing"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// A key is brought with openssl, a data key is made under it, and what comes out is opened with openssl.
// On the way nothing is stored or said from which a key could be read.
func TestJourney_fromOpensslToOpenssl_withoutAKeyInTheClear(t *testing.T) {
	t.Parallel()
	for store, importCustody := range map[string]hsm.Custody{
		onSoftware: hsm.CustodySoftware, onSoftHSM: hsm.CustodyHost, onNSS: hsm.CustodyModule,
	} {
		t.Run(store, func(t *testing.T) {
			o := startOperator(t)
			o.store(t, store)
			key := o.pendingKey(t, "key", under("RSA_2048", "RSAES_OAEP_SHA_256"))
			material := o.material(32)
			o.give(t, key, inline(opensslWrap(t, key.Status.ImportParameters, material), key.Status.ImportParameters.ImportToken))
			o.enabled(t, key)
			if got := hsm.Custody(key.Status.Custody); got != importCustody {
				t.Errorf("custody of the key is %s, want %s", got, importCustody)
			}

			o.dataKey(t, "dek", withContext(map[string]v1alpha1.ContextValue{"app": "ledger"}))
			forRSA := o.export(t, "for-rsa")
			forSM2 := o.export(t, "for-sm2", toBlob(string(sm2Recipient().pem())), withSM2Format("ASN1"))
			one := opensslOpen(t, rsaRecipient(), "RSAES_OAEP_SHA_256", o.exportedBytes(t, forRSA))
			two := opensslOpen(t, sm2Recipient(), "SM2PKE", o.exportedBytes(t, forSM2))
			if len(one) != 32 || !bytes.Equal(one, two) {
				t.Error("the two recipients got different data keys")
			}
			if bytes.Equal(one, material) {
				t.Error("the data key is the material")
			}
			o.Hide("data key", one)

			// What goes wrong speaks the most.
			broken := newExport("broken", ofBlob(cutShort(t, dataKeyBlob(o, t, "dek")), nil))
			o.Make(t, broken)
			o.Stalls(t, broken, "InvalidParameter")
			o.Event(t, broken, "InvalidParameter")
			o.nowhere(t, map[string][]byte{"material": material, "data key": one})
		})
	}
}

func dataKeyBlob(o *operator, t testing.TB, name string) string {
	t.Helper()
	k := newDataKey(name)
	k.Namespace = o.Namespace
	o.Read(t, k)
	return k.Status.CiphertextBlob
}
