package hsmtest

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is one of the algorithms
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// suite is one run of the contract on one token.
type suite struct {
	Target
	m    hsm.Module
	caps map[hsm.Operation]map[string]hsm.Custody

	// Created by prepare, before the restart. Tests must not change them.
	pairs     map[wrapping.KeySpec]hsm.WrappingKey // one for each type that an import algorithm needs
	masters   map[hsm.KeySpec]master               // one for each type that the module can hold
	blobs     map[hsm.KeySpec]ciphertext.Blob      // a data key of 32 bytes under each
	generated map[hsm.KeySpec]hsm.Key              // one for each type that the module generates
	tag       []byte                               // over tagMessage

	mu   sync.Mutex
	made []func(context.Context) error // destroy what tests created
}

// suiteOwner is the owner of the keys. It is as long as an owner can be.
var suiteOwner = hsm.Owner{
	Namespace: suiteNamespace, Name: strings.Repeat("o", hsm.MaxNameLen), Origin: hsm.OriginImported, Number: 1, KeyID: uuid.New(),
}

var suiteNamespace = strings.Repeat("n", hsm.MaxNamespaceLen)

const tagMessage = "a message from before the restart"

// master is a master key in the module and its material.
type master struct {
	id       uuid.UUID
	spec     hsm.KeySpec
	material []byte
	block    cipher.Block
}

func newSuite(target Target) *suite {
	s := &suite{
		Target:    target,
		caps:      map[hsm.Operation]map[string]hsm.Custody{},
		pairs:     map[wrapping.KeySpec]hsm.WrappingKey{},
		masters:   map[hsm.KeySpec]master{},
		blobs:     map[hsm.KeySpec]ciphertext.Blob{},
		generated: map[hsm.KeySpec]hsm.Key{},
	}
	for _, c := range target.Capabilities {
		if s.caps[c.Operation] == nil {
			s.caps[c.Operation] = map[string]hsm.Custody{}
		}
		s.caps[c.Operation][c.Algorithm] = c.Custody
	}
	return s
}

func (s *suite) open(t *testing.T) {
	t.Helper()
	s.m = s.Open(t)
}

func (s *suite) close(t *testing.T) {
	t.Helper()
	if err := s.m.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	_, err := s.m.Describe(t.Context())
	WantKind(t, err, hsm.Unavailable, "Describe of a closed module")
	WantKind(t, s.m.Check(t.Context()), hsm.Unavailable, "Check of a closed module")
}

// prepare creates the keys that tests share, because an RSA key takes long to generate.
func (s *suite) prepare(t *testing.T) {
	t.Helper()
	if len(s.importAlgorithms()) == 0 || len(s.keySpecs()) == 0 {
		t.Fatal("the expected capabilities have no Import or no MasterKey")
	}
	for _, alg := range s.importAlgorithms() {
		spec := pairSpecFor(alg)
		if _, ok := s.pairs[spec]; !ok {
			s.pairs[spec] = s.newPair(t, spec, uuid.New())
		}
	}
	for _, spec := range s.keySpecs() {
		key := s.newMaster(t, spec)
		s.masters[spec] = key
		s.blobs[spec] = s.generate(t, key, 32, s.bind(key))
	}
	for _, spec := range s.generatedSpecs() {
		s.generated[spec] = s.generateKey(t, s.newID(), spec)
	}
	tag, err := s.m.Authenticate(t.Context(), []byte(tagMessage))
	if err != nil {
		t.Fatalf("Authenticate: %v", err)
	}
	s.tag = tag
}

// destroyLater registers a function that testDestroyed calls.
func (s *suite) destroyLater(destroy func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made = append(s.made, destroy)
}

// newID returns an identifier for a master key, which testDestroyed destroys.
func (s *suite) newID() uuid.UUID {
	id := uuid.New()
	s.destroyLater(func(ctx context.Context) error { return s.m.DestroyKey(ctx, id) })
	return id
}

// pairRequest returns a request for a pair, which testDestroyed destroys.
func (s *suite) pairRequest(spec wrapping.KeySpec, owner uuid.UUID) hsm.WrappingKeyRequest {
	id := uuid.New()
	s.destroyLater(func(ctx context.Context) error { return s.m.DestroyWrappingKey(ctx, id) })
	return hsm.WrappingKeyRequest{ID: id, Owner: owner, Namespace: suiteNamespace, Spec: spec, NotAfter: time.Now().Add(24 * time.Hour)}
}

func (s *suite) newPair(t testing.TB, spec wrapping.KeySpec, owner uuid.UUID) hsm.WrappingKey {
	t.Helper()
	pair, err := s.m.CreateWrappingKey(t.Context(), s.pairRequest(spec, owner))
	if err != nil {
		t.Fatalf("CreateWrappingKey(%s): %v", spec, err)
	}
	if made := PublicKey(t, pair).Spec(); made != spec {
		t.Fatalf("CreateWrappingKey(%s) created a pair of type %s", spec, made)
	}
	return pair
}

