//go:build cgo

package pkcs11

import (
	"bytes"
	"slices"
	"strings"
	"unsafe"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
)

// hardening is a set of attributes that fix the usages of a key for its whole life. Tokens differ in which of them they accept,
// and some accept them for session objects only. So the self-test tries them on a token object once, and every key gets those
// that the token accepted.
type hardening uint

const (
	// restricted is CKA_ALLOWED_MECHANISMS: the key works with the mechanisms of its class only.
	restricted hardening = 1 << iota
	// uncopyable is CKA_COPYABLE false: there can be no copy with more usages.
	uncopyable
	// unmodifiable is CKA_MODIFIABLE false: the usages of the key cannot be changed.
	unmodifiable
)

const fullyHardened = restricted | uncopyable | unmodifiable

// The mechanisms of each class of key, for CKA_ALLOWED_MECHANISMS.
var (
	masterMechanisms = []uint{p11.CKM_AES_ECB_ENCRYPT_DATA}
	macMechanisms    = []uint{p11.CKM_SHA256_HMAC}
)

// pairMechanisms returns the mechanisms of the private half of a wrapping key pair. raw is for algorithms whose padding is removed
// on the host.
func pairMechanisms(raw, pkcs1v15 bool) []uint {
	mechanisms := []uint{p11.CKM_RSA_PKCS_OAEP}
	if raw {
		mechanisms = append(mechanisms, p11.CKM_RSA_X_509)
	}
	if pkcs1v15 {
		mechanisms = append(mechanisms, p11.CKM_RSA_PKCS)
	}
	return mechanisms
}

// suffix names the attributes of the set, for the name of a probe.
func (h hardening) suffix() string {
	var names []string
	for _, a := range []struct {
		in   hardening
		name string
	}{{restricted, "CKA_ALLOWED_MECHANISMS"}, {uncopyable, "CKA_COPYABLE"}, {unmodifiable, "CKA_MODIFIABLE"}} {
		if h&a.in != 0 {
			names = append(names, a.name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ", restricted by " + strings.Join(names, " and ")
}

// attributes returns what the set adds to the template of a key with these mechanisms. They must be last in the template, with
// CKA_MODIFIABLE after the others: C_UnwrapKey of SoftHSM sets attributes in their order, and none after CKA_MODIFIABLE.
func (h hardening) attributes(mechanisms []uint) []*p11.Attribute {
	var out []*p11.Attribute
	if h&restricted != 0 {
		var list []byte
		for _, m := range mechanisms {
			list = append(list, p11.NewAttribute(0, m).Value...)
		}
		out = append(out, p11.NewAttribute(p11.CKA_ALLOWED_MECHANISMS, list))
	}
	if h&uncopyable != 0 {
		out = append(out, p11.NewAttribute(p11.CKA_COPYABLE, false))
	}
	if h&unmodifiable != 0 {
		out = append(out, p11.NewAttribute(p11.CKA_MODIFIABLE, false))
	}
	return out
}

// checkHardened rejects a new key without the attributes of the set: tokens may ignore a template.
func (s *session) checkHardened(h p11.ObjectHandle, set hardening, mechanisms []uint) error {
	for _, want := range set.attributes(mechanisms) {
		values, err := s.GetAttributes(h, want.Type)
		if err != nil {
			return err
		}
		same := bytes.Equal
		if want.Type == p11.CKA_ALLOWED_MECHANISMS {
			same = sameMechanisms
		}
		if !same(values[0], want.Value) {
			return hsm.Errorf(hsm.Internal, "the token created a key without the requested attribute %#x, so Keyconvoy does not use the key", want.Type)
		}
	}
	return nil
}

// sameMechanisms compares lists of mechanisms in any order: tokens change it.
func sameMechanisms(a, b []byte) bool {
	const size = int(unsafe.Sizeof(uint(0))) // of CK_ULONG
	chunks := func(list []byte) []string {
		var all []string
		for chunk := range slices.Chunk(list, size) {
			all = append(all, string(chunk))
		}
		slices.Sort(all)
		return all
	}
	return slices.Equal(chunks(a), chunks(b))
}
