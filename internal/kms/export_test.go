package kms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// export is a good request for the recipient's key type.
func export(t testing.TB, key kms.Key, blob kms.Blob, spec wrapping.KeySpec) kms.ExportDataKeyRequest {
	t.Helper()
	algorithm := wrapping.RSAESOAEPSHA256
	if spec == wrapping.ECSM2 {
		algorithm = wrapping.SM2PKE
	}
	return kms.ExportDataKeyRequest{Key: key, CiphertextBlob: blob, Recipient: recipientFor(t, recipient(t, spec).Public(), algorithm)}
}

// recipientFor is a recipient that may be exported to.
func recipientFor(t testing.TB, key *wrapping.PublicKey, algorithm wrapping.Algorithm) kms.Recipient {
	t.Helper()
	r, err := kms.NewRecipient(key, key.Spec(), algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExportDataKey_opensAtTheRecipients(t *testing.T) {
	t.Parallel()
	s := newService(t)
	context := kms.EncryptionContext{"app": "ledger"}
	for sentence, tc := range map[string]struct {
		spec      wrapping.KeySpec
		algorithm wrapping.Algorithm
		format    wrapping.SM2Format
		length    int // of the ciphertext; 0 where it varies
	}{
		"RSA with SHA-256":     {wrapping.RSA2048, wrapping.RSAESOAEPSHA256, "", 256},
		"RSA with SHA-1":       {wrapping.RSA2048, wrapping.RSAESOAEPSHA1, "", 256},
		"SM2":                  {wrapping.ECSM2, wrapping.SM2PKE, "", 32 + 97},
		"SM2 in the new order": {wrapping.ECSM2, wrapping.SM2PKE, wrapping.C1C3C2, 32 + 97},
		"SM2 in the old order": {wrapping.ECSM2, wrapping.SM2PKE, wrapping.C1C2C3, 32 + 97},
		"SM2 as DER":           {wrapping.ECSM2, wrapping.SM2PKE, wrapping.ASN1, 0},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			for _, master := range []hsm.KeySpec{hsm.AES256, hsm.SM4} {
				key, material := s.enabled(t, master)
				blob := s.dataKey(t, key, context)
				req := export(t, key, blob, tc.spec)
				req.EncryptionContext, req.SM2CiphertextFormat = context, tc.format
				req.Recipient = recipientFor(t, recipient(t, tc.spec).Public(), tc.algorithm)
				got, err := s.ExportDataKey(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				if got.KeyID != key.ID || got.KeyVersionID != key.Primary.ID || got.Custody != hsm.CustodySoftware || got.RequestID == uuid.Nil {
					t.Errorf("got %+v", got)
				}
				if tc.length != 0 && len(got.ExportedDataKey) != tc.length {
					t.Errorf("the ciphertext has %d bytes, want %d", len(got.ExportedDataKey), tc.length)
				}
				plain, err := recipient(t, tc.spec).Unwrap(tc.algorithm, tc.format, got.ExportedDataKey)
				if err != nil || !bytes.Equal(plain, open(t, master, material, blob, context)) {
					t.Errorf("the recipient does not read the data key (%v)", err)
				}
			}
		})
	}
}

func TestExportDataKey_everyCallHasItsOwnRequestIDAndCiphertext(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	req := export(t, key, s.dataKey(t, key, nil), wrapping.ECSM2)
	one, err1 := s.ExportDataKey(t.Context(), req)
	two, err2 := s.ExportDataKey(t.Context(), req)
	if err1 != nil || err2 != nil || one.RequestID == two.RequestID || bytes.Equal(one.ExportedDataKey, two.ExportedDataKey) {
		t.Errorf("%+v, %v and %+v, %v", one, err1, two, err2)
	}
}

func TestExportDataKey_refusesBeforeTheModuleIsAsked(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	other, _ := s.enabled(t, hsm.AES256)
	blob, theirs := s.dataKey(t, key, nil), s.dataKey(t, other, nil)
	s.module.Reset()
	for sentence, tc := range map[string]struct {
		spec   wrapping.KeySpec
		change func(*kms.ExportDataKeyRequest)
		code   kms.Code
		says   string
	}{
		"no recipient": {wrapping.ECSM2, func(r *kms.ExportDataKeyRequest) { r.Recipient = kms.Recipient{} },
			kms.MissingParameter, `"PublicKeyBlob"`},
		"a blob of another key": {wrapping.ECSM2, func(r *kms.ExportDataKeyRequest) { r.CiphertextBlob = theirs },
			kms.InvalidParameter, "CiphertextBlob: It cannot be decrypted"},
		"no blob": {wrapping.ECSM2, func(r *kms.ExportDataKeyRequest) { r.CiphertextBlob = kms.Blob{} },
			kms.MissingParameter, "CiphertextBlob"},
		"a context that is too long": {wrapping.ECSM2, func(r *kms.ExportDataKeyRequest) { r.EncryptionContext = contextOf(8193) },
			kms.InvalidParameter, "EncryptionContext"},
	} {
		req := export(t, key, blob, tc.spec)
		tc.change(&req)
		_, err := s.ExportDataKey(t.Context(), req)
		wantError(t, err, tc.code, tc.says)
		if calls := s.module.Calls(); len(calls) > 0 {
			t.Errorf("%s: the module was asked: %v", sentence, calls)
		}
	}
}

// One answer for every blob that does not open, whether we noticed or the module.
func TestExportDataKey_refusesABlobThatDoesNotOpen(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	other, _ := s.enabled(t, hsm.AES256)
	context := kms.EncryptionContext{"app": "ledger"}
	blob := s.dataKey(t, key, context)
	raw, err := base64.StdEncoding.DecodeString(blob.String())
	if err != nil {
		t.Fatal(err)
	}
	encode := func(raw []byte) kms.Blob { return parsed(t, base64.StdEncoding.EncodeToString(raw)) }
	messages := map[string]string{}
	for cause, tc := range map[string]struct {
		blob    kms.Blob
		context kms.EncryptionContext
	}{
		"another key":           {s.dataKey(t, other, context), context},
		"another key's name":    {encode(append([]byte(other.Primary.ID.String()), raw[36:]...)), context},
		"another context":       {blob, kms.EncryptionContext{"app": "Ledger"}},
		"no context":            {blob, nil},
		"cut short":             {encode(raw[:len(raw)-8]), context},
		"cut to its name":       {encode(raw[:37]), context},
		"a byte more":           {encode(append(bytes.Clone(raw), 0)), context},
		"the last byte changed": {encode(flipped(raw, len(raw)-1)), context},
		"another scheme":        {encode(append(append(bytes.Clone(raw[:36]), 2), raw[37:]...)), context},
		"an unknown scheme":     {encode(append(append(bytes.Clone(raw[:36]), 99), raw[37:]...)), context},
	} {
		req := export(t, key, tc.blob, wrapping.ECSM2)
		req.EncryptionContext = tc.context
		got, err := s.ExportDataKey(t.Context(), req)
		messages[cause] = wantError(t, err, kms.InvalidParameter, "CiphertextBlob", "EncryptionContext")
		if got.ExportedDataKey != nil {
			t.Errorf("%s: something was exported", cause)
		}
	}
	wantSame(t, messages)
}

func TestExportDataKey_takesWhatThePaddingLeaves(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	for _, tc := range []struct {
		algorithm wrapping.Algorithm
		spec      wrapping.KeySpec
		longest   int // as documented, for RSA-2048
		longer    int
	}{
		{wrapping.RSAESOAEPSHA256, wrapping.RSA2048, 190, 191},
		{wrapping.RSAESOAEPSHA1, wrapping.RSA2048, 214, 215},
		{wrapping.SM2PKE, wrapping.ECSM2, 1024, 0},
	} {
		for _, n := range []int{tc.longest, tc.longer} {
			if n == 0 {
				continue
			}
			made, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key, NumberOfBytes: n})
			if err != nil {
				t.Fatal(err)
			}
			req := export(t, key, made.CiphertextBlob, tc.spec)
			req.Recipient = recipientFor(t, recipient(t, tc.spec).Public(), tc.algorithm)
			_, err = s.ExportDataKey(t.Context(), req)
			switch {
			case n == tc.longest && err != nil:
				t.Errorf("%s of %d bytes: %v", tc.algorithm, n, err)
			case n == tc.longer:
				wantError(t, err, kms.InvalidParameter, "make it shorter", "RSA_2048")
			}
		}
	}
}

