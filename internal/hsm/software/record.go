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

// recordKind is what a record holds. The numbers are written: they never change.
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
)

func keyName(id uuid.UUID) string  { return keyPrefix + id.String() }
func pairName(id uuid.UUID) string { return pairPrefix + id.String() }

// parseName is the inverse of keyName and pairName; it also knows macName. Only names that these
// make are taken, so that no two records are one key.
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

// errMalformed says that a record opened and holds something else than its kind should.
var errMalformed = errors.New("its content is malformed")

// The contents are laid out by hand, not in JSON: encoders leave copies of the keys behind.

// marshal lays a master key out as: length of its name (1) ‖ name ‖ material, where the name is the key
// type, and a colon and the owner where there is one.
func (k *masterKey) marshal(material []byte) redact.Bytes {
	name := string(k.spec)
	if k.owner != "" {
		name += ":" + k.owner
	}
	out := make(redact.Bytes, 0, 1+len(name)+len(material))
	out = append(out, byte(len(name))) //nolint:gosec // the owner is bounded by hsm.MaxOwnerLen
	out = append(out, name...)
	return append(out, material...)
}

// parseMasterKey keeps its argument's bytes, as the parsers below do.
func parseMasterKey(plain []byte) (*masterKey, error) {
	if len(plain) == 0 || len(plain) < 1+int(plain[0]) {
		return nil, errMalformed
	}
	end := 1 + int(plain[0])
	name, material := plain[1:end], plain[end:]
	text, owner, owned := strings.Cut(string(name), ":")
	spec := hsm.KeySpec(text)
	if spec.Len() == 0 || spec.Len() != len(material) || owned != (owner != "") {
		return nil, errMalformed
	}
	return &masterKey{spec: spec, owner: owner, material: newSecret(material)}, nil
}

// marshal lays a pair out as: owner (16) ‖ not after, in Unix seconds (8) ‖ length of the public key
// (2) ‖ public key (SubjectPublicKeyInfo) ‖ private key (PKCS #8). The public key stands there so
// that opening thousands of pairs need not parse private keys.
func (p *wrappingPair) marshal(private []byte) redact.Bytes {
	spki := p.public.SPKI()
	out := make(redact.Bytes, 0, pairHeaderLen+len(spki)+len(private))
	out = append(out, p.owner[:]...)
	out = binary.BigEndian.AppendUint64(out, uint64(p.notAfter.Unix())) //nolint:gosec // read back as signed
	out = binary.BigEndian.AppendUint16(out, uint16(len(spki)))         //nolint:gosec // 550 bytes for RSA_4096, the longest
	out = append(out, spki...)
	return append(out, private...)
}

func parseWrappingPair(plain []byte) (*wrappingPair, error) {
	if len(plain) < pairHeaderLen {
		return nil, errMalformed
	}
	notAfter := int64(binary.BigEndian.Uint64(plain[ownerLen:])) //nolint:gosec // written from a signed number
	keys := plain[pairHeaderLen:]
	n := int(binary.BigEndian.Uint16(plain[pairHeaderLen-2:]))
	if len(keys) <= n {
		return nil, errMalformed
	}
	public, err := wrapping.ParsePublicKey(keys[:n])
	if err != nil || !bytes.Equal(public.SPKI(), keys[:n]) {
		return nil, errMalformed
	}
	return &wrappingPair{
		owner:    uuid.UUID(plain[:ownerLen]),
		notAfter: time.Unix(notAfter, 0).UTC(),
		public:   public,
		private:  newSecret(keys[n:]),
	}, nil
}

func parseMACKey(plain []byte) (*secret, error) {
	if len(plain) != macKeyLen {
		return nil, errMalformed
	}
	return newSecret(plain), nil
}
