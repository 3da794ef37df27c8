//go:build cgo

package pkcs11

import (
	"slices"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
)

// capabilitiesOf is what the self-test must find, all of it, with PKCS #1 v1.5 allowed. Every token holds AES keys, and none exports
// with SM2PKE inside.
var capabilitiesOf = map[string][]hsm.Capability{
	"SoftHSM": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Host
		Import RSAES_OAEP_SHA_1 Module
		Import RSAES_PKCS1_V1_5 Module
		Generate DERIVED_KEY_WRAP Module
		Generate DERIVED_GCM Host
		Reencrypt DERIVED_KEY_WRAP Module
		Reencrypt DERIVED_GCM Host
		Export RSAES_OAEP_SHA_256 Host
		Export RSAES_OAEP_SHA_1 Module
	`),
	"NSS": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Module
		Import RSAES_OAEP_SHA_1 Module
		Import RSAES_PKCS1_V1_5 Module
		Generate DERIVED_KEY_WRAP Module
		Generate DERIVED_GCM Host
		Reencrypt DERIVED_KEY_WRAP Module
		Reencrypt DERIVED_GCM Host
		Export RSAES_OAEP_SHA_256 Module
		Export RSAES_OAEP_SHA_1 Module
	`),
	"openCryptoki": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Host
		Import RSAES_OAEP_SHA_1 Host
		Generate DERIVED_GCM Host
		Reencrypt DERIVED_GCM Host
		Export RSAES_OAEP_SHA_256 Host
		Export RSAES_OAEP_SHA_1 Host
	`),
	"p11-kit": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Host
		Import RSAES_OAEP_SHA_1 Host
		Generate DERIVED_GCM Host
		Reencrypt DERIVED_GCM Host
		Export RSAES_OAEP_SHA_256 Host
		Export RSAES_OAEP_SHA_1 Host
	`),
	"SoftHSM without derivation": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Host
		Import RSAES_OAEP_SHA_1 Module
		Import RSAES_PKCS1_V1_5 Module
		Generate DERIVED_GCM Host
		Reencrypt DERIVED_GCM Host
		Export RSAES_OAEP_SHA_256 Host
		Export RSAES_OAEP_SHA_1 Host
	`),
	"NSS without derivation": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Module
		Import RSAES_OAEP_SHA_1 Module
		Import RSAES_PKCS1_V1_5 Module
		Generate DERIVED_GCM Host
		Reencrypt DERIVED_GCM Host
		Export RSAES_OAEP_SHA_256 Host
		Export RSAES_OAEP_SHA_1 Host
	`),
	"NSS with the KDF": capabilitiesIn(`
		Import RSAES_OAEP_SHA_256 Module
		Import RSAES_OAEP_SHA_1 Module
		Import RSAES_PKCS1_V1_5 Module
		Generate KDF_KEY_WRAP Module
		Generate KDF_GCM Host
		Reencrypt KDF_KEY_WRAP Module
		Reencrypt KDF_GCM Host
		Export RSAES_OAEP_SHA_256 Module
		Export RSAES_OAEP_SHA_1 Module
	`),
}

// capabilitiesIn returns the capabilities of a token, of which the lines of text have those besides master keys and SM2PKE.
func capabilitiesIn(text string) []hsm.Capability {
	text = "MasterKey AES_128 Module\nMasterKey AES_192 Module\nMasterKey AES_256 Module\n" +
		"GenerateMasterKey AES_128 Module\nGenerateMasterKey AES_192 Module\nGenerateMasterKey AES_256 Module\n" +
		strings.TrimSpace(text) + "\nExport SM2PKE Host"
	var all []hsm.Capability
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		all = append(all, hsm.Capability{Operation: hsm.Operation(fields[0]), Algorithm: fields[1], Custody: hsm.Custody(fields[2])})
	}
	return all
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
