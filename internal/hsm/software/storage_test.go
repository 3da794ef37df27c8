package software_test

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/ciphertext"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestStorage_getsNoPlaintext(t *testing.T) {
	t.Parallel()
	f := fill(t)
	records := f.Records()
	if len(records) != 4 {
		t.Fatalf("%d records", len(records))
	}
	dnsLabel := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	for name, sealed := range records {
		if !dnsLabel.MatchString(name) {
			t.Errorf("%q is not a DNS label", name)
		}
		for what, plain := range map[string][]byte{
			"material": f.material[:8], "the key type": []byte(hsm.AES256), "the public key": f.pair.PublicKey[60:68],
		} {
			if bytes.Contains(sealed, plain) {
				t.Errorf("the record %s has %s in plaintext", name, what)
			}
		}
	}
}

func TestStorage_operationsOnDataKeys_doNotUseIt(t *testing.T) {
	t.Parallel()
	f := fill(t)
	m := open(t, f)
	before := f.Calls()
	made, err := m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.key, Length: 32})
	if err != nil {
		t.Fatal(err)
	}
	open := hsm.OpenRequest{Blob: made.Blob, Binding: ciphertext.Binding{}}
	if err := m.VerifyDataKey(t.Context(), open); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExportDataKey(t.Context(), hsm.ExportRequest{OpenRequest: open, Recipient: f.pair.PublicKey, Algorithm: wrapping.SM2PKE}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.FindKey(t.Context(), f.key); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Authenticate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := f.Calls() - before; n != 0 {
		t.Errorf("%d calls of the storage", n)
	}
}

