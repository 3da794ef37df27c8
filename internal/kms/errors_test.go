package kms_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// The table of the documented API.
func TestCode_hasItsDocumentedStatusAndMessage(t *testing.T) {
	t.Parallel()
	documented := map[kms.Code]struct {
		status  int
		message string
	}{
		"InvalidParameter":             {400, "The specified parameter is not valid."},
		"MissingParameter":             {400, `The parameter "<name>" is needed but not provided.`},
		"InvalidKeyMaterial":           {400, "key material is invalid"},
		"InvalidImportToken":           {400, "import token is invalid"},
		"ExpiredImportToken":           {400, "import token is expired"},
		"Unsupported.Origin":           {400, "This key origin is not valid for this api"},
		"UnsupportedOperation":         {400, "This action is not supported."},
		"Forbidden.NoPermission":       {403, "This operation is forbidden by permission system."},
		"Forbidden.KeyNotFound":        {404, "The specified Key is not found."},
		"Forbidden.KeyVersionNotFound": {404, "The specified Key version is not found."},
		"Rejected.Disabled":            {409, "The request was rejected because the key state is Disabled."},
		"Rejected.PendingDeletion":     {409, "The request was rejected because the key state is PendingDeletion."},
		"Rejected.PendingImport":       {409, "The request was rejected because the key state is PendingImport."},
		"Rejected.Unavailable":         {409, "The request was rejected because the key state is Unavailable."},
		"Rejected.Throttling":          {429, "QPS Limit Exceeded"},
		"DryRunOperationError":         {400, "The request passes the dry run."},
		"ValidationError":              {400, "A parameter value in the request is invalid."},
		"AccessDeniedError":            {400, "You do not have the permissions to access the resources that you want to manage."},
		"Rejected.StateModifiedFailed": {409, "Keystate modified failed."},
		"InternalFailure":              {500, "Internal Failure."},
		"ServiceUnavailableTemporary":  {503, "Service Unavailable Temporary."},
	}
	for _, code := range kms.Codes() {
		want, ok := documented[code]
		if !ok {
			t.Errorf("%s is not in this table", code)
		}
		if code.HTTPStatus() != want.status || code.Message() != want.message {
			t.Errorf("%s: %d %q, want %d %q", code, code.HTTPStatus(), code.Message(), want.status, want.message)
		}
		// A condition's reason may hold no dot but as part of a domain.
		if reason := code.Reason(); reason != strings.ReplaceAll(string(code), ".", "") || strings.Contains(reason, ".") {
			t.Errorf("%s: reason %q", code, reason)
		}
		delete(documented, code)
	}
	for code := range documented {
		t.Errorf("%s is not in Codes()", code)
	}
}

func TestError_publicText(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		err  kms.Error
		want string
	}{
		"a code alone is as documented": {
			kms.Error{Code: kms.InvalidImportToken},
			"InvalidImportToken: import token is invalid",
		},
		"a detail is a sentence of its own": {
			kms.Error{Code: kms.InvalidImportToken, Detail: "It is damaged."},
			"InvalidImportToken: import token is invalid. It is damaged.",
		},
		"a module's detail becomes a sentence": {
			kms.Error{Code: kms.InvalidKeyMaterial, Detail: "the material must be 32 bytes long"},
			"InvalidKeyMaterial: key material is invalid. The material must be 32 bytes long.",
		},
		"a wrong parameter is named": {
			kms.Error{Code: kms.InvalidParameter, Parameter: "KeySpec", Detail: "It must be AES_256 or AES_128."},
			"InvalidParameter: The specified parameter is not valid. KeySpec: It must be AES_256 or AES_128.",
		},
		"a missing parameter is named where the documentation has it": {
			kms.Error{Code: kms.MissingParameter, Parameter: "ImportToken"},
			`MissingParameter: The parameter "ImportToken" is needed but not provided.`,
		},
		"the cause is for the log": {
			kms.Error{Code: kms.InternalFailure, Err: errors.New("CKR_HOST_MEMORY")},
			"InternalFailure: Internal Failure.",
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			if got := tc.err.Public(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if tc.err.Err != nil && (!errors.Is(&tc.err, tc.err.Err) || !strings.Contains(tc.err.Error(), tc.err.Err.Error())) {
				t.Errorf("the log does not have the cause: %v", &tc.err)
			}
		})
	}
}

