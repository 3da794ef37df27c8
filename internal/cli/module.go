package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

const moduleCheckLong = `Check whether a token of a PKCS#11 module can be a key store. This needs no cluster.

Without --token, the command lists the tokens that the library shows. With --token, it logs in, runs the
operator's self-test, and prints what the token supports, where plaintext exists during each operation
(custody), whether someone with the PIN can extract a key (key protection), and each step that failed,
with its PKCS#11 return code. The output is also what a bug report needs: it contains no PIN.

The command changes nothing in the token: its keys are session objects, in read-only sessions. The
operator's own self-test also creates a key in the token for a moment, because some tokens accept
attributes that restrict a key for session objects only.

The PIN comes from --pin-file or from the terminal. The command tries it once, and not at all if the token
locks its PIN after one more wrong attempt.

The library runs in a process of its own, as in the operator, with the same environment variables. With
--pkcs11-allow-path, the process may also use no other files than in the operator: its own directory, the
system's libraries and what the flag names. Without it, the process may use all files.`

const moduleCheckExample = `  # List the tokens of a library
  keyconvoy module check --pkcs11-module softhsm=/usr/lib/softhsm/libsofthsm2.so

  # Check one; the command asks for the PIN
  keyconvoy module check --pkcs11-module softhsm=/usr/lib/softhsm/libsofthsm2.so --token production

  # The same with the restrictions of the operator
  keyconvoy module check --pkcs11-module softhsm=/usr/lib/softhsm/libsofthsm2.so --token production \
    --pkcs11-allow-path softhsm=/etc/softhsm --pkcs11-allow-path softhsm=/var/lib/softhsm:rw

  # For a bug report, as JSON
  keyconvoy module check --pkcs11-module softhsm=/usr/lib/softhsm/libsofthsm2.so --token production \
    --pin-file pin --output json > report.json

  # NSS needs the location of its database
  keyconvoy module check --pkcs11-module nss=/usr/lib/x86_64-linux-gnu/libsoftokn3.so \
    --pkcs11-parameters "nss=configdir='sql:/var/lib/nss' certPrefix='' keyPrefix='' secmod='secmod.db' flags=" \
    --token "NSS Certificate DB" --pin-file pin`

// moduleTimeout bounds the self-test. The operator does not wait longer for a module either.
const moduleTimeout = 90 * time.Second

// The formats of a report.
const (
	outputText = "text"
	outputJSON = "json"
)

func outputs() []string { return []string{outputText, outputJSON} }

func newModuleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "module",
		Short: "Check a PKCS#11 module",
		Long:  "Commands for PKCS#11 modules. They need no cluster.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },

		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(newModuleCheckCommand())
	return cmd
}

type moduleCheckOptions struct {
	libraries libraryFlags
	token     hsm.TokenSelector
	pinFile   string
	output    string
}

func newModuleCheckCommand() *cobra.Command {
	var o moduleCheckOptions
	cmd := &cobra.Command{
		Use:     "check --pkcs11-module [NAME=]PATH [--token LABEL [--pin-file FILE]] [--output FORMAT]",
		Short:   "Check whether a token can be a key store",
		Long:    moduleCheckLong,
		Example: moduleCheckExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },

		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	o.libraries.add(flags)
	flags.StringVar(&o.token.Label, "token", "", "`LABEL` of the token (default: list the tokens)")
	flags.StringVar(&o.token.Serial, "token-serial", "", "`SERIAL` number of the token, if several have the label")
	flags.StringVar(&o.token.Model, "token-model", "", "`MODEL` of the token, if several have the label")
	flags.StringVar(&o.pinFile, "pin-file", "", "`FILE` with the user PIN; - is standard input (default: ask on the terminal)")
	flags.StringVarP(&o.output, "output", "o", outputText, "`FORMAT` of the report: text or json")
	must(cmd.MarkFlagRequired("pkcs11-module"))
	must(cmd.RegisterFlagCompletionFunc("output", fixed(outputs())))
	return cmd
}

func (o *moduleCheckOptions) run(cmd *cobra.Command) error {
	name, allowed, err := o.parse()
	if err != nil {
		return err
	}
	check := moduleCheck{cmd: cmd, options: o, provider: o.provider(allowed)}
	check.report = newModuleReport(name, allowed[name])
	check.report.explicit = len(o.libraries.unrestricted) > 0
	err = check.run()
	if ctxErr := cmd.Context().Err(); ctxErr != nil {
		return ctxErr
	}
	return errors.Join(check.print(), err)
}

