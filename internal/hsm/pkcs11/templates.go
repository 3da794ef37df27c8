//go:build cgo

package pkcs11

import (
	"crypto/rsa"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Templates have no more attributes than needed, because tokens reject attributes that they do not know. Each attribute is
// either the purpose of the key or has an unwanted default in some token: SoftHSM and NSS allow every usage to a new key, and NSS
// makes it extractable.

// oaep returns RSAES-OAEP with the same hash for the label and MGF1, and an empty label (PKCS #11 v2.40 mechanisms,
// section 2.1.7).
func oaep(algorithm wrapping.Algorithm) []*p11.Mechanism {
	hash, mgf := uint(p11.CKM_SHA256), uint(p11.CKG_MGF1_SHA256)
	if algorithm == wrapping.RSAESOAEPSHA1 {
		hash, mgf = p11.CKM_SHA_1, p11.CKG_MGF1_SHA1
	}
	return []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS_OAEP, p11.NewOAEPParams(hash, mgf, p11.CKZ_DATA_SPECIFIED, nil))}
}

// unwrapMechanism returns the mechanism of a wrapping algorithm.
func unwrapMechanism(algorithm wrapping.Algorithm) []*p11.Mechanism {
	if algorithm == wrapping.RSAESPKCS1V15 {
		return token.Mechanism(p11.CKM_RSA_PKCS)
	}
	return oaep(algorithm)
}

// keyWrap returns AES key wrap (RFC 3394).
func keyWrap() []*p11.Mechanism { return token.Mechanism(p11.CKM_AES_KEY_WRAP) }

func secretKey(keyType uint, tokenObject bool) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, keyType),
		p11.NewAttribute(p11.CKA_TOKEN, tokenObject),
	}
}

// sessionKey is a secret session key whose value cannot be read.
func sessionKey(keyType uint, extractable bool) []*p11.Attribute {
	return append(secretKey(keyType, false),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, extractable))
}

// boolAttributes returns attributes with the same value.
func boolAttributes(value bool, types ...uint) []*p11.Attribute {
	out := make([]*p11.Attribute, len(types))
	for i, t := range types {
		out[i] = p11.NewAttribute(t, value)
	}
	return out
}

// readableUnwrapped is an unwrapped session key whose value can be read.
func readableUnwrapped() []*p11.Attribute {
	return append(secretKey(p11.CKK_GENERIC_SECRET, false),
		p11.NewAttribute(p11.CKA_SENSITIVE, false),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, true))
}

// The templates that every data key needs are made once, because a template takes two allocations per attribute. Libraries do
// not change templates, and append copies these, because they have no spare capacity.
var (
	wrappingKEK   = kekTemplate(p11.CKA_WRAP)
	unwrappingKEK = kekTemplate(p11.CKA_UNWRAP)
	// wrappable is a data key that will be wrapped, opened one that is only verified.
	wrappable = slices.Clip(sessionKey(p11.CKK_GENERIC_SECRET, true))
	opened    = slices.Clip(sessionKey(p11.CKK_GENERIC_SECRET, false))
)

// kekTemplate is a derived key-encryption key with one usage: CKA_WRAP or CKA_UNWRAP.
func kekTemplate(usage uint) []*p11.Attribute {
	t := append(sessionKey(p11.CKK_AES, false), p11.NewAttribute(p11.CKA_VALUE_LEN, 32))
	for _, flag := range []uint{p11.CKA_WRAP, p11.CKA_UNWRAP} {
		t = append(t, p11.NewAttribute(flag, flag == usage))
	}
	return slices.Clip(append(t, boolAttributes(false, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_SIGN, p11.CKA_VERIFY)...))
}

// masterTemplate is a master key: it is not extractable, has the usages of the derivation and no other. So it cannot decrypt data
// keys directly. set is the hardening that the token accepts.
func (d derivation) masterTemplate(id uuid.UUID, spec hsm.KeySpec, owner hsm.Owner, tokenObject bool, set hardening) []*p11.Attribute {
	t := append(secretKey(p11.CKK_AES, tokenObject),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false))
	t = append(t, boolAttributes(true, d.usages()...)...)
	t = append(t,
		p11.NewAttribute(p11.CKA_ID, id[:]),
		p11.NewAttribute(p11.CKA_LABEL, keyLabel(id, spec, owner)))
	t = append(t, boolAttributes(false, d.otherUsages()...)...)
	return append(t, set.attributes(d.mechanisms())...)
}

// materialTemplate is the session key on which an import inspects its material. It has the usages of a master key, for the
// fingerprint, and can be wrapped if that is how the length is measured.
func (c *capabilities) materialTemplate() []*p11.Attribute {
	return append(sessionKey(p11.CKK_AES, c.measuresByWrapping), boolAttributes(true, c.derivation.usages()...)...)
}

// anyMaterialTemplate is a session key of any length, as which unwrapError unwraps material.
func (c *capabilities) anyMaterialTemplate() []*p11.Attribute {
	t := sessionKey(p11.CKK_GENERIC_SECRET, c.measuresByWrapping)
	if c.derivation == byEncryption {
		return t // a generic secret does not encrypt
	}
	return append(t, boolAttributes(true, c.derivation.usages()...)...)
}