func TestCodeOf(t *testing.T) {
	t.Parallel()
	for sentence, tc := range map[string]struct {
		err  error
		want kms.Code
	}{
		"nothing wrong":        {nil, ""},
		"one of ours":          {&kms.Error{Code: kms.RejectedDisabled}, kms.RejectedDisabled},
		"one of ours, wrapped": {fmt.Errorf("exporting: %w", &kms.Error{Code: kms.RejectedDisabled}), kms.RejectedDisabled},
		"of another package":   {errors.New("disk full"), kms.InternalFailure},
	} {
		if got := kms.CodeOf(tc.err); got != tc.want {
			t.Errorf("%s: %q, want %q", sentence, got, tc.want)
		}
	}
}

// What a module fails with, whatever the operation: the detail is shown and the cause is not.
func TestFromModule_givesEveryKindItsCode(t *testing.T) {
	t.Parallel()
	if err := kms.FromModule(nil); err != nil {
		t.Errorf("nothing wrong becomes %v", err)
	}
	secret := errors.New("CKR_DEVICE_ERROR in slot 7")
	for kind, want := range map[hsm.Kind]kms.Code{
		hsm.InvalidMaterial:           kms.InvalidKeyMaterial,
		hsm.MaterialLength:            kms.InvalidKeyMaterial,
		hsm.OtherMaterial:             kms.InvalidKeyMaterial,
		hsm.DataKeyTooLong:            kms.InvalidParameter,
		hsm.NotFound:                  kms.ForbiddenKeyVersionNotFound,
		hsm.NotSupported:              kms.UnsupportedOperation,
		hsm.Misconfigured:             kms.ServiceUnavailableTemporary,
		hsm.Unavailable:               kms.ServiceUnavailableTemporary,
		hsm.Locked:                    kms.ServiceUnavailableTemporary,
		hsm.Internal:                  kms.InternalFailure,
		hsm.Kind("of a later module"): kms.InternalFailure,
	} {
		err := kms.FromModule(fmt.Errorf("calling: %w", hsm.Wrap(kind, secret, "turn the key to the left")))
		public := wantError(t, err, want, "Turn the key to the left.")
		if strings.Contains(public, "CKR") || strings.Contains(public, "calling") {
			t.Errorf("%s: %q shows the cause", kind, public)
		}
		if !errors.Is(err, secret) || hsm.KindOf(err) != kind {
			t.Errorf("%s: the cause is not in the chain of %v", kind, err)
		}
	}
	// One answer to every blob that does not open: not even the module's own words.
	blob := kms.FromModule(hsm.Wrap(hsm.InvalidBlob, secret, "the tag is wrong"))
	if public := wantError(t, blob, kms.InvalidParameter, "CiphertextBlob", "EncryptionContext"); strings.Contains(public, "tag") {
		t.Errorf("%q tells causes apart", public)
	}
	// An error without a kind is not shown.
	if public := wantError(t, kms.FromModule(secret), kms.InternalFailure); public != "InternalFailure: Internal Failure." {
		t.Errorf("%q shows an unknown error", public)
	}
}

