package software_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func open(t testing.TB, storage hsm.Storage) *software.Module {
	t.Helper()
	m, err := software.Open(t.Context(), software.Config{Storage: storage})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	return m
}

func createPair(t testing.TB, m hsm.Module, spec wrapping.KeySpec) hsm.WrappingKey {
	t.Helper()
	pair, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{
		ID: uuid.New(), Owner: uuid.New(), Spec: spec, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func importRequest(t testing.TB, pair hsm.WrappingKey, alg wrapping.Algorithm, material []byte) hsm.ImportRequest {
	t.Helper()
	encrypted, err := wrapping.Wrap(rand.Reader, hsmtest.PublicKey(t, pair), alg, "", material)
	if err != nil {
		t.Fatal(err)
	}
	return hsm.ImportRequest{
		KeyVersionID: uuid.New(), Spec: hsm.AES256, WrappingKey: pair.ID, Algorithm: alg, EncryptedMaterial: encrypted,
	}
}

func importKey(t testing.TB, m hsm.Module, pair hsm.WrappingKey, material []byte) uuid.UUID {
	t.Helper()
	req := importRequest(t, pair, wrapping.SM2PKE, material)
	if _, err := m.ImportKey(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return req.KeyVersionID
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// wantError checks the kind and that the public detail contains the parts.
func wantError(t testing.TB, err error, kind hsm.Kind, parts ...string) {
	t.Helper()
	var e *hsm.Error
	if !errors.As(err, &e) || e.Kind != kind {
		t.Fatalf("error %v (kind %q); want kind %q", err, hsm.KindOf(err), kind)
	}
	for _, part := range parts {
		if !strings.Contains(e.Detail, part) {
			t.Errorf("the detail %q does not contain %q", e.Detail, part)
		}
	}
}

// filled is a storage with two keys, a key pair and the MAC key, written by a module that is closed.
type filled struct {
	*hsmtest.Storage
	pair     hsm.WrappingKey
	key      uuid.UUID
	other    uuid.UUID
	material []byte
}

func fill(t testing.TB) filled {
	t.Helper()
	f := filled{Storage: &hsmtest.Storage{}, material: random(32)}
	m := open(t, f.Storage)
	f.pair = createPair(t, m, wrapping.ECSM2)
	f.key = importKey(t, m, f.pair, f.material)
	f.other = importKey(t, m, f.pair, random(32))
	if _, err := m.Authenticate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestOpen_rootKeyLost_isMisconfigured(t *testing.T) {
	t.Parallel()
	f := fill(t)
	before := f.Records()
	f.SetRootKey(nil) // the storage generates another one
	_, err := software.Open(t.Context(), software.Config{Storage: f})
	wantError(t, err, hsm.Misconfigured, "root key", "none of the 4 records", "import-token", "backup")
	if !sameRecords(before, f.Records()) {
		t.Error("Open changed records")
	}
}

func TestOpen_rootKeyOfAWrongLength_isMisconfigured(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 16, 31, 33} {
		storage := &hsmtest.Storage{}
		storage.SetRootKey(append(make([]byte, 0, 1), random(n)...))
		_, err := software.Open(t.Context(), software.Config{Storage: storage})
		wantError(t, err, hsm.Misconfigured, "32 bytes")
	}
}

func TestOpen_storageThatDoesNotAnswer_isUnavailable(t *testing.T) {
	t.Parallel()
	down := errors.New("connection refused")
	denied := hsm.Errorf(hsm.Misconfigured, "the operator may not read Secrets")
	for _, method := range []string{"RootKey", "Load"} {
		for cause, want := range map[error]hsm.Kind{down: hsm.Unavailable, denied: hsm.Misconfigured} {
			_, err := software.Open(t.Context(), software.Config{Storage: &hsmtest.Storage{Fail: failing(method, cause)}})
			wantError(t, err, want)
			if !errors.Is(err, cause) {
				t.Errorf("%v does not have its cause in the chain", err)
			}
		}
	}
}

// failing makes every call of a method fail.
func failing(method string, err error) func(string, string) error {
	return func(called, _ string) error {
		if called == method {
			return err
		}
		return nil
	}
}

func TestOpen_recordThatDoesNotOpen_affectsOnlyItsKey(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		damage func(f filled, sealed []byte) []byte
		want   string
	}{
		"one bit changed":               {func(_ filled, b []byte) []byte { b[len(b)-1] ^= 1; return b }, "altered"},
		"its header changed":            {func(_ filled, b []byte) []byte { b[1] ^= 1; return b }, "format is unknown"},
		"of a later version":            {func(_ filled, b []byte) []byte { b[0]++; return b }, "later version"},
		"cut short":                     {func(_ filled, b []byte) []byte { return b[:20] }, "format is unknown"},
		"empty":                         {func(filled, []byte) []byte { return nil }, "format is unknown"},
		"under another root key":        {func(_ filled, b []byte) []byte { b[2] ^= 1; return b }, "another root key"},
		"that of another key":           {func(f filled, _ []byte) []byte { return f.Records()["key-"+f.other.String()] }, "altered"},
		"that of a wrapping key":        {func(f filled, _ []byte) []byte { return f.Records()["wrapping-"+f.pair.ID.String()] }, "format is unknown"},
		"text, such as a Secret's YAML": {func(filled, []byte) []byte { return []byte("apiVersion: v1\nkind: Secret\nmetadata: {}\n") }, "format is unknown"},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			f := fill(t)
			name := "key-" + f.key.String()
			f.Put(name, tc.damage(f, f.Records()[name]))
			assertOnlyKeyBroken(t, f, name, tc.want)
		})
	}
}

func assertOnlyKeyBroken(t *testing.T, f filled, name, want string) {
	t.Helper()
	m := open(t, f)
	before := f.Records()
	if keys, err := m.ListKeys(t.Context()); err != nil || len(keys) != 1 || keys[0].KeyVersionID != f.other {
		t.Errorf("ListKeys returns %v, %v; want the other key only", keys, err)
	}
	_, err := m.FindKey(t.Context(), f.key)
	wantError(t, err, hsm.Internal, name, want, "backup")
	_, err = m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.key, Length: 32})
	wantError(t, err, hsm.Internal, name)
	open := hsm.OpenRequest{Blob: ciphertext.Blob{KeyVersionID: f.key, Scheme: ciphertext.DerivedKeyWrap, Payload: random(40)}}
	wantError(t, m.VerifyDataKey(t.Context(), open), hsm.Internal, name)

	req := importRequest(t, f.pair, wrapping.SM2PKE, f.material) // not even the same material replaces the record
	req.KeyVersionID = f.key
	_, err = m.ImportKey(t.Context(), req)
	wantError(t, err, hsm.Internal, name)
	if !sameRecords(before, f.Records()) {
		t.Fatal("a record that does not open was replaced")
	}

	if _, err := m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.other, Length: 32}); err != nil {
		t.Errorf("another key: %v", err)
	}
	if err := m.DestroyKey(t.Context(), f.key); err != nil { // the record may be deleted
		t.Fatal(err)
	}
	if _, err = m.ImportKey(t.Context(), req); err != nil {
		t.Errorf("after DestroyKey: ImportKey: %v", err)
	}
}

