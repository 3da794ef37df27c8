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
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// Templates are as small as they can be, since tokens refuse attributes that they do not know. What
// stands here either has a default that is not ours in some token (SoftHSM and NSS let a new key do
// everything; NSS makes it extractable) or is what the key is for.

func plain(mechanism uint) []*p11.Mechanism {
	return []*p11.Mechanism{p11.NewMechanism(mechanism, nil)}
}

// oaep is RSAES-OAEP with one hash for the label and MGF1, and an empty label (PKCS #11 v2.40
// mechanisms, section 2.1.7).
func oaep(algorithm wrapping.Algorithm) []*p11.Mechanism {
	hash, mgf := uint(p11.CKM_SHA256), uint(p11.CKG_MGF1_SHA256)
	if algorithm == wrapping.RSAESOAEPSHA1 {
		hash, mgf = p11.CKM_SHA_1, p11.CKG_MGF1_SHA1
	}
	return []*p11.Mechanism{p11.NewMechanism(p11.CKM_RSA_PKCS_OAEP, p11.NewOAEPParams(hash, mgf, p11.CKZ_DATA_SPECIFIED, nil))}
}

// unwrapMechanism is the mechanism of a wrapping algorithm.
func unwrapMechanism(algorithm wrapping.Algorithm) []*p11.Mechanism {
	if algorithm == wrapping.RSAESPKCS1V15 {
		return plain(p11.CKM_RSA_PKCS)
	}
	return oaep(algorithm)
}

// keyWrap is AES key wrap as in RFC 3394.
func keyWrap() []*p11.Mechanism { return plain(p11.CKM_AES_KEY_WRAP) }

func secret(keyType uint, token bool) []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, p11.CKO_SECRET_KEY),
		p11.NewAttribute(p11.CKA_KEY_TYPE, keyType),
		p11.NewAttribute(p11.CKA_TOKEN, token),
	}
}

// sessionKey is a secret key that lives as long as its session, and no one reads.
func sessionKey(keyType uint, extractable bool) []*p11.Attribute {
	return append(secret(keyType, false),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, extractable))
}

// may turns usage flags on or off.
func may(usage bool, types ...uint) []*p11.Attribute {
	out := make([]*p11.Attribute, len(types))
	for i, t := range types {
		out[i] = p11.NewAttribute(t, usage)
	}
	return out
}

// readableTemplate is a derived session object whose value may be read.
func readableTemplate(length int) []*p11.Attribute {
	return slices.Clip(append(secret(p11.CKK_GENERIC_SECRET, false),
		p11.NewAttribute(p11.CKA_VALUE_LEN, length),
		p11.NewAttribute(p11.CKA_SENSITIVE, false),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, true)))
}

// readableUnwrapped is an unwrapped session object whose value may be read.
func readableUnwrapped() []*p11.Attribute {
	return append(secret(p11.CKK_GENERIC_SECRET, false),
		p11.NewAttribute(p11.CKA_SENSITIVE, false),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, true))
}

// What every data key needs is made once: a template has two allocations for each attribute. Libraries only
// read templates, and whoever appends to one of these makes a copy, since they are full.
var (
	wrappingKEK   = kekTemplate(p11.CKA_WRAP)
	unwrappingKEK = kekTemplate(p11.CKA_UNWRAP)
	// wrappable is a data key on its way through the token, opened one that is only opened.
	wrappable = slices.Clip(sessionKey(p11.CKK_GENERIC_SECRET, true))
	opened    = slices.Clip(sessionKey(p11.CKK_GENERIC_SECRET, false))
	// readable is what is derived to be read, by its length: one block or two.
	readable = map[int][]*p11.Attribute{16: readableTemplate(16), 32: readableTemplate(32)}
)

// kekTemplate is a derived key-encryption key that does one thing: CKA_WRAP or CKA_UNWRAP.
func kekTemplate(usage uint) []*p11.Attribute {
	t := append(sessionKey(p11.CKK_AES, false), p11.NewAttribute(p11.CKA_VALUE_LEN, 32))
	for _, flag := range []uint{p11.CKA_WRAP, p11.CKA_UNWRAP} {
		t = append(t, p11.NewAttribute(flag, flag == usage))
	}
	return slices.Clip(append(t, may(false, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_SIGN, p11.CKA_VERIFY)...))
}

// masterTemplate is a master key: it derives and does nothing else. So nothing that it protects can be
// decrypted with it, and the key cannot be wrapped out.
func masterTemplate(id uuid.UUID, spec hsm.KeySpec, owner string, token bool) []*p11.Attribute {
	t := append(secret(p11.CKK_AES, token),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_DERIVE, true),
		p11.NewAttribute(p11.CKA_ID, id[:]),
		p11.NewAttribute(p11.CKA_LABEL, keyLabel(id, spec, owner)))
	return append(t, may(false, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_SIGN, p11.CKA_VERIFY)...)
}