func TestExportDataKey_ofAKeyThatWent_isNotFound(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	req := export(t, key, s.dataKey(t, key, nil), wrapping.ECSM2)
	if err := s.DeleteKeyMaterial(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	_, err := s.ExportDataKey(t.Context(), req)
	wantError(t, err, kms.ForbiddenKeyVersionNotFound)
}

// cannot is a module that does not export with the algorithm that is asked for, as one under a custody
// policy.
type cannot struct {
	hsm.Keys
	only []hsm.Capability
}

// Describe implements hsm.Keys.
func (m cannot) Describe(context.Context) (hsm.Description, error) {
	return hsm.Description{Capabilities: m.only}, nil
}

func TestExportDataKey_thatTheModuleDoesNotOffer(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	req := export(t, key, s.dataKey(t, key, nil), wrapping.ECSM2)

	s.Module = cannot{s.module, []hsm.Capability{{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1"}, {Operation: hsm.OperationImport, Algorithm: "SM2PKE"}}}
	_, err := s.ExportDataKey(t.Context(), req)
	public := wantError(t, err, kms.UnsupportedOperation, "Export SM2PKE", "Supported: RSAES_OAEP_SHA_1", "status.capabilities", "custody policy")
	if strings.Contains(public, "offers SM2PKE") {
		t.Errorf("%q", public)
	}
	s.Module = cannot{s.module, nil}
	_, err = s.ExportDataKey(t.Context(), req)
	wantError(t, err, kms.UnsupportedOperation, "does not support Export.")
}

func TestExportDataKey_toTheImportKeyOfAnotherModule_isItsMaterial(t *testing.T) {
	t.Parallel()
	here, there := newService(t), newService(t)
	key, material := here.enabled(t, hsm.AES256)
	blob := here.dataKey(t, key, nil)

	target := newKey(hsm.AES256)
	p := there.parameters(t, sm2(target))
	req := export(t, key, blob, wrapping.ECSM2)
	req.Recipient = recipientFor(t, p.PublicKey, wrapping.SM2PKE)
	exported, err := here.ExportDataKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	imported, err := there.ImportKeyMaterial(t.Context(), kms.ImportKeyMaterialRequest{
		Key: target, ImportToken: p.ImportToken, EncryptedKeyMaterial: exported.ExportedDataKey,
	})
	if err != nil {
		t.Fatal(err)
	}
	want, err := hsm.FingerprintOf(hsm.AES256, open(t, hsm.AES256, material, blob, nil))
	if err != nil || *imported.Fingerprint != want {
		t.Errorf("what arrived has fingerprint %s, want %s (%v)", imported.Fingerprint, want, err)
	}
}
