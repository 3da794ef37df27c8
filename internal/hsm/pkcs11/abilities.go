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

// abilities is what the self-test saw the token do, whatever the custody policy says.
type abilities struct {
	tested  bool
	specs   map[hsm.KeySpec]bool
	imports map[wrapping.Algorithm]hsm.Custody
	exports map[wrapping.Algorithm]hsm.Custody
	longest int // the longest data key that is made, wrapped and opened inside; 0 for none
	// sizedUnwrap: the token wants CKA_VALUE_LEN when it unwraps (Luna does; SoftHSM refuses it).
	sizedUnwrap bool
}

func (a abilities) untested() bool { return !a.tested }

// wraps says whether a data key of that length never leaves the token.
func (a abilities) wraps(length int) bool {
	return ciphertext.SchemeFor(length) == ciphertext.DerivedKeyWrap && length <= a.longest
}

// sized adds the length to an unwrap template where the token wants it.
func (a abilities) sized(template []*p11.Attribute, length int) []*p11.Attribute {
	if !a.sizedUnwrap {
		return template
	}
	return append(template, p11.NewAttribute(p11.CKA_VALUE_LEN, length))
}

// capabilities lists what the policy allows, in a stable order.
func (a abilities) capabilities(cfg Config) []hsm.Capability {
	var all []hsm.Capability
	add := func(operation hsm.Operation, algorithm string, custody hsm.Custody) {
		if custody == hsm.CustodyModule || cfg.Custody == hsm.CustodyHost {
			all = append(all, hsm.Capability{Operation: operation, Algorithm: algorithm, Custody: custody})
		}
	}
	for _, spec := range aesSpecs {
		if a.specs[spec] {
			add(hsm.OperationMasterKey, string(spec), hsm.CustodyModule)
		}
	}
	for _, algorithm := range wrapping.Algorithms() {
		custody, ok := a.imports[algorithm]
		if ok && (algorithm != wrapping.RSAESPKCS1V15 || cfg.AllowPKCS1v15Import) {
			add(hsm.OperationImport, string(algorithm), custody)
		}
	}
	if a.longest > 0 {
		add(hsm.OperationGenerate, ciphertext.DerivedKeyWrap.String(), hsm.CustodyModule)
	}
	add(hsm.OperationGenerate, ciphertext.DerivedGCM.String(), hsm.CustodyHost)
	for _, algorithm := range wrapping.Algorithms() {
		if custody, ok := a.exports[algorithm]; ok {
			add(hsm.OperationExport, string(algorithm), custody)
		}
	}
	return all
}

// inside says, for a message, which algorithms never leave the token.
func (abilities) inside(custodies map[wrapping.Algorithm]hsm.Custody) string {
	var names []string
	for _, algorithm := range wrapping.Algorithms() {
		if custodies[algorithm] == hsm.CustodyModule && algorithm != wrapping.RSAESPKCS1V15 {
			names = append(names, string(algorithm))
		}
	}
	if len(names) == 0 {
		return "it offers no algorithm inside"
	}
	slices.Sort(names)
	return "inside, it offers " + strings.Join(names, ", ")
}

// lengthsInside says, for a message, which data keys never leave the token.
func (a abilities) lengthsInside() string {
	if a.longest == 0 {
		return "it makes none inside"
	}
	return fmt.Sprintf("inside, it makes data keys of 16 to %d bytes in steps of 8", a.longest)
}
