package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
)

// fakeProvider shows one token and counts the attempts to open it.
type fakeProvider struct {
	token  hsm.TokenInfo
	opened []hsm.Config
	err    error
	is     hsm.Description
}

func (p *fakeProvider) List(context.Context, string) (hsm.LibraryInfo, error) {
	return hsm.LibraryInfo{Description: "fake\x1b[31m", Tokens: []hsm.TokenInfo{p.token}}, nil
}

func (p *fakeProvider) Open(_ context.Context, cfg hsm.Config) (hsm.Module, error) {
	cfg.PIN = bytes.Clone(cfg.PIN)
	p.opened = append(p.opened, cfg)
	if p.err != nil {
		return nil, p.err
	}
	return fakeModule{is: p.is}, nil
}

type fakeModule struct {
	hsm.Module
	is hsm.Description
}

func (m fakeModule) Describe(context.Context) (hsm.Description, error) { return m.is, nil }
func (m fakeModule) Close(context.Context) error                       { return nil }

// check runs the check of the fake's token with a PIN on standard input.
func (p *fakeProvider) check(t *testing.T) (report *moduleReport, out string, err error) {
	t.Helper()
	var errOut bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	cmd.SetIn(strings.NewReader("123456\n"))
	cmd.SetErr(&errOut)
	c := moduleCheck{
		cmd: cmd, provider: p, report: newModuleReport("fake", process.Library{Path: "/fake.so"}),
		options: &moduleCheckOptions{token: hsm.TokenSelector{Label: p.token.Label}, pinFile: "-"},
	}
	err = c.run()
	var text bytes.Buffer
	if writeErr := c.report.writeText(&text, c.options); writeErr != nil {
		t.Fatal(writeErr)
	}
	return c.report, text.String() + errOut.String(), err
}

var ordinaryToken = hsm.TokenInfo{Label: "fake", Initialized: true, LoginRequired: true, PINInitialized: true}

var everything = hsm.Description{
	Capabilities: []hsm.Capability{
		{Operation: hsm.OperationImport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyHost},
		{Operation: hsm.OperationGenerate, Algorithm: "DERIVED_KEY_WRAP", Custody: hsm.CustodyModule},
		{Operation: hsm.OperationExport, Algorithm: "RSAES_OAEP_SHA_1", Custody: hsm.CustodyModule},
	},
	KeyProtection: hsm.KeyProtection{State: hsm.Enforced},
}

func TestModuleCheck_doesNotTryAPINThatTheTokenMayLock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*hsm.TokenInfo)
		says   string
	}{
		"the final attempt": {func(i *hsm.TokenInfo) { i.PINFinalTry = true }, "it was not tried"},
		"a locked PIN":      {func(i *hsm.TokenInfo) { i.PINLocked = true }, "locked"},
	} {
		p := &fakeProvider{token: ordinaryToken}
		test.change(&p.token)
		report, out, err := p.check(t)
		if err == nil || !strings.Contains(err.Error(), test.says) || report.Usable || len(p.opened) != 0 {
			t.Errorf("%s: %v, opened %d times:\n%s", name, err, len(p.opened), out)
		}
		if report.Error == nil || report.Error.Kind != hsm.PINUntried {
			t.Errorf("%s: the report has the error %+v", name, report.Error)
		}
	}
}

func TestModuleCheck_opensTheTokenOnceAndReadOnly(t *testing.T) {
	t.Parallel()
	p := &fakeProvider{token: ordinaryToken, is: everything}
	p.token.PINCountLow = true
	report, out, err := p.check(t)
	if err != nil || !report.Usable || len(p.opened) != 1 {
		t.Fatalf("%v, opened %d times:\n%s", err, len(p.opened), out)
	}
	if cfg := p.opened[0]; !cfg.ReadOnly || string(cfg.PIN) != "123456" || cfg.Custody != hsm.CustodyHost || cfg.AllowPKCS1v15Import {
		t.Errorf("opened with %+v", cfg)
	}
	for _, words := range []string{"warning: the token has rejected a PIN", "HostAllowed, because", ": Import.", `label: "fake"`} {
		if !strings.Contains(out, words) {
			t.Errorf("the output lacks %q:\n%s", words, out)
		}
	}
	if strings.Contains(out, "\x1b") {
		t.Errorf("the output has what a terminal interprets: %q", out)
	}
}

func TestModuleCheck_triesAWrongPINOnce(t *testing.T) {
	t.Parallel()
	p := &fakeProvider{token: ordinaryToken, err: hsm.Errorf(hsm.Locked, "the operator does not try it again")}
	_, out, err := p.check(t)
	if err == nil || !strings.Contains(err.Error(), "tried once") || strings.Contains(err.Error(), "operator") || len(p.opened) != 1 {
		t.Errorf("%v, opened %d times:\n%s", err, len(p.opened), out)
	}
}

func TestModuleCheck_saysWhyATokenCannotBeAKeyStore(t *testing.T) {
	t.Parallel()
	noImport := everything
	noImport.Capabilities = everything.Capabilities[1:]
	protected := ordinaryToken
	protected.WriteProtected = true
	refused := hsm.Errorf(hsm.NotSupported, "the token lacks what every key requires")
	refused.Probes = []hsm.Probe{{Name: "derive", Failure: "C_DeriveKey: CKR_MECHANISM_INVALID"}}
	for name, test := range map[string]struct {
		p    fakeProvider
		says []string
	}{
		"no import":           {fakeProvider{token: ordinaryToken, is: noImport}, []string{"cannot be a key store: it lacks an algorithm"}},
		"write protection":    {fakeProvider{token: protected, is: everything}, []string{"cannot be a key store: it is write-protected"}},
		"a refused self-test": {fakeProvider{token: ordinaryToken, err: refused}, []string{"cannot be a key store: the token lacks", "derive       C_DeriveKey: CKR_MECHANISM_INVALID"}},
	} {
		report, out, err := test.p.check(t)
		if err == nil || report.Usable || strings.Contains(out, "pinSecretRef") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		for _, words := range test.says {
			if !strings.Contains(out, words) {
				t.Errorf("%s: the output lacks %q:\n%s", name, words, out)
			}
		}
	}
}

func TestNameOfLibrary(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/usr/lib/softhsm/libsofthsm2.so":                "softhsm2",
		"/opt/cloudhsm/lib/libcloudhsm_pkcs11.so":        "cloudhsm-pkcs11",
		"libCryptoki2_64.so":                             "cryptoki2-64",
		"/usr/lib/x86_64-linux-gnu/p11-kit-client.so.0":  "p11-kit-client",
		"/usr/lib/ü.so":                                  "hsm",
		"/usr/lib/x86_64-linux-gnu/.so":                  "hsm",
		"/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1.": "tpm2-pkcs11",
	} {
		if got := nameOfLibrary(path); got != want {
			t.Errorf("nameOfLibrary(%q) = %q, want %q", path, got, want)
		}
	}
}
