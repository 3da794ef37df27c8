//go:build cgo

package pkcs11

import (
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// capabilities are what the self-test proved about the token, whatever the custody policy permits.
type capabilities struct {
	derivation derivation
	specs      map[hsm.KeySpec]bool
	generates  map[hsm.KeySpec]bool // the master keys that the token generates
	imports    map[wrapping.Algorithm]hsm.Custody
	exports    map[wrapping.Algorithm]hsm.Custody
	// maxDataKeyLen is the length in bytes of the longest data key that the token generates, wraps and unwraps; 0 for none.
	maxDataKeyLen int
	// reencrypts: the token wraps a data key that it unwrapped.
	reencrypts bool
	// measuresByWrapping: the length of unwrapped material is that of its wrapping. Otherwise it is CKA_VALUE_LEN, if the self-test
	// finds that it is right.
	measuresByWrapping bool
	// needsValueLen: the token requires CKA_VALUE_LEN for C_UnwrapKey. Luna requires it, SoftHSM rejects it.
	needsValueLen bool
	// hardened is the hardening that the token accepts for master keys; the others are the same or 0.
	hardened, hardenedPair, hardenedMAC, hardenedGenerated hardening
	protection                                             hsm.KeyProtection
	probes                                                 []hsm.Probe
	// takesValues: the token creates keys from their value. canary are the probes that Check repeats.
	takesValues bool
	canary      []canaryProbe
}

// wrapsInside returns whether a data key of that length never leaves the token.
func (c *capabilities) wrapsInside(length int) bool {
	return ciphertext.SchemeFor(length).WrapsKeys() && length <= c.maxDataKeyLen
}

// opensInside returns whether a blob, whose data key has that length, opens without the data key leaving the token.
func (c *capabilities) opensInside(blob ciphertext.Blob, length int) bool {
	inside, _ := c.derivation.schemes()
	return blob.Scheme == inside && c.wrapsInside(length)
}

// withValueLen adds the length to an unwrap template if the token requires it.
func (c *capabilities) withValueLen(template []*p11.Attribute, length int) []*p11.Attribute {
	if !c.needsValueLen {
		return template
	}
	return append(template, p11.NewAttribute(p11.CKA_VALUE_LEN, length))
}

// needsRawRSA returns whether new wrapping key pairs must allow CKM_RSA_X_509, for algorithms whose padding is removed on the
// host.
func (c *capabilities) needsRawRSA(cfg *Config) bool {
	if !cfg.allows(hsm.CustodyHost) {
		return false
	}
	for _, custody := range c.imports {
		if custody == hsm.CustodyHost {
			return true
		}
	}
	return false
}

// allows returns whether the custody policy permits an operation with that custody.
func (cfg *Config) allows(custody hsm.Custody) bool {
	return custody == hsm.CustodyModule || cfg.Custody == hsm.CustodyHost
}

// permitted lists the capabilities that the policy permits, in a stable order.
func (c *capabilities) permitted(cfg *Config) []hsm.Capability {
	var all []hsm.Capability
	add := func(operation hsm.Operation, algorithm string, custody hsm.Custody) {
		if cfg.allows(custody) {
			all = append(all, hsm.Capability{Operation: operation, Algorithm: algorithm, Custody: custody})
		}
	}
	for _, spec := range aesSpecs {
		if c.specs[spec] {
			add(hsm.OperationMasterKey, string(spec), hsm.CustodyModule)
		}
	}
	for _, spec := range aesSpecs {
		if c.generates[spec] {
			add(hsm.OperationGenerateMasterKey, string(spec), hsm.CustodyModule)
		}
	}
	for _, algorithm := range wrapping.Algorithms() {
		custody, ok := c.imports[algorithm]
		if ok && (algorithm != wrapping.RSAESPKCS1V15 || cfg.AllowPKCS1v15Import) {
			add(hsm.OperationImport, string(algorithm), custody)
		}
	}
	inside, onHost := c.derivation.schemes()
	if c.maxDataKeyLen > 0 {
		add(hsm.OperationGenerate, inside.String(), hsm.CustodyModule)
	}
	add(hsm.OperationGenerate, onHost.String(), hsm.CustodyHost)
	if c.reencrypts {
		add(hsm.OperationReencrypt, inside.String(), hsm.CustodyModule)
	}
	add(hsm.OperationReencrypt, onHost.String(), hsm.CustodyHost)
	for _, algorithm := range wrapping.Algorithms() {
		if custody, ok := c.exports[algorithm]; ok {
			add(hsm.OperationExport, string(algorithm), custody)
		}
	}
	return all
}

// describeInside returns, for a message, the algorithms that run inside the token.
func describeInside(custodies map[wrapping.Algorithm]hsm.Custody) string {
	var names []string
	for _, algorithm := range wrapping.Algorithms() {
		if custodies[algorithm] == hsm.CustodyModule && algorithm != wrapping.RSAESPKCS1V15 {
			names = append(names, string(algorithm))
		}
	}
	if len(names) == 0 {
		return "it supports no algorithm inside"
	}
	slices.Sort(names)
	return "inside, it supports " + strings.Join(names, ", ")
}

// describeLengths returns, for a message, the lengths of data keys that never leave the token.
func (c *capabilities) describeLengths() string {
	if c.maxDataKeyLen == 0 {
		return "it generates no data keys inside"
	}
	return fmt.Sprintf("inside, it generates data keys of 16 to %d bytes in steps of 8", c.maxDataKeyLen)
}
