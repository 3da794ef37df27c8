package software

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// recordKind is the kind of a record. Records contain these numbers, so they must not change.
type recordKind byte

const (
	masterKeyRecord    recordKind = 1
	wrappingPairRecord recordKind = 2
	macKeyRecord       recordKind = 3
)

const (
	keyPrefix     = "key-"
	pairPrefix    = "wrapping-"
	macName       = "import-token"
	macKeyLen     = 32
	ownerLen      = len(uuid.UUID{})
	pairHeaderLen = ownerLen + 8 + 2
	// withNamespace is set in the length of a pair's public key if a namespace follows the key. Public keys are much shorter.
	withNamespace = 0x8000
	// withOwner takes the place of the length of a master key's name if a name with two bytes of length follows. No key type has
	// an empty name.
	withOwner = 0
)

func keyName(id uuid.UUID) string  { return keyPrefix + id.String() }
func pairName(id uuid.UUID) string { return pairPrefix + id.String() }

// parseName is the inverse of keyName and pairName, and accepts macName. It rejects all other names, so that each key has one
// record.
func parseName(name string) (recordKind, uuid.UUID, bool) {
	if name == macName {
		return macKeyRecord, uuid.Nil, true
	}
	kind := masterKeyRecord
	text, ok := strings.CutPrefix(name, keyPrefix)
	if !ok {
		kind = wrappingPairRecord
		if text, ok = strings.CutPrefix(name, pairPrefix); !ok {
			return 0, uuid.Nil, false
		}
	}
	id, err := uuid.Parse(text)
	if err != nil || id.String() != text {
		return 0, uuid.Nil, false
	}
	return kind, id, true
}

// errMalformed means that a record opens, but its content does not fit its kind.
var errMalformed = errors.New("its content is malformed")

// The format of the contents is not JSON, because encoders leave copies of the keys in memory.

// marshal returns: length of the name (1) ‖ name ‖ material. The name is the key type, followed by a colon and the owner if there
// is one. If the owner has more than a namespace, it returns: withOwner (1) ‖ length of the name (2) ‖ name ‖ material.
func (k *masterKey) marshal(material []byte) redact.Bytes {
	name := string(k.spec)
	if owner := k.owner.String(); owner != "" {
		name += ":" + owner
	}
	out := make(redact.Bytes, 0, 3+len(name)+len(material))
	if k.owner.Name == "" {
		out = append(out, byte(len(name))) //nolint:gosec // bounded by hsm.MaxNamespaceLen
	} else {
		out = binary.BigEndian.AppendUint16(append(out, withOwner), uint16(len(name))) //nolint:gosec // bounded by hsm.MaxNameLen
	}
	out = append(out, name...)
	return append(out, material...)
}

// cutName splits the content of a master key's record into the name and the material. long is set if two bytes have the length.
func cutName(plain []byte) (name string, long bool, material []byte, ok bool) {
	if len(plain) < 3 {
		return "", false, nil, false
	}
	start, n := 1, int(plain[0])
	if long = n == withOwner; long {
		start, n = 3, int(binary.BigEndian.Uint16(plain[1:]))
	}
	if len(plain) < start+n {
		return "", false, nil, false
	}
	return string(plain[start : start+n]), long, plain[start+n:], true
}

// parseMasterKey returns a key that shares memory with plain, as the parsers below do.
func parseMasterKey(plain []byte) (*masterKey, error) {
	name, long, material, ok := cutName(plain)
	if !ok {
		return nil, errMalformed
	}
	text, ownerText, owned := strings.Cut(name, ":")
	spec := hsm.KeySpec(text)
	owner, ok := hsm.ParseOwner(ownerText)
	if spec.Len() == 0 || spec.Len() != len(material) || owned != (ownerText != "") || !ok || long != (owner.Name != "") {
		return nil, errMalformed
	}
	return &masterKey{spec: spec, owner: owner, material: newSecret(material)}, nil
}

// marshal returns: owner (16) ‖ not after, in Unix seconds (8) ‖ length of the public key (2) ‖ public key (SubjectPublicKeyInfo)
// ‖ length of the namespace (1) ‖ namespace ‖ private key (PKCS #8). With the public key in the record, Open need not parse
// thousands of private keys. Without a namespace, its length is omitted, too, as in all records of the first version.
func (p *wrappingPair) marshal(private []byte) redact.Bytes {
	spki := p.public.SPKI()
	length := uint16(len(spki)) //nolint:gosec // 550 bytes for RSA_4096, the longest
	if p.namespace != "" {
		length |= withNamespace
	}
	out := make(redact.Bytes, 0, pairHeaderLen+len(spki)+1+len(p.namespace)+len(private))
	out = append(out, p.owner[:]...)
	out = binary.BigEndian.AppendUint64(out, uint64(p.notAfter.Unix())) //nolint:gosec // read back as signed
	out = binary.BigEndian.AppendUint16(out, length)
	out = append(out, spki...)
	if p.namespace != "" {
		out = append(out, byte(len(p.namespace))) //nolint:gosec // bounded by hsm.MaxNamespaceLen
		out = append(out, p.namespace...)
	}
	return append(out, private...)
}

func parseWrappingPair(plain []byte) (*wrappingPair, error) {
	if len(plain) < pairHeaderLen {
		return nil, errMalformed
	}
	notAfter := int64(binary.BigEndian.Uint64(plain[ownerLen:])) //nolint:gosec // written from a signed number
	keys := plain[pairHeaderLen:]
	length := binary.BigEndian.Uint16(plain[pairHeaderLen-2:])
	n := int(length &^ withNamespace)
	if len(keys) <= n {
		return nil, errMalformed
	}
	public, err := wrapping.ParsePublicKey(keys[:n])
	if err != nil || !bytes.Equal(public.SPKI(), keys[:n]) {
		return nil, errMalformed
	}
	namespace, private := "", keys[n:]
	if length&withNamespace != 0 {
		end := 1 + int(private[0])
		if end == 1 || len(private) <= end {
			return nil, errMalformed
		}
		namespace, private = string(private[1:end]), private[end:]
	}
	return &wrappingPair{
		owner:     uuid.UUID(plain[:ownerLen]),
		namespace: namespace,
		notAfter:  time.Unix(notAfter, 0).UTC(),
		public:    public,
		private:   newSecret(private),
	}, nil
}

func parseMACKey(plain []byte) (*secret, error) {
	if len(plain) != macKeyLen {
		return nil, errMalformed
	}
	return newSecret(plain), nil
}