// importRequest wraps material for a key under the shared pair.
func (s *suite) importRequest(t testing.TB, id uuid.UUID, spec hsm.KeySpec, alg wrapping.Algorithm, material []byte) hsm.ImportRequest {
	t.Helper()
	pair := s.pairs[pairSpecFor(alg)]
	return hsm.ImportRequest{
		Owner: suiteOwner, KeyVersionID: id, Spec: spec, WrappingKey: pair.ID, Algorithm: alg,
		EncryptedMaterial: wrap(t, PublicKey(t, pair), alg, "", material),
	}
}

// newMaster imports a key with random material.
func (s *suite) newMaster(t testing.TB, spec hsm.KeySpec) master {
	t.Helper()
	return s.newMasterOf(t, spec, random(spec.Len()))
}

func (s *suite) newMasterOf(t testing.TB, spec hsm.KeySpec, material []byte) master {
	t.Helper()
	block, err := hsm.NewCipher(spec, material)
	if err != nil {
		t.Fatal(err)
	}
	key := master{id: s.newID(), spec: spec, material: material, block: block}
	s.mustImport(t, s.importRequest(t, key.id, spec, s.importAlgorithms()[0], material), material)
	return key
}

// mustImport imports a key and checks the result.
func (s *suite) mustImport(t testing.TB, req hsm.ImportRequest, material []byte) {
	t.Helper()
	key, err := s.m.ImportKey(t.Context(), req)
	if err != nil {
		t.Fatalf("ImportKey(%s under %s): %v", req.Spec, req.Algorithm, err)
	}
	want := hsm.Key{
		KeyVersionID: req.KeyVersionID, Spec: req.Spec, Fingerprint: fingerprint(t, req.Spec, material), Owner: req.Owner,
		Custody: worst(s.caps[hsm.OperationImport][string(req.Algorithm)], s.caps[hsm.OperationMasterKey][string(req.Spec)]),
	}
	if key != want {
		t.Errorf("ImportKey(%s under %s) = %+v; want %+v", req.Spec, req.Algorithm, key, want)
	}
}

// mustHold checks that the module has a key with that material and identifier.
func (s *suite) mustHold(t testing.TB, id uuid.UUID, spec hsm.KeySpec, material []byte) {
	t.Helper()
	key, err := s.m.FindKey(t.Context(), id)
	want := hsm.Key{KeyVersionID: id, Spec: spec, Fingerprint: fingerprint(t, spec, material), Owner: suiteOwner}
	if err != nil || key != want {
		t.Errorf("FindKey = %+v, %v; want %+v", key, err, want)
	}
}

// mustNotHold checks that the module has no key with that identifier.
func (s *suite) mustNotHold(t testing.TB, id uuid.UUID) {
	t.Helper()
	key, err := s.m.FindKey(t.Context(), id)
	WantKind(t, err, hsm.NotFound, "FindKey of a key that does not exist: %+v", key)
}

func (s *suite) generate(t testing.TB, key master, length int, binding ciphertext.Binding) ciphertext.Blob {
	t.Helper()
	made, err := s.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: key.id, Length: length, Binding: binding})
	if err != nil {
		t.Fatalf("GenerateDataKey of %d bytes under %s: %v", length, key.spec, err)
	}
	custody, ok := s.caps[hsm.OperationGenerate][made.Blob.Scheme.String()]
	if want := worst(custody, s.caps[hsm.OperationMasterKey][string(key.spec)]); !ok || made.Custody != want {
		t.Errorf("GenerateDataKey of %d bytes under %s: scheme %s with custody %s; the capabilities have %s (%v)",
			length, key.spec, made.Blob.Scheme, made.Custody, want, ok)
	}
	if made.Blob.KeyVersionID != key.id {
		t.Errorf("the blob has key %s, want %s", made.Blob.KeyVersionID, key.id)
	}
	return made.Blob
}

// openElsewhere opens a blob with independent code.
func openElsewhere(t testing.TB, key master, blob ciphertext.Blob, binding ciphertext.Binding) []byte {
	t.Helper()
	dataKey, err := ciphertext.Open(blob, key.block, binding)
	if err != nil {
		t.Fatalf("the blob of scheme %s under %s does not open with independent code: %v", blob.Scheme, key.spec, err)
	}
	return dataKey
}

// bind returns the default binding of tests.
func (s *suite) bind(key master) ciphertext.Binding {
	return ciphertext.Bind(key.id, map[string]string{"app": "contract"})
}

// keySpecs, importAlgorithms and exportAlgorithms return the expected capabilities, in their order.
func (s *suite) keySpecs() []hsm.KeySpec {
	return algorithms[hsm.KeySpec](s, hsm.OperationMasterKey)
}

func (s *suite) importAlgorithms() []wrapping.Algorithm {
	return algorithms[wrapping.Algorithm](s, hsm.OperationImport)
}

func (s *suite) exportAlgorithms() []wrapping.Algorithm {
	return algorithms[wrapping.Algorithm](s, hsm.OperationExport)
}

func algorithms[T ~string](s *suite, operation hsm.Operation) []T {
	var all []T
	for _, c := range s.Target.Capabilities {
		if c.Operation == operation {
			all = append(all, T(c.Algorithm))
		}
	}
	return all
}

