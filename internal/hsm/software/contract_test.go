package software_test

import (
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
)

func TestModule_keepsTheContract(t *testing.T) {
	t.Parallel()
	runContract(t, false, capabilities("RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "SM2PKE"))
}

func TestModule_withPKCS1v15Allowed_keepsTheContract(t *testing.T) {
	t.Parallel()
	runContract(t, true, capabilities("RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "RSAES_PKCS1_V1_5", "SM2PKE"))
}

func runContract(t *testing.T, allowPKCS1v15 bool, want []hsm.Capability) {
	t.Helper()
	storage := &hsmtest.Storage{}
	hsmtest.Run(t, hsmtest.Target{
		Open: func(t testing.TB) hsm.Module {
			m, err := software.Open(t.Context(), software.Config{Storage: storage, AllowPKCS1v15Import: allowPKCS1v15})
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
		Capabilities: want,
		Reads:        func(hsm.KeySpec, ciphertext.Scheme) bool { return true },
	})
	for name := range storage.Records() {
		if name != "import-token" {
			t.Errorf("the record %s still exists", name)
		}
	}
}

func capabilities(imports ...string) []hsm.Capability {
	var all []hsm.Capability
	add := func(operation hsm.Operation, algorithms ...string) {
		for _, alg := range algorithms {
			all = append(all, hsm.Capability{Operation: operation, Algorithm: alg, Custody: hsm.CustodySoftware})
		}
	}
	add(hsm.OperationMasterKey, "AES_128", "AES_192", "AES_256", "SM4")
	add(hsm.OperationGenerateMasterKey, "AES_128", "AES_192", "AES_256", "SM4")
	add(hsm.OperationImport, imports...)
	add(hsm.OperationGenerate, "DERIVED_KEY_WRAP", "DERIVED_GCM", "DIRECT_GCM")
	add(hsm.OperationReencrypt, "DERIVED_KEY_WRAP", "DERIVED_GCM", "DIRECT_GCM")
	add(hsm.OperationExport, "RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "SM2PKE")
	return all
}