// materialTemplate is the short-lived copy of material on which it is looked at: it derives, as the
// master key will, and can be wrapped, to be measured.
func materialTemplate(keyType uint) []*p11.Attribute {
	return append(sessionKey(keyType, true), p11.NewAttribute(p11.CKA_DERIVE, true))
}

// macTemplate is the import token's MAC key.
func macTemplate() []*p11.Attribute {
	t := append(secret(p11.CKK_GENERIC_SECRET, true),
		p11.NewAttribute(p11.CKA_VALUE_LEN, 32),
		p11.NewAttribute(p11.CKA_PRIVATE, true),
		p11.NewAttribute(p11.CKA_SENSITIVE, true),
		p11.NewAttribute(p11.CKA_EXTRACTABLE, false),
		p11.NewAttribute(p11.CKA_SIGN, true),
		p11.NewAttribute(p11.CKA_ID, macKeyID[:]),
		p11.NewAttribute(p11.CKA_LABEL, macKeyLabel))
	return append(t, may(false, p11.CKA_VERIFY, p11.CKA_ENCRYPT, p11.CKA_DECRYPT, p11.CKA_WRAP, p11.CKA_UNWRAP, p11.CKA_DERIVE)...)
}

// pairTemplates are the halves of an RSA wrapping pair. raw lets the private half decrypt, for
// algorithms whose padding is removed on the host.
func pairTemplates(bits int, id uuid.UUID, label string, token, raw bool) (public, private []*p11.Attribute) {
	names := []*p11.Attribute{
		p11.NewAttribute(p11.CKA_TOKEN, token),
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
		// A raw signature is a raw decryption.
		p11.NewAttribute(p11.CKA_SIGN, false))
	return public, private
}

// recipientTemplate is a recipient's public key as a session object.
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

func (n objectName) template() []*p11.Attribute {
	return []*p11.Attribute{
		p11.NewAttribute(p11.CKA_CLASS, n.class),
		p11.NewAttribute(p11.CKA_ID, []byte(n.id)),
		p11.NewAttribute(p11.CKA_TOKEN, true),
	}
}

func masterName(id uuid.UUID) objectName {
	return objectName{class: p11.CKO_SECRET_KEY, id: string(id[:])}
}

func privateName(id uuid.UUID) objectName {
	return objectName{class: p11.CKO_PRIVATE_KEY, id: string(id[:])}
}

func publicName(id uuid.UUID) objectName {
	return objectName{class: p11.CKO_PUBLIC_KEY, id: string(id[:])}
}

// Labels. They say what CKA_ID does not, so that nothing needs to be remembered outside the token.
const (
	keyLabelPrefix  = "keyconvoy:key:"
	pairLabelPrefix = "keyconvoy:wrapping:"
	macKeyLabel     = "keyconvoy:import-token"
)

// macKeyID is the CKA_ID of the import token's MAC key.
var macKeyID = uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://keyconvoy.io/import-token"))

// keyLabel carries the key's type, because SoftHSM 2.6 says CKA_VALUE_LEN 0 of a key that was unwrapped,
// and its owner.
func keyLabel(id uuid.UUID, spec hsm.KeySpec, owner string) string {
	return keyLabelPrefix + id.String() + ":" + string(spec) + ":" + owner
}

// parseKeyLabel is the inverse of keyLabel. Of a label that is none it returns nothing.
func parseKeyLabel(label string) (spec hsm.KeySpec, owner string) {
	rest, ok := strings.CutPrefix(label, keyLabelPrefix)
	parts := strings.SplitN(rest, ":", 3)
	if !ok || len(parts) != 3 {
		return "", ""
	}
	return hsm.KeySpec(parts[1]), parts[2]
}

func pairLabel(req hsm.WrappingKeyRequest) string {
	return fmt.Sprintf("%s%s:%s:%d", pairLabelPrefix, req.Owner, req.Spec, req.NotAfter.Unix())
}

// parsePairLabel is the inverse of pairLabel.
func parsePairLabel(label string) (owner uuid.UUID, notAfter time.Time, ok bool) {
	rest, ok := strings.CutPrefix(label, pairLabelPrefix)
	parts := strings.Split(rest, ":")
	if !ok || len(parts) != 3 {
		return uuid.UUID{}, time.Time{}, false
	}
	owner, err := uuid.Parse(parts[0])
	seconds, numErr := strconv.ParseInt(parts[2], 10, 64)
	if err != nil || numErr != nil {
		return uuid.UUID{}, time.Time{}, false
	}
	return owner, time.Unix(seconds, 0).UTC(), true
}
