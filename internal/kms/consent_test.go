package kms_test

import (
	"errors"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/kms"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

func TestConsent(t *testing.T) {
	t.Parallel()
	const ada, bob = "SHA256:ada", "SHA256:bob"
	const oaep, sm2pke = "RSAES_OAEP_SHA_256", "SM2PKE"
	at := func(same, selected bool) kms.Use {
		return kms.Use{SameNamespace: same, Selected: selected, Recipient: ada, WrappingAlgorithm: oaep}
	}
	for sentence, tc := range map[string]struct {
		policy kms.ExportPolicy
		use    kms.Use
		says   string // empty: yes
	}{
		"no policy, the same namespace":                  {kms.ExportPolicy{}, at(true, false), ""},
		"no policy, another namespace":                   {kms.ExportPolicy{}, at(false, false), "exportPolicy.namespaces"},
		"no policy, a namespace that a selector matches": {kms.ExportPolicy{}, at(false, true), "exportPolicy.namespaces"},
		"Same, another namespace":                        {kms.ExportPolicy{Namespaces: kms.NamespacesSame}, at(false, true), "exportPolicy.namespaces"},
		"All, another namespace":                         {kms.ExportPolicy{Namespaces: kms.NamespacesAll}, at(false, false), ""},
		"Selector, a selected namespace":                 {kms.ExportPolicy{Namespaces: kms.NamespacesSelector}, at(false, true), ""},
		"Selector, another namespace":                    {kms.ExportPolicy{Namespaces: kms.NamespacesSelector}, at(false, false), "exportPolicy.namespaces"},
		"Selector, the key's own namespace":              {kms.ExportPolicy{Namespaces: kms.NamespacesSelector}, at(true, false), ""},
		"an unknown choice":                              {kms.ExportPolicy{Namespaces: "Some"}, at(false, true), "exportPolicy.namespaces"},
		"a recipient of the list":                        {kms.ExportPolicy{Recipients: []string{bob, ada}}, at(true, false), ""},
		"a recipient that is not of the list":            {kms.ExportPolicy{Recipients: []string{bob}}, at(true, false), ada},
		"no recipient is not of a list":                  {kms.ExportPolicy{Recipients: []string{bob}}, kms.Use{SameNamespace: true}, "exportPolicy.recipients"},
		"an algorithm of the list":                       {kms.ExportPolicy{WrappingAlgorithms: []string{oaep}}, at(true, false), ""},
		"an algorithm that is not of the list":           {kms.ExportPolicy{WrappingAlgorithms: []string{sm2pke}}, at(true, false), oaep},
		"all three must be": {
			kms.ExportPolicy{Namespaces: kms.NamespacesAll, Recipients: []string{ada}, WrappingAlgorithms: []string{sm2pke}},
			at(false, false), "exportPolicy.wrappingAlgorithms",
		},
		"the namespace is asked first": {
			kms.ExportPolicy{Recipients: []string{bob}, WrappingAlgorithms: []string{sm2pke}}, at(false, false), "exportPolicy.namespaces",
		},
	} {
		err := tc.policy.Consent(tc.use)
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", sentence, err)
		case tc.says != "":
			wantError(t, err, kms.ForbiddenNoPermission, "owner does not consent", tc.says)
		}
	}
}

// A dry run never succeeds: that is how the documented API says so.
func TestDryRun(t *testing.T) {
	t.Parallel()
	wantError(t, kms.DryRun(nil), kms.DryRunOperationError, "would have succeeded")
	for code, want := range map[kms.Code]kms.Code{
		kms.InvalidParameter:            kms.ValidationError,
		kms.MissingParameter:            kms.ValidationError,
		kms.UnsupportedOperation:        kms.ValidationError,
		kms.RejectedDisabled:            kms.ValidationError,
		kms.RejectedPendingImport:       kms.ValidationError,
		kms.ForbiddenNoPermission:       kms.AccessDeniedError,
		kms.ForbiddenKeyNotFound:        kms.AccessDeniedError,
		kms.ForbiddenKeyVersionNotFound: kms.AccessDeniedError,
		// What is an outcome already: who tries may ask another who tries.
		kms.DryRunOperationError: kms.DryRunOperationError,
		kms.ValidationError:      kms.ValidationError,
		kms.AccessDeniedError:    kms.AccessDeniedError,
		// An error that no one can repair: to be retried, as without a dry run.
		kms.ServiceUnavailableTemporary: kms.ServiceUnavailableTemporary,
		kms.InternalFailure:             kms.InternalFailure,
	} {
		cause := &kms.Error{Code: code, Detail: "Do this."}
		err := kms.DryRun(cause)
		wantError(t, err, want, string(code), "Do this.")
		if !errors.Is(err, cause) {
			t.Errorf("%s: the log does not have the cause", code)
		}
	}
	other := errors.New("disk full")
	if err := kms.DryRun(other); !errors.Is(err, other) || kms.CodeOf(err) != kms.InternalFailure {
		t.Errorf("an unknown error becomes %v", err)
	}
}

func TestExportDataKey_dryRunExportsNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	key, _ := s.enabled(t, hsm.AES256)
	req := export(t, key, s.dataKey(t, key, nil), wrapping.ECSM2)
	req.DryRun = true
	for sentence, tc := range map[string]struct {
		change func(*kms.ExportDataKeyRequest)
		code   kms.Code
	}{
		"all is right":           {func(*kms.ExportDataKeyRequest) {}, kms.DryRunOperationError},
		"another context":        {func(r *kms.ExportDataKeyRequest) { r.EncryptionContext = kms.EncryptionContext{"a": "b"} }, kms.ValidationError},
		"no recipient":           {func(r *kms.ExportDataKeyRequest) { r.Recipient = kms.Recipient{} }, kms.ValidationError},
		"a key that is Disabled": {func(r *kms.ExportDataKeyRequest) { r.Key.State = kms.StateDisabled }, kms.ValidationError},
		"a key that is Deleted":  {func(r *kms.ExportDataKeyRequest) { r.Key.State = kms.StateDeleted }, kms.AccessDeniedError},
	} {
		try := req
		tc.change(&try)
		got, err := s.ExportDataKey(t.Context(), try)
		wantError(t, err, tc.code)
		if got.ExportedDataKey != nil || got.RequestID != [16]byte{} {
			t.Errorf("%s: %+v comes out of a dry run", sentence, got)
		}
	}
}
