package software

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func testSealer(t testing.TB, root string) *sealer {
	t.Helper()
	s, err := newSealer([]byte(root))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const testRoot = "a root key of exactly 32 bytes.."

func TestSealer_opensOnlyWhatItSealed(t *testing.T) {
	t.Parallel()
	s, other := testSealer(t, testRoot), testSealer(t, strings.ToUpper(testRoot))
	const name = "key-x"
	sealed := s.seal(masterKeyRecord, name, redact.Bytes("material"))
	if plain, err := s.open(masterKeyRecord, name, sealed); err != nil || string(plain) != "material" {
		t.Fatalf("open = %q, %v", []byte(plain), err)
	}
	if bytes.Equal(sealed, s.seal(masterKeyRecord, name, redact.Bytes("material"))) {
		t.Error("two calls of seal return the same bytes")
	}
	refused := func(s *sealer, kind recordKind, name string, sealed []byte, want error) {
		t.Helper()
		if plain, err := s.open(kind, name, sealed); !errors.Is(err, want) {
			t.Errorf("open = %q, %v; want %v", []byte(plain), err, want)
		}
	}
	refused(other, masterKeyRecord, name, sealed, errOtherRoot)
	refused(s, masterKeyRecord, "key-y", sealed, errAltered)
	refused(s, wrappingPairRecord, name, sealed, errUnknownFormat)
	asPair := bytes.Clone(sealed)
	asPair[1] = byte(wrappingPairRecord)
	refused(s, wrappingPairRecord, name, asPair, errAltered)
	for n := range sealed {
		if _, err := s.open(masterKeyRecord, name, sealed[:n]); err == nil {
			t.Errorf("opens when cut to %d bytes", n)
		}
		changed := bytes.Clone(sealed)
		changed[n] ^= 0x10
		if _, err := s.open(masterKeyRecord, name, changed); err == nil {
			t.Errorf("opens with byte %d changed", n)
		}
	}
}

// Later versions must open the records of all earlier ones. The files have records in hexadecimal, sealed under testRoot by the
// version that introduced the format.
func TestSealer_opensTheRecordsOfVersion1(t *testing.T) {
	t.Parallel()
	s := testSealer(t, testRoot)
	plain := func(name string, kind recordKind) redact.Bytes {
		text, err := os.ReadFile("testdata/v1/" + name)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := s.open(kind, name, sealed)
		if err != nil {
			t.Fatal(err)
		}
		return plain
	}
	kind, id, ok := parseName("key-00000000-0000-4000-8000-000000000001")
	if !ok || id != uuid.MustParse("00000000-0000-4000-8000-000000000001") {
		t.Fatalf("parseName = %v, %v, %v", kind, id, ok)
	}
	key, err := parseMasterKey(plain("key-00000000-0000-4000-8000-000000000001", kind))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := key.fingerprint(); err != nil || f.String() != "b6e9b201de0ba2916d5ffc7ddd109c13" || key.spec != hsm.AES256 {
		t.Errorf("the key is %s, fingerprint %s, %v", key.spec, f, err)
	}
	pair, err := parseWrappingPair(plain("wrapping-00000000-0000-4000-8000-000000000002", wrappingPairRecord))
	if err != nil {
		t.Fatal(err)
	}
	if pair.owner != uuid.MustParse("00000000-0000-4000-8000-000000000003") || !pair.notAfter.Equal(time.Unix(1800000000, 0)) {
		t.Errorf("the pair is of %s, not after %s", pair.owner, pair.notAfter)
	}
	if err := pair.withPrivate(func(private *wrapping.PrivateKey) error {
		if !private.Public().Equal(pair.public) {
			t.Error("the private key is not that of the public one")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := parseMACKey(plain(macName, macKeyRecord)); err != nil {
		t.Error(err)
	}
}

func TestSecret_wiped_returnsTheError(t *testing.T) {
	t.Parallel()
	b := []byte("material")
	s := newSecret(b)
	wiped := errors.New("wiped")
	s.wipe()
	if err := s.use(wiped, func(redact.Bytes) error { return nil }); !errors.Is(err, wiped) {
		t.Errorf("use of a wiped secret: %v", err)
	}
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("the memory still has %q", b)
	}
}

func TestClose_wipesTheKeysInMemory(t *testing.T) {
	t.Parallel()
	key, pair, mac := []byte("a key"), []byte("a pair"), []byte("a MAC key")
	m := &Module{
		keys:  map[uuid.UUID]*masterKey{{}: {material: newSecret(key)}},
		pairs: map[uuid.UUID]*wrappingPair{{}: {private: newSecret(pair)}},
		mac:   newSecret(mac),
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{key, pair, mac} {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("the memory still has %q", b)
		}
	}
}

// FuzzOpen checks that arbitrary bytes neither open nor panic.
func FuzzOpen(f *testing.F) {
	s := testSealer(f, testRoot)
	f.Add("key-x", byte(masterKeyRecord), []byte(nil))
	f.Add("import-token", byte(macKeyRecord), s.seal(masterKeyRecord, "key-x", redact.Bytes("material")))
	f.Fuzz(func(t *testing.T, name string, kind byte, sealed []byte) {
		if plain, err := s.open(recordKind(kind), name, sealed); err == nil && (name != "key-x" || string(plain) != "material") {
			t.Errorf("opens as %q", []byte(plain))
		}
		if _, id, ok := parseName(name); ok && name != macName && name != keyName(id) && name != pairName(id) {
			t.Errorf("parseName accepts %q", name)
		}
	})
}

var testOwner = hsm.Owner{
	Namespace: "team-a", Name: strings.Repeat("n", hsm.MaxNameLen), Origin: hsm.OriginImported, Number: 1, KeyID: uuid.New(),
}

// FuzzParse checks that marshal returns exactly what a parser accepted, so that each key has one encoding.
func FuzzParse(f *testing.F) {
	private, err := wrapping.GeneratePrivateKey(rand.Reader, wrapping.ECSM2)
	if err != nil {
		f.Fatal(err)
	}
	pair := &wrappingPair{owner: uuid.New(), notAfter: time.Unix(-1, 0), public: private.Public()}
	f.Add([]byte(pair.marshal([]byte("private"))))
	for _, spec := range hsm.KeySpecs() {
		f.Add([]byte((&masterKey{spec: spec}).marshal(make([]byte, spec.Len()))))
		f.Add([]byte((&masterKey{spec: spec, owner: hsm.Owner{Namespace: "team-a"}}).marshal(make([]byte, spec.Len()))))
		f.Add([]byte((&masterKey{spec: spec, owner: testOwner}).marshal(make([]byte, spec.Len()))))
	}
	f.Add(bytes.Repeat([]byte{255}, 256)) // 1 + the length overflows a byte
	f.Fuzz(func(t *testing.T, plain []byte) {
		if key, err := parseMasterKey(plain); err == nil && !bytes.Equal(key.marshal(key.material.bytes), plain) {
			t.Errorf("a master key of %x", plain)
		}
		if pair, err := parseWrappingPair(plain); err == nil && !bytes.Equal(pair.marshal(pair.private.bytes), plain) {
			t.Errorf("a pair of %x", plain)
		}
		if _, err := parseMACKey(plain); err == nil && len(plain) != macKeyLen {
			t.Errorf("a MAC key of %d bytes", len(plain))
		}
	})
}
