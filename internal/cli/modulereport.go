package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	keyconvoy "github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
)

// moduleReport is what module check found out. It has no PIN, and no parameters of a library, which can contain secrets.
type moduleReport struct {
	Keyconvoy     string              `json:"keyconvoy"`
	Platform      string              `json:"platform"`
	Library       libraryReport       `json:"library"`
	Tokens        []tokenReport       `json:"tokens"`
	Token         *tokenReport        `json:"token,omitempty"`
	Usable        bool                `json:"usable"`
	Verdict       string              `json:"verdict,omitempty"`
	Error         *errorReport        `json:"error,omitempty"`
	Seconds       float64             `json:"selfTestSeconds,omitempty"`
	Capabilities  []capabilityReport  `json:"capabilities,omitempty"`
	KeyProtection *keyProtectionFound `json:"keyProtection,omitempty"`
	Probes        []probeReport       `json:"probes,omitempty"`

	library  process.Library
	explicit bool            // --pkcs11-unrestricted was given
	loaded   bool            // the library listed its tokens
	listed   []hsm.TokenInfo // as the library reports them
}

type libraryReport struct {
	Name          string `json:"name"`
	Path          string `json:"path"`
	ResolvedPath  string `json:"resolvedPath,omitempty"`
	HasParameters bool   `json:"hasParameters"`
	// Restricted: the flags restrict the library to the files that they name, as in the operator.
	Restricted   bool   `json:"restricted"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Description  string `json:"description,omitempty"`
	Version      string `json:"version,omitempty"`
	Cryptoki     string `json:"cryptokiVersion,omitempty"`
}

type tokenReport struct {
	Slot         uint     `json:"slot"`
	Label        string   `json:"label"`
	Manufacturer string   `json:"manufacturer"`
	Model        string   `json:"model"`
	Serial       string   `json:"serial"`
	Firmware     string   `json:"firmware"`
	Flags        []string `json:"flags"`
}

type capabilityReport struct {
	Operation hsm.Operation `json:"operation"`
	Algorithm string        `json:"algorithm"`
	Custody   hsm.Custody   `json:"custody"`
}

type keyProtectionFound struct {
	State   hsm.KeyProtectionState `json:"state"`
	Methods []string               `json:"methods"`
}

type probeReport struct {
	Name      string `json:"name"`
	Attack    bool   `json:"attack"`
	Succeeded bool   `json:"succeeded"`
	Failure   string `json:"failure,omitempty"`
}

type errorReport struct {
	Kind   hsm.Kind `json:"kind"`
	Detail string   `json:"detail"`
	// Cause is the return code that led to the error.
	Cause string `json:"cause,omitempty"`
}

func newModuleReport(name string, library process.Library) *moduleReport {
	r := &moduleReport{
		Keyconvoy: version, Platform: runtime.GOOS + "/" + runtime.GOARCH, Tokens: []tokenReport{},
		Library: libraryReport{Name: name, Path: library.Path, HasParameters: library.Parameters != "", Restricted: !library.Unrestricted},
		library: library,
	}
	if resolved, err := filepath.EvalSymlinks(library.Path); err == nil {
		r.Library.ResolvedPath = resolved
	}
	return r
}

func (r *moduleReport) setLibrary(info hsm.LibraryInfo) {
	r.loaded, r.listed = true, info.Tokens
	l := &r.Library
	l.Manufacturer, l.Description, l.Version, l.Cryptoki = info.Manufacturer, info.Description, info.Version, info.Cryptoki
	r.Tokens = make([]tokenReport, len(info.Tokens))
	for i := range info.Tokens {
		r.Tokens[i] = reportToken(&info.Tokens[i])
	}
}

func (r *moduleReport) setToken(t *hsm.TokenInfo) {
	token := reportToken(t)
	r.Token = &token
}

// The flags of a token on which the report depends.
const (
	flagLoginRequired  = "login required"
	flagWriteProtected = "write-protected"
)

func reportToken(t *hsm.TokenInfo) tokenReport {
	flags := []string{}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{!t.Initialized, "not initialized"},
		{t.LoginRequired, flagLoginRequired},
		{t.Initialized && t.LoginRequired && !t.PINInitialized, "no user PIN"},
		{t.PINPad, "PIN pad"},
		{t.PINCountLow, "PIN count low"},
		{t.PINFinalTry, "PIN final try"},
		{t.PINLocked, "PIN locked"},
		{t.WriteProtected, flagWriteProtected},
	} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	return tokenReport{
		Slot: t.Slot, Label: t.Label, Manufacturer: t.Manufacturer, Model: t.Model, Serial: t.Serial, Firmware: t.Firmware, Flags: flags,
	}
}

// setError records an error of the module. detail is its text for the user.
func (r *moduleReport) setError(e *hsm.Error, detail string) {
	r.Error = &errorReport{Kind: e.Kind, Detail: detail}
	if e.Err != nil {
		cause, _, _ := strings.Cut(e.Err.Error(), "\n")             // the probes have the others
		if before, code, ok := strings.Cut(cause, "pkcs11: "); ok { // the library of Go says so before a return code
			r.Error.Cause = printable(before + strings.TrimSuffix(code, ": "))
		}
	}
	r.setProbes(e.Probes)
	if e.Kind == hsm.NotSupported {
		r.Verdict = "This token cannot be a key store: " + strings.TrimSuffix(detail, ".") + "."
	}
}

func (r *moduleReport) setProbes(probes []hsm.Probe) {
	for _, p := range probes {
		r.Probes = append(r.Probes, probeReport(p))
	}
}

func (r *moduleReport) setDescription(is hsm.Description, took time.Duration) {
	r.Seconds = took.Round(100 * time.Millisecond).Seconds()
	for _, c := range is.Capabilities {
		r.Capabilities = append(r.Capabilities, capabilityReport(c))
	}
	r.KeyProtection = &keyProtectionFound{State: is.KeyProtection.State, Methods: append([]string{}, is.KeyProtection.Methods...)}
	r.setProbes(is.Probes)
	r.decide()
}

// decide sets the verdict about a token that passed the self-test.
func (r *moduleReport) decide() {
	switch {
	case slices.Contains(r.Token.Flags, flagWriteProtected):
		r.Verdict = "This token cannot be a key store: it is write-protected, so it lacks the ability to store keys."
		return
	case !r.can(hsm.OperationImport, hsm.CustodyHost):
		r.Verdict = "This token cannot be a key store: it lacks an algorithm with which it imports keys."
		return
	}
	r.Usable = true
	r.Verdict = "This token can be a key store: it imports keys, and generates and exports data keys."
	var onHost []string
	for _, operation := range []hsm.Operation{hsm.OperationImport, hsm.OperationGenerate, hsm.OperationExport} {
		if !r.can(operation, hsm.CustodyModule) {
			onHost = append(onHost, string(operation))
		}
	}
	if len(onHost) == 0 {
		r.Verdict += " With spec.custody: ModuleOnly, it does all of this inside."
	} else {
		r.Verdict += " It requires spec.custody: HostAllowed, because it lacks what it needs to do this inside: " + strings.Join(onHost, ", ") + "."
	}
}

// can reports whether the token supports the operation with that custody or a stronger one.
func (r *moduleReport) can(operation hsm.Operation, custody hsm.Custody) bool {
	return slices.ContainsFunc(r.Capabilities, func(c capabilityReport) bool {
		return c.Operation == operation && (c.Custody == hsm.CustodyModule || c.Custody == custody)
	})
}

func (r *moduleReport) writeJSON(out io.Writer) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = out.Write(append(text, '\n'))
	return err
}

// writeText writes the report in columns.
func (r *moduleReport) writeText(out io.Writer, o *moduleCheckOptions) error {
	p := &columns{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	r.printLibrary(p)
	if r.Token == nil {
		r.printTokens(p)
		if o.token.Label == "" && len(r.Tokens) > 0 {
			p.text("To check a token, add --token LABEL. The command logs in, so it needs the user PIN: it asks for it, or reads it from --pin-file.")
		}
		return p.Flush()
	}
	r.printToken(p)
	r.printCapabilities(p)
	r.printKeyProtection(p)
	r.printProbes(p)
	if r.Verdict != "" {
		p.text(r.Verdict)
	}
	if err := p.Flush(); err != nil || !r.Usable {
		return err
	}
	return r.printKeyStore(out, o.token)
}

func (r *moduleReport) printLibrary(p *columns) {
	l := &r.Library
	p.row("Keyconvoy", r.Keyconvoy+" "+r.Platform)
	p.row("Library", l.Path)
	if l.ResolvedPath != l.Path {
		p.row("Resolved path", l.ResolvedPath)
	}
	if l.Description != "" {
		p.row("Description", fmt.Sprintf("%s %s, by %s", l.Description, l.Version, l.Manufacturer))
		p.row("Cryptoki", l.Cryptoki)
	}
}

func (r *moduleReport) printTokens(p *columns) {
	switch {
	case !r.loaded:
		return
	case len(r.Tokens) == 0:
		p.text("The library shows no token. Check that the device is connected, or that the service which the library connects to runs.")
		return
	}
	p.heading("LABEL", "MANUFACTURER", "MODEL", "SERIAL", "FLAGS")
	for _, t := range r.Tokens {
		p.row(t.Label, t.Manufacturer, t.Model, t.Serial, strings.Join(t.Flags, ", "))
	}
}

func (r *moduleReport) printToken(p *columns) {
	t := r.Token
	p.row("Token", t.Label)
	p.row("Manufacturer", t.Manufacturer)
	p.row("Model", t.Model)
	p.row("Serial", t.Serial)
	p.row("Firmware", t.Firmware)
	p.row("Flags", strings.Join(t.Flags, ", "))
	if r.Seconds > 0 {
		p.row("Self-test", fmt.Sprintf("%d steps in %.1f s", len(r.Probes), r.Seconds))
	}
}

func (r *moduleReport) printCapabilities(p *columns) {
	if len(r.Capabilities) == 0 {
		return
	}
	p.heading("OPERATION", "ALGORITHM", "CUSTODY")
	for _, c := range r.Capabilities {
		p.row(string(c.Operation), c.Algorithm, string(c.Custody))
	}
}

func (r *moduleReport) printKeyProtection(p *columns) {
	if r.KeyProtection == nil {
		return
	}
	attacks, allowed := 0, 0 // a method is tried on several keys
	for _, probe := range r.Probes {
		if probe.Attack {
			attacks++
		}
		if probe.Attack && probe.Succeeded {
			allowed++
		}
	}
	if r.KeyProtection.State == hsm.Enforced {
		p.text(fmt.Sprintf("Key protection: %s. The token rejected all %d attempts to extract a key.", hsm.Enforced, attacks),
			"It was tested with session objects. A token can restrict them more than its own keys: status.keyProtection of the key store counts.")
		return
	}
	p.text(fmt.Sprintf("Key protection: %s. Someone with the PIN can extract a key: the token allowed %d of %d attempts.",
		hsm.NotEnforced, allowed, attacks))
	p.heading("ALLOWED ATTEMPT")
	for _, method := range r.KeyProtection.Methods {
		p.row(method)
	}
}

// printProbes lists what failed. Of attempts to extract a key, only the successful ones matter.
func (r *moduleReport) printProbes(p *columns) {
	failed := slices.DeleteFunc(slices.Clone(r.Probes), func(probe probeReport) bool { return probe.Succeeded || probe.Attack })
	switch {
	case len(r.Probes) == 0:
		return
	case len(failed) == 0:
		p.text("No other step of the self-test failed.")
		return
	}
	p.heading("FAILED STEP", "RESULT")
	for _, probe := range failed {
		p.row(probe.Name, probe.Failure)
	}
}

// managerFlags returns the flags of the manager for the library, one on each line.
func (r *moduleReport) managerFlags() string {
	var text strings.Builder
	flag := func(flag, value string) { fmt.Fprintf(&text, "  --%s=%s=%s\n", flag, r.Library.Name, printable(value)) }
	flag("pkcs11-module", r.Library.Path)
	if r.Library.HasParameters {
		flag("pkcs11-parameters", "STRING   (STRING as in this command)")
	}
	for _, path := range r.library.Paths {
		flag("pkcs11-allow-path", path.String())
	}
	for _, variable := range r.library.Environment {
		flag("pkcs11-env", variable)
	}
	if r.library.Timeout > 0 {
		flag("pkcs11-timeout", r.library.Timeout.String())
	}
	if r.explicit {
		fmt.Fprintf(&text, "  --pkcs11-unrestricted=%s\n", r.Library.Name)
	} else if !r.Library.Restricted {
		flag("pkcs11-allow-path", "PATH   for each file or directory that the library reads, or PATH:rw for one that it writes,")
		text.WriteString("      besides its own directory: in this check it could use all files. Repeat the check with these flags.\n")
	}
	return text.String()
}

// pinSecret is the Secret of the proposed key store.
const pinSecret = "hsm-pin"

// printKeyStore prints what makes a key store of the token.
func (r *moduleReport) printKeyStore(out io.Writer, token hsm.TokenSelector) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\nTo use it, allow the library with these flags of keyconvoy manager:\n\n%s", r.managerFlags())
	needsPIN := slices.Contains(r.Token.Flags, flagLoginRequired)
	if needsPIN {
		fmt.Fprintf(&text, "\nPut the PIN into the entry pin of a Secret %s in the operator's namespace, and apply:\n", pinSecret)
	} else {
		text.WriteString("\nand apply:\n")
	}
	selector := fmt.Sprintf("label: %q", token.Label)
	if token.Serial != "" {
		selector += fmt.Sprintf(", serial: %q", token.Serial)
	}
	if token.Model != "" {
		selector += fmt.Sprintf(", model: %q", token.Model)
	}
	fmt.Fprintf(&text, `
apiVersion: %s
kind: ClusterKeyStore
metadata: {name: hsm}
spec:
  type: %s
  pkcs11:
    module: %s
    token: {%s}
`, keyconvoy.GroupVersion, keyconvoy.KeyStorePKCS11, r.Library.Name, selector)
	if needsPIN {
		fmt.Fprintf(&text, "    pinSecretRef: {name: %s, key: pin}\n", pinSecret)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// columns writes sections of aligned columns.
type columns struct{ *tabwriter.Writer }

func (c *columns) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
		if cells[i] == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(c, strings.Join(cells, "\t"))
}

func (c *columns) heading(cells ...string) {
	c.text()
	c.row(cells...)
}

// text ends the columns and writes a paragraph.
func (c *columns) text(lines ...string) {
	_ = c.Flush()
	fmt.Fprintln(c)
	for _, line := range lines {
		fmt.Fprintln(c, printable(line))
	}
	_ = c.Flush()
}

// printable replaces what a terminal would interpret in a text from a library.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