func TestStorage_importOfTheSameMaterial_doesNotUseIt(t *testing.T) {
	t.Parallel()
	f := fill(t)
	m := open(t, f)
	before := f.Calls()
	req := importRequest(t, f.pair, wrapping.SM2PKE, f.material)
	req.KeyVersionID = f.key
	if _, err := m.ImportKey(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if n := f.Calls() - before; n != 0 {
		t.Errorf("%d calls of the storage", n)
	}
}

func TestStorage_saveFails_createsNothing(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	var saving error
	storage.Fail = func(method, _ string) error {
		if method == "Save" || method == "Create" {
			return saving
		}
		return nil
	}
	m := open(t, storage)
	pair := createPair(t, m, wrapping.ECSM2)
	req := importRequest(t, pair, wrapping.SM2PKE, random(32))
	create := hsm.WrappingKeyRequest{ID: uuid.New(), Owner: uuid.New(), Spec: wrapping.ECSM2}

	saving = errors.New("etcd is full")
	_, err := m.ImportKey(t.Context(), req)
	wantError(t, err, hsm.Unavailable)
	_, err = m.FindKey(t.Context(), req.KeyVersionID)
	wantError(t, err, hsm.NotFound)
	_, err = m.CreateWrappingKey(t.Context(), create)
	wantError(t, err, hsm.Unavailable)
	if list, err := hsmtest.PairsOf(t.Context(), m, create.Owner); err != nil || len(list) != 0 {
		t.Errorf("ListWrappingKeys = %v, %v", list, err)
	}
	_, err = m.Authenticate(t.Context(), nil)
	wantError(t, err, hsm.Unavailable)

	saving = nil // from now on, Save succeeds
	if _, err = m.ImportKey(t.Context(), req); err != nil {
		t.Error(err)
	}
	if _, err = m.CreateWrappingKey(t.Context(), create); err != nil {
		t.Error(err)
	}
	if _, err = m.Authenticate(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func generateRequest(spec hsm.KeySpec) hsm.GenerateKeyRequest {
	id := uuid.New()
	return hsm.GenerateKeyRequest{
		KeyVersionID: id, Spec: spec, Owner: hsm.Owner{Namespace: "team-a", Name: "payments", Origin: hsm.OriginGenerated, KeyID: id, Number: 1},
	}
}

// A Create that fails may have created the record nevertheless.
func TestStorage_createFailsAfterItsEffect_keyIsFound(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	m, other := open(t, storage), open(t, storage)
	req := generateRequest(hsm.SM4)
	storage.Fail = failing("Create", errors.New("etcd is full"))
	_, err := m.GenerateKey(t.Context(), req)
	wantError(t, err, hsm.Unavailable)
	_, err = m.FindKey(t.Context(), req.KeyVersionID)
	wantError(t, err, hsm.NotFound)

	storage.Fail = nil
	created, err := other.GenerateKey(t.Context(), req) // as if this were the effect of the call above
	if err != nil {
		t.Fatal(err)
	}
	found, err := m.GenerateKey(t.Context(), req)
	if err != nil || found != created {
		t.Errorf("GenerateKey = %+v, %v; the storage has %+v", found, err, created)
	}
	if again, err := open(t, storage).GenerateKey(t.Context(), req); err != nil || again != created {
		t.Errorf("GenerateKey of a store that was opened again = %+v, %v; the storage has %+v", again, err, created)
	}
}

// A record that does not open may be a key that data keys need.
func TestStorage_createFindsARecordThatDoesNotOpen_keepsIt(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	m := open(t, storage)
	req := generateRequest(hsm.AES256)
	record := "key-" + req.KeyVersionID.String()
	storage.Put(record, []byte("garbage"))
	_, err := m.GenerateKey(t.Context(), req)
	wantError(t, err, hsm.Internal, record)
	if kept := storage.Records()[record]; string(kept) != "garbage" {
		t.Errorf("the record is now %q", kept)
	}
}

func TestStorage_deleteFails_keepsTheKey(t *testing.T) {
	t.Parallel()
	f := fill(t)
	m := open(t, f)
	f.Fail = failing("Delete", errors.New("connection refused"))
	wantError(t, m.DestroyKey(t.Context(), f.key), hsm.Unavailable)
	wantError(t, m.DestroyWrappingKey(t.Context(), f.pair.ID), hsm.Unavailable)
	if _, err := m.FindKey(t.Context(), f.key); err != nil {
		t.Error(err)
	}
	if list, err := hsmtest.PairsOf(t.Context(), m, f.pair.Owner); err != nil || len(list) != 1 {
		t.Errorf("ListWrappingKeys = %v, %v", list, err)
	}
}

func TestStorage_hangs_blocksOnlyCallsThatUseIt(t *testing.T) {
	t.Parallel()
	f := fill(t)
	hanging, release := make(chan struct{}), make(chan struct{})
	slow := uuid.New()
	f.Fail = func(method, name string) error {
		if method == "Save" && name == "wrapping-"+slow.String() {
			close(hanging)
			<-release
		}
		return nil
	}
	m := open(t, f)
	done := make(chan error)
	go func() {
		_, err := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{ID: slow, Spec: wrapping.ECSM2})
		done <- err
	}()
	<-hanging

	impatient, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error)
	go func() {
		_, err := m.CreateWrappingKey(impatient, hsm.WrappingKeyRequest{ID: slow, Spec: wrapping.ECSM2})
		cancelled <- err
	}()
	cancel()
	wantError(t, <-cancelled, hsm.Unavailable) // a caller that waits for the same pair can give up

	importKey(t, m, createPair(t, m, wrapping.ECSM2), random(32))
	if _, err := m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.key, Length: 32}); err != nil {
		t.Error(err)
	}
	if err := m.DestroyKey(t.Context(), f.other); err != nil {
		t.Error(err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAuthenticate_concurrentFirstCalls_createOneKey(t *testing.T) {
	t.Parallel()
	storage := &hsmtest.Storage{}
	m := open(t, storage)
	tags := make(chan string, 8)
	for range cap(tags) {
		go func() {
			tag, err := m.Authenticate(t.Context(), []byte("message"))
			if err != nil {
				t.Error(err)
			}
			tags <- string(tag)
		}()
	}
	first := <-tags
	for range cap(tags) - 1 {
		if <-tags != first {
			t.Error("two callers got different tags")
		}
	}
}

func TestImportKey_PKCS1v15_reportsWhoCanAllowIt(t *testing.T) {
	t.Parallel()
	m := open(t, &hsmtest.Storage{})
	_, err := m.ImportKey(t.Context(), hsm.ImportRequest{
		KeyVersionID: uuid.New(), Spec: hsm.AES256, Algorithm: wrapping.RSAESPKCS1V15,
	})
	wantError(t, err, hsm.NotSupported, "administrator", "RSAES_OAEP_SHA_256")
}

func TestImportKey_wrongLength_reportsTheRightOne(t *testing.T) {
	t.Parallel()
	m := open(t, &hsmtest.Storage{})
	_, err := m.ImportKey(t.Context(), importRequest(t, createPair(t, m, wrapping.ECSM2), wrapping.SM2PKE, random(31)))
	wantError(t, err, hsm.MaterialLength, "must be 32 bytes long for AES_256", "31")
}

func TestClose_makesEveryCallFail(t *testing.T) {
	t.Parallel()
	f := fill(t)
	m := open(t, f)
	for range 2 {
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	before := f.Calls()
	_, findErr := m.FindKey(t.Context(), f.key)
	_, generateErr := m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.key, Length: 32})
	_, importErr := m.ImportKey(t.Context(), importRequest(t, f.pair, wrapping.SM2PKE, random(32)))
	_, createErr := m.CreateWrappingKey(t.Context(), hsm.WrappingKeyRequest{ID: uuid.New(), Spec: wrapping.ECSM2})
	_, listErr := hsmtest.PairsOf(t.Context(), m, f.pair.Owner)
	_, tagErr := m.Authenticate(t.Context(), nil)
	for _, err := range []error{
		findErr, generateErr, importErr, createErr, listErr, tagErr, m.Check(t.Context()), m.DestroyKey(t.Context(), f.key),
	} {
		wantError(t, err, hsm.Unavailable, "closed")
	}
	if f.Calls() != before {
		t.Error("a closed module called its storage")
	}
	var _ hsm.Storage = f
}

// Two processes import first material into one key: the later one finds the key of the other one, and must not replace it.
func TestImportKey_inTwoProcessesAtOnce_leavesOneKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ same bool }{"the same material": {true}, "other material": {false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storage := &hsmtest.Storage{}
			var meanwhile func()
			storage.Fail = func(method, _ string) error {
				if act := meanwhile; act != nil && (method == "Create" || method == "Save") {
					meanwhile = nil
					act()
				}
				return nil
			}
			m, other := open(t, storage), open(t, storage)
			pair := createPair(t, m, wrapping.ECSM2)
			material := random(32)
			first := importRequest(t, pair, wrapping.SM2PKE, material)
			if !c.same {
				material = random(32)
			}
			late := importRequest(t, pair, wrapping.SM2PKE, material)
			late.KeyVersionID = first.KeyVersionID
			meanwhile = func() {
				if _, err := other.ImportKey(t.Context(), first); err != nil {
					t.Error(err)
				}
			}
			_, err := m.ImportKey(t.Context(), late)
			if c.same && err != nil || !c.same && !errors.Is(err, hsm.ErrOtherMaterial) {
				t.Errorf("The later import ends with %v", err)
			}
			want, err := other.FindKey(t.Context(), first.KeyVersionID)
			if err != nil {
				t.Fatal(err)
			}
			for what, process := range map[string]hsm.Module{"the later process": m, "a new process": open(t, storage)} {
				if got, err := process.FindKey(t.Context(), first.KeyVersionID); err != nil || got.Fingerprint != want.Fingerprint {
					t.Errorf("In %s the key is %v, %v", what, got.Fingerprint, err)
				}
			}
		})
	}
}