// parse returns the one library, and its name.
func (o *moduleCheckOptions) parse() (name string, allowed libraries, err error) {
	switch {
	case len(o.libraries.modules) != 1 || len(o.libraries.parameters) > 1:
		return "", nil, usagef("--pkcs11-module must be given once, and --pkcs11-parameters at most once: the command checks one library")
	case !slices.Contains(outputs(), o.output):
		return "", nil, usagef("--output must be %s", strings.Join(outputs(), " or "))
	case o.token.Label == "" && (o.token != hsm.TokenSelector{} || o.pinFile != ""):
		return "", nil, usagef("--token-serial, --token-model and --pin-file require --token")
	}
	for _, s := range []*string{&o.token.Label, &o.token.Serial, &o.token.Model} {
		*s = strings.Trim(*s, " ") // tokens pad them
	}
	given := o.libraries
	if path := given.modules[0]; !strings.Contains(path, "=") || strings.HasPrefix(path, "/") {
		name = nameOfLibrary(path)
		given.modules = []string{name + "=" + path}
		if p := given.parameters; len(p) > 0 && !strings.HasPrefix(p[0], name+"=") {
			given.parameters = []string{name + "=" + p[0]}
		}
	}
	allowed, err = given.parse()
	if err != nil {
		return "", nil, usageError{err}
	}
	for only, library := range allowed {
		name = only
		// The first check of a library comes before it is known which files the library needs.
		library.Unrestricted = library.Unrestricted || len(library.Paths) == 0
		allowed[name] = library
	}
	return name, allowed, nil
}

// provider returns what opens the token, as the operator does.
func (o *moduleCheckOptions) provider(l libraries) moduleProvider {
	if o.libraries.inProcess {
		return l.inProcess()
	}
	return l.inChildren(logr.Discard())
}

// nameOfLibrary proposes a name for a library: softhsm2 for /usr/lib/softhsm/libsofthsm2.so.
func nameOfLibrary(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	name = strings.Trim(strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "lib")), "_", "-"), "-")
	if !moduleName.MatchString(name) {
		return "hsm"
	}
	return name
}

// moduleCheck is one run of the command.
type moduleCheck struct {
	cmd      *cobra.Command
	options  *moduleCheckOptions
	provider moduleProvider
	report   *moduleReport
}

// run fills the report. Its error says why the token cannot be used.
func (c *moduleCheck) run() error {
	if err := c.list(); err != nil {
		return c.fail(err)
	}
	if c.options.token.Label == "" {
		return nil
	}
	token := c.selected()
	var pin redact.Bytes
	if token != nil {
		c.report.setToken(token)
		if err := checkPINState(token); err != nil {
			return c.fail(err)
		}
		if token.LoginRequired {
			var err error
			if pin, err = readPIN(c.cmd, c.options.pinFile, token.Label); err != nil {
				return err
			}
			defer pin.Wipe()
			if token.PINCountLow {
				fmt.Fprintln(c.cmd.ErrOrStderr(), "warning: the token has rejected a PIN since its last login, and may lock the PIN after a few more wrong attempts")
			}
		}
	}
	return c.open(pin)
}

// list asks the library for its tokens.
func (c *moduleCheck) list() error {
	ctx, cancel := context.WithTimeout(c.cmd.Context(), moduleTimeout)
	defer cancel()
	info, err := c.provider.List(ctx, c.report.Library.Name)
	if err == nil {
		c.report.setLibrary(info)
	}
	return err
}

// selected returns the token that the flags select, or nil unless it is exactly one.
func (c *moduleCheck) selected() *hsm.TokenInfo {
	var found *hsm.TokenInfo
	want := c.options.token
	for i, t := range c.report.listed {
		if t.Label != want.Label || want.Serial != "" && t.Serial != want.Serial || want.Model != "" && t.Model != want.Model {
			continue
		}
		if found != nil {
			return nil
		}
		found = &c.report.listed[i]
	}
	return found
}