// macTemplate is the MAC key of import tokens.
func macTemplate(tokenObject bool) []*p11.Attribute {
	t := append(secretKey(p11.CKK_GENERIC_SECRET, tokenObject),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_SIGN, true),
		p11.NewAttribute(p11.CKA_ID, macKeyID[:]),
		p11.NewAttribute(p11.CKA_LABEL, macKeyLabel))
	return append(t, boolAttributes(false, p11.CKA_VERIFY, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_DERIVE)...)
}

// pairTemplates are the halves of an RSA wrapping key pair. raw allows the private half to decrypt, for algorithms whose padding
// is removed on the host.
func pairTemplates(bits int, id uuid.UUID, label string, tokenObject, raw bool) (public, private []*p11.Attribute) {
	names := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_TOKEN, tokenObject),
		p11.NewAttribute(p11.CKA_ID, id[:]),
		p11.NewAttribute(p11.CKA_LABEL, label),
	}
	public = append(names[:3:3],
		p11.NewAttribute(p11.CKA_PRIVATE, false),
		p11.NewAttribute(p11.CKA_MODULUS_BITS, bits),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		p11.NewAttribute(p11.CKA_WRAP, true))
	private = append(names[:3:3],
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_UNWRAP, true),
		p11.NewAttribute(p11.CKA_DECRYPT, raw),
		// A raw RSA signature is a raw RSA decryption.
		p11.NewAttribute(p11.CKA_SIGN, false))
	return public, private
}

// recipientTemplate is the public key of a recipient as a session object.
func recipientTemplate(key *rsa.PublicKey) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_PUBLIC_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, p11.CKK_RSA),
		p11.NewAttribute(p11.CKA_TOKEN, false),
		p11.NewAttribute(p11.CKA_MODULUS, key.N.Bytes()),
		p11.NewAttribute(p11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(key.E)).Bytes()),
		p11.NewAttribute(p11.CKA_WRAP, true),
		p11.NewAttribute(p11.CKA_ENCRYPT, true),
	}
}

func masterName(id uuid.UUID) token.ObjectName {
	return token.ObjectName{Class: p11.CKO_SECRET_KEY, ID: string(id[:])}
}

func privateName(id uuid.UUID) token.ObjectName {
	return token.ObjectName{Class: p11.CKO_PRIVATE_KEY, ID: string(id[:])}
}

func publicName(id uuid.UUID) token.ObjectName {
	return token.ObjectName{Class: p11.CKO_PUBLIC_KEY, ID: string(id[:])}
}

// Labels hold what CKA_ID does not, so that no state outside the token is needed.
const (
	keyLabelPrefix  = "keyconvoy:key:"
	pairLabelPrefix = "keyconvoy:wrapping:"
	macKeyLabel     = "keyconvoy:import-token"
)

// macKeyID is the CKA_ID of the MAC key of import tokens.
var macKeyID = uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://keyconvoy.io/import-token"))

// keyLabel returns the label of a master key. It has the key's type, because SoftHSM 2.6 returns CKA_VALUE_LEN 0 for an
// unwrapped key, and its owner.
func keyLabel(id uuid.UUID, spec hsm.KeySpec, owner hsm.Owner) string {
	return keyLabelPrefix + id.String() + ":" + string(spec) + ":" + owner.String()
}

// parseKeyLabel is the inverse of keyLabel. For another label it returns zero values. If the token cut the label off, the owner
// has the namespace only, as in early versions, or nothing: a part of a name can be another name.
func parseKeyLabel(label string) (spec hsm.KeySpec, owner hsm.Owner) {
	rest, ok := strings.CutPrefix(label, keyLabelPrefix)
	parts := strings.SplitN(rest, ":", 3)
	if !ok || len(parts) != 3 {
		return "", hsm.Owner{}
	}
	owner, ok = hsm.ParseOwner(parts[2])
	if namespace, _, whole := strings.Cut(parts[2], ":"); !ok && whole {
		owner, _ = hsm.ParseOwner(namespace)
	}
	return hsm.KeySpec(parts[1]), owner
}

func pairLabel(req hsm.WrappingKeyRequest) string {
	return fmt.Sprintf("%s%s:%s:%d:%s", pairLabelPrefix, req.Owner, req.Spec, req.NotAfter.Unix(), req.Namespace)
}

// parsePairLabel is the inverse of pairLabel. Labels of the first version have no namespace.
func parsePairLabel(label string) (pair hsm.WrappingKey, ok bool) {
	rest, ok := strings.CutPrefix(label, pairLabelPrefix)
	parts := strings.SplitN(rest, ":", 4)
	if !ok || len(parts) < 3 {
		return hsm.WrappingKey{}, false
	}
	owner, err := uuid.Parse(parts[0])
	seconds, numErr := strconv.ParseInt(parts[2], 10, 64)
	if err != nil || numErr != nil {
		return hsm.WrappingKey{}, false
	}
	pair = hsm.WrappingKey{Owner: owner, Spec: wrapping.KeySpec(parts[1]), NotAfter: time.Unix(seconds, 0).UTC()}
	if len(parts) == 4 {
		pair.Namespace = parts[3]
	}
	return pair, true
}