// A module that fails fails the operation, with the code that says who can repair it, and never with the
// module's own words.
func TestOperations_whenTheModuleFails(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, material := s.enabled(t, hsm.AES256)
	blob := s.dataKey(t, key, nil)
	parameters := s.parameters(t, sm2(key))
	reader := recipient(t, wrapping.ECSM2).Public()
	destroyPairs := func() error {
		_, err := s.DestroyImportParameters(t.Context(), key.ID, true)
		return err
	}

	made := s.generatedKey(t, hsm.AES256)
	reEncrypt := func() error {
		_, err := s.ReEncrypt(t.Context(), kms.ReEncryptRequest{Key: key, CiphertextBlob: blob, Destination: made})
		return err
	}

	for method, operation := range map[string]func() error{
		"CreateWrappingKey": func() error {
			_, err := s.GetParametersForImport(t.Context(), sm2(key))
			return err
		},
		"Authenticate": func() error {
			_, err := s.GetParametersForImport(t.Context(), sm2(key))
			_, err2 := s.ImportKeyMaterial(t.Context(), request(t, key, parameters, wrapping.SM2PKE, material))
			if kms.CodeOf(err) != kms.CodeOf(err2) {
				t.Errorf("one fails with %v and the other with %v", err, err2)
			}
			return err
		},
		"ImportKey": func() error {
			_, err := s.ImportKeyMaterial(t.Context(), request(t, key, parameters, wrapping.SM2PKE, material))
			return err
		},
		"GenerateDataKey": func() error {
			_, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key})
			return err
		},
		"VerifyDataKey": func() error { return s.VerifyDataKey(t.Context(), key, blob, nil) },
		"ExportDataKey": func() error {
			_, err := s.ExportDataKey(t.Context(), kms.ExportDataKeyRequest{
				Key: key, CiphertextBlob: blob, Recipient: recipientFor(t, reader, wrapping.SM2PKE),
			})
			return err
		},
		"GenerateKey":        func() error { _, err := s.CreateKeyVersion(t.Context(), made); return err },
		"ReencryptDataKey":   reEncrypt,
		"ListWrappingKeys":   destroyPairs,
		"DestroyWrappingKey": destroyPairs,
		"DestroyKey":         func() error { return s.DeleteKeyMaterial(t.Context(), key) },
	} {
		for kind, want := range map[hsm.Kind]kms.Code{
			hsm.Unavailable: kms.ServiceUnavailableTemporary,
			hsm.Locked:      kms.ServiceUnavailableTemporary,
			hsm.Internal:    kms.InternalFailure,
		} {
			s.module.FailAll(method, hsm.Wrap(kind, errors.New("CKR_GENERAL_ERROR"), "look at the module"))
			public := wantError(t, operation(), want, "Look at the module.")
			if strings.Contains(public, "CKR") {
				t.Errorf("%s: %q shows the cause", method, public)
			}
			s.module.FailAll(method, nil)
		}
		// Nothing was lost meanwhile.
		if method != "DestroyKey" && method != "DestroyWrappingKey" && method != "ListWrappingKeys" {
			if err := operation(); err != nil {
				t.Errorf("%s: %v, after the module came back", method, err)
			}
		}
	}
}

// The operations ask Permit before they ask the module.
func TestOperations_refuseByTheKeysState(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, material := s.enabled(t, hsm.AES256)
	blob := s.dataKey(t, key, nil)
	parameters := s.parameters(t, sm2(key))
	s.module.Reset()

	for state, code := range map[kms.KeyState]kms.Code{
		kms.StateDisabled:        kms.RejectedDisabled,
		kms.StatePendingDeletion: kms.RejectedPendingDeletion,
		kms.StatePendingImport:   kms.RejectedPendingImport,
		"":                       kms.RejectedUnavailable,
	} {
		key.State = state
		_, err := s.GenerateDataKeyWithoutPlaintext(t.Context(), kms.GenerateDataKeyRequest{Key: key})
		wantError(t, err, code)
		wantError(t, s.VerifyDataKey(t.Context(), key, blob, nil), code)
		_, err = s.ExportDataKey(t.Context(), kms.ExportDataKeyRequest{
			Key: key, CiphertextBlob: blob, Recipient: recipientFor(t, recipient(t, wrapping.ECSM2).Public(), wrapping.SM2PKE),
		})
		wantError(t, err, code)
	}
	key.State = kms.StatePendingDeletion
	_, err := s.ImportKeyMaterial(t.Context(), request(t, key, parameters, wrapping.SM2PKE, material))
	wantError(t, err, kms.RejectedStateModifiedFailed)
	if calls := s.module.Calls(); len(calls) > 0 {
		t.Errorf("the module was asked: %v", calls)
	}

	// Parameters are had in every state, and material comes in in every other one.
	for _, state := range []kms.KeyState{kms.StateEnabled, kms.StateDisabled, kms.StatePendingDeletion, kms.StatePendingImport} {
		key.State = state
		p := s.parameters(t, sm2(key))
		if state == kms.StatePendingDeletion {
			continue
		}
		if _, err := s.ImportKeyMaterial(t.Context(), request(t, key, p, wrapping.SM2PKE, material)); err != nil {
			t.Errorf("ImportKeyMaterial of a key that is %s: %v", state, err)
		}
	}
}
