package cli

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
)

// libraries are the allowed libraries, by name.
type libraries map[string]inprocess.Library

// moduleName matches what the API accepts as spec.pkcs11.module.
var moduleName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// parseLibraries reads --pkcs11-module and --pkcs11-parameters.
func parseLibraries(modules, parameters []string) (libraries, error) {
	allowed := libraries{}
	for _, text := range modules {
		name, path, ok := strings.Cut(text, "=")
		if !ok || path == "" || !moduleName.MatchString(name) {
			return nil, fmt.Errorf("--pkcs11-module %q: must be NAME=PATH, where NAME consists of a-z, 0-9 and -", text)
		}
		if _, twice := allowed[name]; twice {
			return nil, fmt.Errorf("--pkcs11-module %s is given twice", name)
		}
		allowed[name] = inprocess.Library{Path: path}
	}
	for _, text := range parameters {
		name, value, ok := strings.Cut(text, "=")
		l, known := allowed[name]
		if !ok || !known {
			return nil, fmt.Errorf("--pkcs11-parameters %q: must be NAME=STRING, where NAME is a name from --pkcs11-module", text)
		}
		l.Parameters = value
		allowed[name] = l
	}
	return allowed, nil
}

// find is an inprocess.Provider.
func (l libraries) find(name string) (inprocess.Library, error) {
	allowed, ok := l[name]
	if !ok {
		return inprocess.Library{}, hsm.Errorf(hsm.Misconfigured,
			"PKCS#11 module %q is not allowed. Allowed: %s. The administrator can allow it with --pkcs11-module NAME=PATH.", name, l.names())
	}
	return allowed, nil
}

// moduleProvider opens the tokens of libraries and lists them.
type moduleProvider interface {
	hsm.Provider
	hsm.Lister
}

// provider is how every command opens modules.
func (l libraries) provider() moduleProvider { return inprocess.Provider(l.find) }

func (l libraries) names() string {
	if len(l) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(l)), ", ")
}