func sameRecords(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, sealed := range a {
		if !bytes.Equal(sealed, b[name]) {
			return false
		}
	}
	return true
}

func TestOpen_brokenWrappingPair_isNotReplaced(t *testing.T) {
	t.Parallel()
	f := fill(t)
	name := "wrapping-" + f.pair.ID.String()
	f.Put(name, random(100))
	m := open(t, f)
	_, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{ID: f.pair.ID, Spec: wrapping.ECSM2})
	wantError(t, err, hsm.Internal, name)
	_, err = m.ImportKey(t.Context(), importRequest(t, f.pair, wrapping.SM2PKE, random(32)))
	wantError(t, err, hsm.Internal, name)
	if list, err := hsmtest.PairsOf(t.Context(), m, f.pair.Owner); err != nil || len(list) != 0 {
		t.Errorf("ListWrappingKeys = %v, %v", list, err)
	}
	if err := m.DestroyWrappingKey(t.Context(), f.pair.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{ID: f.pair.ID, Spec: wrapping.ECSM2}); err != nil {
		t.Error(err)
	}
}

func TestOpen_brokenMACKey_isNotReplaced(t *testing.T) {
	t.Parallel()
	f := fill(t)
	f.Put("import-token", random(100))
	_, err := open(t, f).Authenticate(t.Context(), nil)
	wantError(t, err, hsm.Internal, "import-token")
}

func TestOpen_recordsWithUnknownNames_areIgnored(t *testing.T) {
	t.Parallel()
	f := fill(t)
	id := uuid.New()
	for _, name := range []string{"", "key-", "key-1", "later-" + id.String(), "key-" + strings.ToUpper(id.String()), "wrapping-{" + id.String() + "}"} {
		f.Put(name, random(100))
	}
	before := f.Records()
	if keys, err := open(t, f).ListKeys(t.Context()); err != nil || len(keys) != 2 {
		t.Errorf("ListKeys returns %v, %v; want the two keys", keys, err)
	}
	if !sameRecords(before, f.Records()) {
		t.Error("Open changed records")
	}
}

func TestCheck_storageDownOrRootKeyReplaced_fails(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	down := error(nil)
	storage.Fail = func(string, string) error { return down }
	m := open(t, storage)
	if err := m.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	down = context.DeadlineExceeded
	wantError(t, m.Check(t.Context()), hsm.Unavailable)
	down = nil
	storage.SetRootKey(nil)
	described, err := m.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, m.Check(t.Context()), hsm.Misconfigured, "replaced", described.Info.Serial)
}
