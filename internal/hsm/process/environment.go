package process

import (
	"slices"
	"strings"
)

// wellKnown are the environment variables that a child inherits if the operator has them: those of the C library and of the
// dynamic linker, and those from which widespread PKCS#11 libraries read where their configuration is. An entry that ends in * is
// a prefix. Tokens of the cluster, proxies and cloud credentials are not among them.
var wellKnown = []string{
	"PATH", "HOME", "LANG", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
	"SOFTHSM2_CONF",           // SoftHSM
	"NSS_*",                   // NSS
	"KRYOPTIC_CONF",           // Kryoptic
	"P11_KIT_SERVER_ADDRESS",  // p11-kit
	"PKCS11_PROXY_SOCKET",     // pkcs11-proxy
	"OPENCRYPTOKI_*", "OCK_*", // openCryptoki
	"TPM2_PKCS11_*", "TCTI", "TSS2_*", // tpm2-pkcs11
	"ChrystokiConfigurationPath", // Thales Luna
	"ET_PTKC_*", "ET_HSM_*",      // Thales ProtectServer
	"CS_PKCS11_R2_CFG", "CS_PKCS11_R3_CFG", // Utimaco
	"CKNFAST_*", "NFAST_*", // Entrust nShield
	"YUBIHSM_PKCS11_CONF",    // YubiHSM
	"OPENSC_*", "PCSCLITE_*", // OpenSC
	"KMS_PKCS11_CONFIG", // Google Cloud HSM
	"FXPKCS11_*",        // Futurex
}

// environment returns the environment of a child.
func environment(of, further []string) []string {
	return slices.DeleteFunc(slices.Clone(of), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return !slices.ContainsFunc(wellKnown, func(known string) bool {
			prefix, isPrefix := strings.CutSuffix(known, "*")
			return name == known || (isPrefix && strings.HasPrefix(name, prefix))
		}) && !slices.Contains(further, name)
	})
}
