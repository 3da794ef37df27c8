package cli

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/hsm/process"
)

// libraries are the allowed libraries, by name.
type libraries map[string]process.Library

// moduleName matches what the API accepts as spec.pkcs11.module.
var moduleName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// libraryFlags are the flags that allow libraries and say how they run.
type libraryFlags struct {
	modules, parameters, timeouts, paths, variables, unrestricted []string

	inProcess bool
}

func (f *libraryFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.modules, "pkcs11-module", nil, "`NAME=PATH`: allow key stores to use the PKCS#11 library at PATH by NAME (may be repeated)")
	flags.StringArrayVar(&f.parameters, "pkcs11-parameters", nil, "`NAME=STRING`: the initialization string of the library NAME, which NSS requires (may be repeated)")
	flags.StringArrayVar(&f.timeouts, "pkcs11-timeout", nil, "`NAME=DURATION`: how long a call into the library NAME may take until its process is ended, and a quarter of what generating a key pair, initializing and logging in may take (default 30s; may be repeated)")
	flags.StringArrayVar(&f.paths, "pkcs11-allow-path", nil, "`NAME=PATH[:rw]`: a file or directory that the library NAME may read, or with :rw also write, in addition to its own directory and the system's libraries (may be repeated)")
	flags.StringArrayVar(&f.variables, "pkcs11-env", nil, "`NAME=VARIABLE`: an environment variable that the library NAME gets, in addition to well-known ones (may be repeated)")
	flags.StringArrayVar(&f.unrestricted, "pkcs11-unrestricted", nil, "`NAME` of a library that may use all files, because it cannot work otherwise (may be repeated)")
	flags.BoolVar(&f.inProcess, "pkcs11-in-process", false, "run the libraries inside this process, where one that crashes ends it and one that hangs stays, on platforms other than Linux")
}

// parse returns the libraries that the flags allow.
func (f *libraryFlags) parse() (libraries, error) {
	allowed, err := parseModules(f.modules)
	if err != nil {
		return nil, err
	}
	if f.inProcess && len(f.timeouts)+len(f.paths)+len(f.variables)+len(f.unrestricted) > 0 {
		return nil, errors.New("--pkcs11-timeout, --pkcs11-allow-path, --pkcs11-env and --pkcs11-unrestricted are for libraries in processes of their own: omit them, or omit --pkcs11-in-process")
	}
	return allowed, errors.Join(
		allowed.each("--pkcs11-parameters", "STRING", f.parameters, setParameters),
		allowed.each("--pkcs11-timeout", "DURATION", f.timeouts, setTimeout),
		allowed.each("--pkcs11-allow-path", "PATH[:rw]", f.paths, addPath),
		allowed.each("--pkcs11-env", "VARIABLE", f.variables, addVariable),
		allowed.unrestrict(f.unrestricted),
	)
}

func parseModules(modules []string) (libraries, error) {
	allowed := libraries{}
	for _, text := range modules {
		name, path, ok := strings.Cut(text, "=")
		if !ok || path == "" || !moduleName.MatchString(name) {
			return nil, fmt.Errorf("--pkcs11-module %q: must be NAME=PATH, where NAME consists of a-z, 0-9 and -", text)
		}
		if _, twice := allowed[name]; twice {
			return nil, fmt.Errorf("--pkcs11-module %s is given twice", name)
		}
		allowed[name] = process.Library{Path: path}
	}
	return allowed, nil
}

// each applies the values of a flag to the libraries that they name.
func (l libraries) each(flag, what string, values []string, set func(*process.Library, string) error) error {
	for _, text := range values {
		name, value, ok := strings.Cut(text, "=")
		library, known := l[name]
		if !ok || !known {
			return fmt.Errorf("%s %q: must be NAME=%s, where NAME is a name from --pkcs11-module", flag, text, what)
		}
		if err := set(&library, value); err != nil {
			return fmt.Errorf("%s %q: %w", flag, text, err)
		}
		l[name] = library
	}
	return nil
}

var errTwice = errors.New("is given twice for this library")

func setParameters(l *process.Library, value string) error {
	if l.Parameters != "" {
		return errTwice
	}
	l.Parameters = value
	return nil
}

func setTimeout(l *process.Library, value string) error {
	timeout, err := time.ParseDuration(value)
	switch {
	case err != nil || timeout < time.Second:
		return errors.New("must be a duration of at least a second, such as 90s")
	case l.Timeout != 0:
		return errTwice
	}
	l.Timeout = timeout
	return nil
}

func addVariable(l *process.Library, value string) error {
	if value == "" || strings.Contains(value, "=") {
		return errors.New("must be the name of an environment variable, which the library gets if the operator has it")
	}
	l.Environment = append(l.Environment, value)
	return nil
}

func addPath(l *process.Library, value string) error {
	name, writable := strings.CutSuffix(value, ":rw")
	if !filepath.IsAbs(name) {
		return errors.New("must be an absolute path")
	}
	l.Paths = append(l.Paths, process.Path{Name: name, Writable: writable})
	return nil
}

func (l libraries) unrestrict(names []string) error {
	for _, name := range names {
		library, known := l[name]
		if !known {
			return fmt.Errorf("--pkcs11-unrestricted %q: must be a name from --pkcs11-module", name)
		}
		library.Unrestricted = true
		l[name] = library
	}
	return nil
}

// find returns the library of a name, or an *hsm.Error.
func (l libraries) find(name string) (process.Library, error) {
	allowed, ok := l[name]
	if !ok {
		return process.Library{}, hsm.Errorf(hsm.Misconfigured,
			"PKCS#11 module %q is not allowed. Allowed: %s. The administrator can allow it with --pkcs11-module NAME=PATH.", name, l.names())
	}
	return allowed, nil
}

// moduleProvider opens the tokens of libraries and lists them.
type moduleProvider interface {
	hsm.Provider
	hsm.Lister
}

// inProcess runs the libraries in this process.
func (l libraries) inProcess() inprocess.Provider {
	return func(name string) (inprocess.Library, error) {
		library, err := l.find(name)
		return inprocess.Library{Path: library.Path, Parameters: library.Parameters}, err
	}
}

// inChildren runs each library in a child process.
func (l libraries) inChildren(log logr.Logger) *process.Provider {
	return process.New(process.Options{Find: l.find, Command: []string{process.SelfCommand, libraryCommand}, Log: log})
}

// libraryCommand is the command of a child process.
const libraryCommand = "pkcs11-library"

// newLibraryCommand is hidden, because only the provider of package process calls it.
func newLibraryCommand() *cobra.Command {
	return &cobra.Command{
		Use:    libraryCommand + " NAME",
		Short:  "Run a PKCS#11 library for the process that started this one",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(*cobra.Command, []string) error { return process.Serve() },
	}
}

func (l libraries) names() string {
	if len(l) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(l)), ", ")
}
