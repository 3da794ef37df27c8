//go:build cgo

package pkcs11

import (
	"slices"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// capabilitiesOf is what the self-test must find, all of it, with PKCS #1 v1.5 allowed.
var capabilitiesOf = map[string][]hsm.Capability{
	"SoftHSM": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_PKCS1_V1_5", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_KEY_WRAP", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
	"NSS": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_PKCS1_V1_5", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_KEY_WRAP", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
	"openCryptoki": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
	"p11-kit": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
	"SoftHSM without derivation": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_PKCS1_V1_5", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
	"NSS without derivation": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_PKCS1_V1_5", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
	"NSS with the KDF": {
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_128", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_192", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationMasterKey, Algorithm: "AES_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationImport, Algorithm: "RSAES_PKCS1_V1_5", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "KDF_KEY_WRAP", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationGenerate, Algorithm: "KDF_GCM", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_256", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationExport, Algorithm: "SM2PKE", Custody: hsm.CustodyHost},
	},
}

// expected is what is left of a token's capabilities under a policy.
func expected(kind string, custody hsm.Custody, pkcs1 bool) []hsm.Capability {
	return slices.DeleteFunc(slices.Clone(capabilitiesOf[kind]), func(c hsm.Capability) bool {
		return custody == hsm.CustodyModule && c.Custody != hsm.CustodyModule || !pkcs1 && c.Algorithm == "RSAES_PKCS1_V1_5"
	})
}

// With PKCS #1 v1.5 no length is told (see wrongLengthOf), so it has a run of its own. NSS is not run
// with ModuleOnly: it makes data keys of up to 256 bytes inside, and the contract wants all lengths of a
// scheme or none.
func TestModule_keepsTheContract(t *testing.T) {
	for kind, newToken := range tokens.Kinds {
		for name, policy := range map[string]struct {
			custody hsm.Custody
			pkcs1   bool
		}{
			"HostAllowed":             {custody: hsm.CustodyHost},
			"HostAllowed, PKCS1 v1.5": {custody: hsm.CustodyHost, pkcs1: true},
			"ModuleOnly":              {custody: hsm.CustodyModule},
		} {
			if kind == "NSS" && policy.custody == hsm.CustodyModule {
				continue
			}
			t.Run(kind+", "+name, func(t *testing.T) {
				cfg := configOf(newToken(t))
				cfg.Custody, cfg.AllowPKCS1v15Import = policy.custody, policy.pkcs1
				keepsTheContract(t, cfg, expected(kind, policy.custody, policy.pkcs1))
			})
		}
	}
}

func keepsTheContract(t *testing.T, cfg Config, capabilities []hsm.Capability) {
	t.Helper()
	hsmtest.Run(t, hsmtest.Target{
		Open: func(t testing.TB) hsm.Module {
			m, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
		Capabilities: capabilities,
	})
}