func (s *suite) has(operation hsm.Operation, algorithm string) bool {
	_, ok := s.caps[operation][algorithm]
	return ok
}

// generates returns whether the module has a scheme for data keys of that length under keys of that type.
func (s *suite) generates(spec hsm.KeySpec, length int) bool {
	for _, scheme := range schemes {
		if s.has(hsm.OperationGenerate, scheme.String()) && s.reads(spec, scheme) && holds(scheme, length) {
			return true
		}
	}
	return false
}

func (s *suite) reads(spec hsm.KeySpec, scheme ciphertext.Scheme) bool {
	if s.Reads != nil {
		return s.Reads(spec, scheme)
	}
	if s.has(hsm.OperationGenerate, ciphertext.DerivedGCM.String()) && scheme != ciphertext.DirectGCM {
		return true
	}
	return s.has(hsm.OperationGenerate, scheme.String())
}

var schemes = ciphertext.Schemes()

func holds(scheme ciphertext.Scheme, length int) bool {
	return !scheme.WrapsKeys() || ciphertext.SchemeFor(length).WrapsKeys()
}

// pairSpecFor returns the shortest type of pair for an algorithm.
func pairSpecFor(alg wrapping.Algorithm) wrapping.KeySpec {
	if alg == wrapping.SM2PKE {
		return wrapping.ECSM2
	}
	return wrapping.RSA2048
}

// worst returns the weakest of custodies. It ignores "".
func worst(custodies ...hsm.Custody) hsm.Custody {
	for _, low := range []hsm.Custody{hsm.CustodySoftware, hsm.CustodyHost, hsm.CustodyModule} {
		for _, c := range custodies {
			if c == low {
				return low
			}
		}
	}
	return ""
}

// wrap encrypts material of any length under a public key with independent code: for RSA, the standard library.
func wrap(t testing.TB, key *wrapping.PublicKey, alg wrapping.Algorithm, format wrapping.SM2Format, material []byte) []byte {
	t.Helper()
	var out []byte
	var err error
	switch alg {
	case wrapping.RSAESOAEPSHA256:
		out, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, key.RSA(), material, nil)
	case wrapping.RSAESOAEPSHA1:
		out, err = rsa.EncryptOAEP(sha1.New(), rand.Reader, key.RSA(), material, nil) //nolint:gosec // see above
	case wrapping.RSAESPKCS1V15:
		out, err = rsa.EncryptPKCS1v15(rand.Reader, key.RSA(), material) //nolint:staticcheck // it is one of the algorithms
	default:
		out, err = wrapping.Wrap(rand.Reader, key, alg, format, material)
	}
	if err != nil {
		t.Fatalf("wrapping %d bytes with %s: %v", len(material), alg, err)
	}
	return out
}

// PublicKey returns the public key of a pair.
func PublicKey(t testing.TB, pair hsm.WrappingKey) *wrapping.PublicKey {
	t.Helper()
	key, err := wrapping.ParseSPKI(pair.PublicKey)
	if err != nil {
		t.Fatalf("the public key of pair %s: %v", pair.ID, err)
	}
	return key
}

// recipient returns the private key of a recipient. There is one per type in each test process.
func recipient(t testing.TB, alg wrapping.Algorithm) *wrapping.PrivateKey {
	t.Helper()
	generate := rsaRecipient
	if alg == wrapping.SM2PKE {
		generate = sm2Recipient
	}
	key, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var (
	rsaRecipient = sync.OnceValues(func() (*wrapping.PrivateKey, error) {
		return wrapping.GeneratePrivateKey(rand.Reader, wrapping.RSA2048)
	})
	sm2Recipient = sync.OnceValues(func() (*wrapping.PrivateKey, error) {
		return wrapping.GeneratePrivateKey(rand.Reader, wrapping.ECSM2)
	})
)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func fingerprint(t testing.TB, spec hsm.KeySpec, material []byte) hsm.Fingerprint {
	t.Helper()
	f, err := hsm.FingerprintOf(spec, material)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// WantKind checks an error's type and kind and returns its public detail.
func WantKind(t testing.TB, err error, want hsm.Kind, format string, args ...any) string {
	t.Helper()
	var e *hsm.Error
	if !errors.As(err, &e) || e.Kind != want {
		t.Errorf("%s: error %v (kind %q); want kind %q", fmt.Sprintf(format, args...), err, hsm.KindOf(err), want)
		return ""
	}
	return e.Detail
}

// oneText checks that all causes have the same public detail. Otherwise the detail would be an oracle.
type oneText struct {
	seen  bool
	text  string
	cause string
}

func (o *oneText) add(t testing.TB, detail, cause string) {
	t.Helper()
	if !o.seen {
		*o = oneText{seen: true, text: detail, cause: cause}
	}
	if detail != o.text {
		t.Errorf("%s has the text %q, but %s has %q: the difference is an oracle", cause, detail, o.cause, o.text)
	}
}

// flipped returns a copy with one bit of byte i changed.
func flipped(b []byte, i int) []byte {
	out := bytes.Clone(b)
	out[i] ^= 1 << (i % 8)
	return out
}
