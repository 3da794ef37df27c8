//go:build cgo

package pkcs11

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest/tokens"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
	"github.com/keyconvoy/keyconvoy/internal/wrapping"
)

// A variant is a module of tokens.Kinds without the mechanisms of the derivations that it prefers.
type variant struct {
	kind     string
	rejected []uint
	want     derivation
}

var variants = map[string]variant{
	"SoftHSM without derivation": {"SoftHSM", []uint{p11.CKM_AES_ECB_ENCRYPT_DATA}, byEncryption},
	"NSS without derivation":     {"NSS", []uint{p11.CKM_AES_ECB_ENCRYPT_DATA, token.CKMCounterKDF}, byEncryption},
	"NSS with the KDF":           {"NSS", []uint{p11.CKM_AES_ECB_ENCRYPT_DATA}, byKDF},
}

// onEachVariant runs a test on each variant.
func onEachVariant(t *testing.T, test func(t *testing.T, name string, want derivation, tok tokens.Token)) {
	t.Helper()
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			tok := tokens.Kinds[v.kind](t)
			spyLoaded(t, tok).Reject(v.rejected...)
			test(t, name, v.want, tok)
		})
	}
}

// spyLoaded loads the library of a token and returns its spy.
func spyLoaded(t *testing.T, tok tokens.Token) *tokens.Spy {
	t.Helper()
	m, err := Open(t.Context(), configOf(tok))
	if err == nil {
		err = m.Close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return tokens.SpyOn(t, tok)
}

func TestDerivation_variants_keepTheContract(t *testing.T) {
	onEachVariant(t, func(t *testing.T, name string, _ derivation, tok tokens.Token) {
		keepsTheContract(t, configOf(tok), expected(name, hsm.CustodyHost, false))
	})
}

func TestDerivation_masterKeyHasItsUsagesOnly(t *testing.T) {
	onEachVariant(t, func(t *testing.T, _ string, want derivation, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		if got := f.m.can.derivation; got != want {
			t.Fatalf("the self-test found %s, want %s", got, want)
		}
		err := f.m.do(t.Context(), func(s *session) error {
			h, err := s.master(f.id)
			if err != nil {
				return err
			}
			for _, usage := range append(want.usages(), want.otherUsages()...) {
				values, err := s.GetAttributes(h, usage)
				if err != nil || isTrue(values[0]) != slices.Contains(want.usages(), usage) {
					t.Errorf("attribute %#x is %x, %v", usage, values, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// A library may gain or lose mechanisms, or the token may be reached through another library. Keys then have the usages of another
// derivation. Above all, a key that encrypts is not used by a token that derives.
func TestDerivation_changed_rejectsTheKeys(t *testing.T) {
	for name, v := range variants {
		for _, upgraded := range []bool{false, true} {
			t.Run(name+map[bool]string{false: ", lost mechanisms", true: ", gained mechanisms"}[upgraded], func(t *testing.T) {
				tok := tokens.Kinds[v.kind](t)
				spy := spyLoaded(t, tok)
				before, after := v.rejected, []uint{}
				if !upgraded {
					before, after = after, before
				}
				spy.Reject(before...)
				f := newFixture(t, configOf(tok))
				blob := f.generate(t, 32)
				spy.Reject(after...)
				old := f.m.can.derivation
				f.m = mustOpen(t, configOf(tok))
				if f.m.can.derivation == old {
					t.Fatalf("the derivation is still %s", old)
				}
				f.wantAllRejected(t, f.open(blob), old)
				if err := f.m.DestroyKey(t.Context(), f.id); err != nil {
					t.Errorf("DestroyKey: %v", err)
				}
				if _, err := f.m.ImportKey(t.Context(), f.importOf(t, f.id, f.material)); err != nil {
					t.Errorf("ImportKey again: %v", err)
				}
				f.mustWork(t)
			})
		}
	}
}

// wantAllRejected checks that no operation uses a key that was created for another derivation, and that the error names both.
func (f *fixture) wantAllRejected(t *testing.T, blob hsm.OpenRequest, old derivation) {
	t.Helper()
	_, find := f.m.FindKey(t.Context(), f.id)
	_, generate := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 32, Binding: f.binding})
	_, again := f.m.ImportKey(t.Context(), f.importOf(t, f.id, f.material))
	errs := map[string]error{"FindKey": find, "GenerateDataKey": generate, "ImportKey": again}
	if f.m.can.derivation.reads(blob.Blob.Scheme) {
		errs["VerifyDataKey"] = f.m.VerifyDataKey(t.Context(), blob)
		errs["ExportDataKey"] = f.exportError(t, blob, wrapping.RSAESOAEPSHA1)
	}
	for call, err := range errs {
		detail := hsmtest.WantKind(t, err, hsm.NotSupported, "%s", call)
		if !strings.Contains(detail, "is for "+old.String()) || !strings.Contains(detail, "must be for "+f.m.can.derivation.String()) {
			t.Errorf("%s: %q does not name both derivations", call, detail)
		}
	}
}

// A single failure while the module is opened must not lead to another derivation, with which the keys in the token do not work.
func TestDerivation_oneFailure_doesNotChangeIt(t *testing.T) {
	tok := tokens.SoftHSM(t)
	spy := spyLoaded(t, tok)
	for _, code := range []p11.Error{p11.CKR_GENERAL_ERROR, p11.CKR_FUNCTION_FAILED, p11.CKR_DEVICE_ERROR, p11.CKR_VENDOR_DEFINED} {
		spy.Inject(tokens.Failing(code, 1, "C_DeriveKey"))
		if got := mustOpen(t, configOf(tok)).can.derivation; got != byEncryptData {
			t.Errorf("after %v, the derivation is %s", code, got)
		}
	}
}

func TestDerivation_ofBefore_makesTheSameCalls(t *testing.T) {
	tokens.OnEach(t, func(t *testing.T, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		f.mustWork(t)
		spy := tokens.SpyOn(t, tok)
		f.generate(t, 32)
		for function, want := range map[string]int{
			"C_DeriveKey": 1, "C_GenerateKey": 1, "C_WrapKey": 1, "C_EncryptInit": 0, "C_SignInit": 0, "C_OpenSession": 0, "C_FindObjectsInit": 0,
		} {
			if got := spy.Count(function); got != want {
				t.Errorf("GenerateDataKey calls %s %d times, want %d", function, got, want)
			}
		}
	})
}

// A check uses the operation that the token supports, and notices that it fails.
func TestDerivation_check_provesTheOperation(t *testing.T) {
	onEachVariant(t, func(t *testing.T, name string, want derivation, tok tokens.Token) {
		m := mustOpen(t, configOf(tok))
		spy := tokens.SpyOn(t, tok)
		spy.Reject(variants[name].rejected...)
		if err := m.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		function := map[derivation]string{byKDF: "C_SignInit", byEncryption: "C_EncryptInit"}[want]
		if spy.Count(function) == 0 {
			t.Errorf("Check does not call %s", function)
		}
		spy.Inject(tokens.Failing(p11.CKR_DEVICE_ERROR, tokens.Always, function))
		hsmtest.WantKind(t, m.Check(t.Context()), hsm.Unavailable, "Check while %s fails", function)
		spy.Inject(nil)
		clock.Advance(backoff)
		if err := m.Check(t.Context()); err != nil {
			t.Errorf("Check after the failure: %v", err)
		}
	})
}

// In a token that encrypts, the host has every key of an EncryptionContext, so ModuleOnly allows no data keys.
func TestDerivation_moduleOnly_rejectsDataKeysOfATokenThatEncrypts(t *testing.T) {
	onEachVariant(t, func(t *testing.T, _ string, want derivation, tok tokens.Token) {
		if want != byEncryption {
			return
		}
		cfg := configOf(tok)
		host := newFixture(t, cfg)
		blob := host.generate(t, 32)
		cfg.Custody = hsm.CustodyModule
		f := &fixture{m: mustOpen(t, cfg), pair: host.pair, id: host.id, material: host.material, binding: host.binding}
		for _, c := range describe(t, f.m).Capabilities {
			if c.Custody != hsm.CustodyModule || c.Operation == hsm.OperationGenerate || c.Operation == hsm.OperationExport {
				t.Errorf("ModuleOnly permits %v", c)
			}
		}
		_, generate := f.m.GenerateDataKey(t.Context(), hsm.GenerateRequest{KeyVersionID: f.id, Length: 32, Binding: f.binding})
		for call, err := range map[string]error{
			"GenerateDataKey": generate,
			"VerifyDataKey":   f.m.VerifyDataKey(t.Context(), f.open(blob)),
			"ExportDataKey":   f.exportError(t, f.open(blob), wrapping.RSAESOAEPSHA1),
		} {
			detail := hsmtest.WantKind(t, err, hsm.NotSupported, "%s", call)
			if !strings.Contains(detail, "custody ModuleOnly forbids") {
				t.Errorf("%s: %q does not name the policy", call, detail)
			}
		}
		if _, err := f.m.FindKey(t.Context(), f.id); err != nil { // a fingerprint is no secret
			t.Errorf("FindKey: %v", err)
		}
	})
}

func TestDerivation_wipesKeysThatTheHostReads(t *testing.T) {
	onEachVariant(t, func(t *testing.T, name string, _ derivation, tok tokens.Token) {
		f := newFixture(t, configOf(tok))
		spy := tokens.SpyOn(t, tok)
		spy.Reject(variants[name].rejected...)
		blob := f.generate(t, 20)
		if err := f.exportError(t, f.open(blob), wrapping.RSAESOAEPSHA1); err != nil {
			t.Fatal(err)
		}
		for _, secret := range spy.Secrets(t) {
			if len(bytes.Trim(secret, "\x00")) != 0 {
				t.Errorf("%d bytes are not wiped", len(secret))
			}
		}
	})
}

// A token that lacks much is rejected with everything that it lacks.
func TestSelfTest_tokenLacksMuch_namesEverything(t *testing.T) {
	const (
		noAES        = "AES keys of known value (C_CreateObject) or AES keys that it unwraps (C_UnwrapKey with CKM_RSA_PKCS_OAEP)"
		noDerivation = "derivation by CKM_AES_ECB_ENCRYPT_DATA, or derivation by CKM_SP800_108_COUNTER_KDF and CKM_AES_CMAC, or encryption by CKM_AES_ECB"
		needAES      = " (which need AES keys)"
		noGeneration = "AES keys that it generates (C_GenerateKey with CKM_AES_KEY_GEN)"
		noPairs      = "RSA key pairs that are session objects (C_GenerateKeyPair with CKM_RSA_PKCS_KEY_PAIR_GEN)"
		noHMAC       = "HMAC keys that it generates (C_GenerateKey with CKM_GENERIC_SECRET_KEY_GEN, C_Sign with CKM_SHA256_HMAC)"
	)
	reject := func(functions ...string) func(*tokens.Spy) {
		return func(spy *tokens.Spy) {
			spy.Inject(tokens.Failing(p11.CKR_TEMPLATE_INCONSISTENT, tokens.Always, functions...))
		}
	}
	for name, test := range map[string]struct {
		prepare func(*tokens.Spy)
		want    []string
	}{
		"no derivation": {
			func(spy *tokens.Spy) { spy.Reject(p11.CKM_AES_ECB_ENCRYPT_DATA, p11.CKM_AES_CMAC, p11.CKM_AES_ECB) }, []string{noDerivation},
		},
		"no AES keys":                    {reject("C_CreateObject", "C_UnwrapKey"), []string{noAES, noDerivation + needAES}},
		"no AES keys and none generated": {reject("C_CreateObject", "C_UnwrapKey", "C_GenerateKey"), []string{noAES, noDerivation + needAES, noGeneration, noHMAC}},
	} {
		t.Run(name, func(t *testing.T) {
			tok := tokens.SoftHSM(t)
			test.prepare(spyLoaded(t, tok))
			_, err := Open(t.Context(), configOf(tok))
			wantMissing(t, err, test.want...)
		})
	}
	t.Run("tpm2-pkcs11", func(t *testing.T) {
		_, err := Open(t.Context(), configOf(tokens.TPM2(t)))
		wantMissing(t, err, noAES, noDerivation+needAES, noGeneration, noPairs, noHMAC)
	})
}

func wantMissing(t *testing.T, err error, missing ...string) {
	t.Helper()
	got := hsmtest.WantKind(t, err, hsm.NotSupported, "Open")
	want := "the token lacks what every key store requires: " + strings.Join(missing, "; ") + ". Use another token or a software key store"
	if got != want {
		t.Errorf("the error is\n%s; want\n%s", got, want)
	}
}