// checkPINState rejects a token whose PIN must not be tried, before the user types it.
func checkPINState(token *hsm.TokenInfo) error {
	switch {
	case !token.LoginRequired:
		return nil
	case token.PINLocked:
		return hsm.Errorf(hsm.PINUntried, "the token's PIN is locked: unlock it with the token's own tools")
	case token.PINFinalTry:
		return hsm.Errorf(hsm.PINUntried, "the token locks its PIN after one more wrong attempt, so it was not tried: log in once with the token's own tools, which resets the count")
	}
	return nil
}

// open runs the self-test. If no token or several match, the module says so.
func (c *moduleCheck) open(pin redact.Bytes) error {
	ctx, cancel := context.WithTimeout(c.cmd.Context(), moduleTimeout)
	defer cancel()
	done := showProgress(c.cmd.ErrOrStderr(), "Testing the token. This usually takes a few seconds")
	start := time.Now()
	module, err := c.provider.Open(ctx, hsm.Config{
		Library: c.report.Library.Name, Token: c.options.token, PIN: redact.WireBytes(pin),
		PINOrigin: pins.Origin{Administrator: true}, Custody: hsm.CustodyHost, ReadOnly: true,
	})
	done()
	if err != nil {
		if hsm.KindOf(err) == hsm.Locked {
			c.refreshToken()
		}
		return c.fail(err)
	}
	defer func() { _ = module.Close(context.WithoutCancel(ctx)) }()
	described, err := module.Describe(ctx)
	if err != nil {
		return c.fail(err)
	}
	if c.report.Token == nil { // it appeared after the list
		c.refreshToken()
	}
	if c.report.Token == nil {
		return errors.New("the library shows other tokens than a moment ago\nhint: run the command again")
	}
	c.report.setDescription(described, time.Since(start))
	if !c.report.Usable {
		return errors.New("the token cannot be a key store\nhint: docs/hardware-modules.md lists what a token must support, and tokens that were tested")
	}
	return nil
}

// refreshToken reads the flags of the token again: a wrong PIN may have changed them.
func (c *moduleCheck) refreshToken() {
	if c.list() == nil {
		if token := c.selected(); token != nil {
			c.report.setToken(token)
		}
	}
}

// fail records why the library or the token cannot be used, and returns the error for the user.
func (c *moduleCheck) fail(err error) error {
	var e *hsm.Error
	if !errors.As(err, &e) {
		return err
	}
	detail := e.Detail
	if e.Kind == hsm.Locked { // the detail speaks of the operator and its Secret
		detail = "the token rejected the PIN, which was tried once"
	}
	if detail == "" {
		detail = "the cryptographic module fails (" + string(e.Kind) + ")"
	}
	c.report.setError(e, detail)
	text := detail
	if cause := c.report.Error.Cause; cause != "" {
		text += "\ncause: " + cause
	}
	return errors.New(text + c.hint(e.Kind))
}

// hint returns what to do about an error, as far as its text does not say it.
func (c *moduleCheck) hint(kind hsm.Kind) string {
	switch {
	case kind == hsm.Locked:
		return "\nhint: check the PIN before you try again, because failed attempts can lock the token"
	case c.report.loaded && kind == hsm.Misconfigured && c.report.Token == nil:
		return "\nhint: select one of the tokens that the command lists, with --token and, if needed, --token-serial"
	case kind == hsm.Misconfigured, kind == hsm.Unavailable, kind == hsm.NotSupported:
		return "\nhint: see the troubleshooting in docs/hardware-modules.md"
	}
	return ""
}

// print writes the report to standard output.
func (c *moduleCheck) print() error {
	if c.options.output == outputJSON {
		return c.report.writeJSON(c.cmd.OutOrStdout())
	}
	return c.report.writeText(c.cmd.OutOrStdout(), c.options)
}

// showProgress shows on a terminal what the command does and for how long, until stop is called.
func showProgress(out io.Writer, what string) (stop func()) {
	if !isTerminal(out) {
		return func() {}
	}
	ended, cleared := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(cleared)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for seconds := 0; ; seconds++ {
			fmt.Fprintf(out, "\r%s: %d s ", what, seconds)
			select {
			case <-tick.C:
			case <-ended:
				fmt.Fprint(out, "\r\033[K")
				return
			}
		}
	}()
	return func() {
		close(ended)
		<-cleared
	}
}
