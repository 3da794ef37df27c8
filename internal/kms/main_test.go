package kms_test

import (
	"bytes"
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// clock is a time that only the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// service is the operations over a software module of their own.
type service struct {
	kms.Operations
	module *hsmtest.Recorder
	clock  *clock
}

func newService(t testing.TB) service {
	t.Helper()
	return openService(t, &hsmtest.Storage{}, false)
}

func openService(t testing.TB, storage *hsmtest.Storage, allowPKCS1v15 bool) service {
	t.Helper()
	module, err := software.Open(t.Context(), software.Config{Storage: storage, AllowPKCS1v15Import: allowPKCS1v15})
	if err != nil {
		t.Fatal(err)
	}
	recorder := hsmtest.Wrap(module)
	// Half a second: what is kept to the second must not depend on where in it we are.
	c := &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 500_000_000, time.UTC)}
	return service{Operations: kms.Operations{Module: recorder, Now: c.Now}, module: recorder, clock: c}
}

func newKey(spec hsm.KeySpec) kms.Key {
	id := uuid.New()
	return kms.Key{
		ID: id, Spec: spec, Origin: kms.OriginExternal, State: kms.StatePendingImport, Primary: kms.Version{ID: kms.VersionID(id, 1)},
		Namespace: "team-a", Name: "payments",
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// sm2 is the request for parameters that costs least: an SM2 pair is made in no time.
func sm2(key kms.Key) kms.ImportParametersRequest {
	return kms.ImportParametersRequest{Key: key, WrappingKeySpec: wrapping.ECSM2, WrappingAlgorithm: wrapping.SM2PKE}
}

func (s service) parameters(t testing.TB, req kms.ImportParametersRequest) kms.ImportParameters {
	t.Helper()
	p, err := s.GetParametersForImport(t.Context(), req)
	if err != nil {
		t.Fatalf("GetParametersForImport: %v", err)
	}
	return p
}

func wrap(t testing.TB, key *wrapping.PublicKey, algorithm wrapping.Algorithm, plaintext []byte) []byte {
	t.Helper()
	wrapped, err := wrapping.Wrap(rand.Reader, key, algorithm, "", plaintext)
	if err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	return wrapped
}

// request wraps material under p and asks for its import.
func request(t testing.TB, key kms.Key, p kms.ImportParameters, algorithm wrapping.Algorithm, material []byte) kms.ImportKeyMaterialRequest {
	t.Helper()
	return kms.ImportKeyMaterialRequest{
		Key: key, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrap(t, p.PublicKey, algorithm, material),
	}
}

// enabled makes a key with material, and returns it Enabled and bound.
func (s service) enabled(t testing.TB, spec hsm.KeySpec) (key kms.Key, material []byte) {
	t.Helper()
	key, material = newKey(spec), random(spec.Len())
	imported, err := s.ImportKeyMaterial(t.Context(), request(t, key, s.parameters(t, sm2(key)), wrapping.SM2PKE, material))
	if err != nil {
		t.Fatalf("ImportKeyMaterial: %v", err)
	}
	key.State, key.Primary.Fingerprint = kms.StateEnabled, imported.Fingerprint
	return key, material
}

func (s service) dataKey(t testing.TB, key kms.Key, context kms.EncryptionContext) kms.Blob {
	t.Helper()
	made, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key, EncryptionContext: context})
	if err != nil {
		t.Fatalf("GenerateDataKeyWithoutPlaintext: %v", err)
	}
	return made.CiphertextBlob
}

// parsed returns the blob in a text that has one.
func parsed(t testing.TB, text string) kms.Blob {
	t.Helper()
	blob, err := kms.ParseBlob(text)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// recipients are key pairs that tests share, because RSA ones take their time.
var recipients = struct {
	sync.Mutex
	bySpec map[wrapping.KeySpec]*wrapping.PrivateKey
}{bySpec: map[wrapping.KeySpec]*wrapping.PrivateKey{}}

func recipient(t testing.TB, spec wrapping.KeySpec) *wrapping.PrivateKey {
	t.Helper()
	recipients.Lock()
	defer recipients.Unlock()
	if key, ok := recipients.bySpec[spec]; ok {
		return key
	}
	key, err := wrapping.GeneratePrivateKey(rand.Reader, spec)
	if err != nil {
		t.Fatal(err)
	}
	recipients.bySpec[spec] = key
	return key
}

// wantError checks an error's code and that its public text begins with the code and the documented
// message, ends as a sentence, is short, and holds nothing of the private cause.
func wantError(t testing.TB, err error, code kms.Code, says ...string) (public string) {
	t.Helper()
	if kms.CodeOf(err) != code {
		t.Errorf("got %v, want %s", err, code)
		return ""
	}
	e, ok := err.(*kms.Error) //nolint:errorlint // the type is what operations promise
	if !ok {
		t.Errorf("%T is not *kms.Error", err)
		return ""
	}
	public = e.Public()
	documented := strings.TrimSuffix(code.Message(), ".")
	if code == kms.MissingParameter {
		documented = strings.Replace(documented, "<name>", e.Parameter, 1)
	}
	if want := string(code) + ": " + documented; !strings.HasPrefix(public, want) {
		t.Errorf("%q does not begin with %q", public, want)
	}
	if len(public) > 512 {
		t.Errorf("%d characters are too many for a message: %q", len(public), public)
	}
	if rest := strings.TrimPrefix(public, string(code)+": "+code.Message()); rest != "" && !strings.HasSuffix(public, ".") {
		t.Errorf("%q does not end as a sentence", public)
	}
	for _, words := range says {
		if !strings.Contains(public, words) {
			t.Errorf("%q does not say %q", public, words)
		}
	}
	return public
}

// wantSame is for failures that must not be told apart.
func wantSame(t testing.TB, messages map[string]string) {
	t.Helper()
	first := ""
	for cause, message := range messages {
		if first == "" {
			first = message
		}
		if message != first {
			t.Errorf("%s is told from the others: %q, not %q", cause, message, first)
		}
	}
}

// flipped returns b with the bits of one byte changed.
func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 0x41
	return b
}
