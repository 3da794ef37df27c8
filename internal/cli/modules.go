package cli

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/keyconvoy/keyconvoy/api/v1alpha1"
	"github.com/keyconvoy/keyconvoy/controllers"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11"
	"github.com/keyconvoy/keyconvoy/internal/hsm/software"
)

// library is a PKCS#11 library that the administrator allowed.
type library struct {
	path       string
	parameters string
}

// libraries are the allowed libraries by name.
type libraries map[string]library

// moduleName is what the API accepts as spec.pkcs11.module.
var moduleName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// parseLibraries reads --pkcs11-module and --pkcs11-parameters.
func parseLibraries(modules, parameters []string) (libraries, error) {
	allowed := libraries{}
	for _, text := range modules {
		name, path, ok := strings.Cut(text, "=")
		if !ok || path == "" || !moduleName.MatchString(name) {
			return nil, fmt.Errorf("--pkcs11-module %q: write NAME=PATH, with a name of a-z, 0-9 and -", text)
		}
		if _, twice := allowed[name]; twice {
			return nil, fmt.Errorf("--pkcs11-module %s is given twice", name)
		}
		allowed[name] = library{path: path}
	}
	for _, text := range parameters {
		name, value, ok := strings.Cut(text, "=")
		l, known := allowed[name]
		if !ok || !known {
			return nil, fmt.Errorf("--pkcs11-parameters %q: write NAME=STRING, with a name from --pkcs11-module", text)
		}
		l.parameters = value
		allowed[name] = l
	}
	return allowed, nil
}

// open opens the module that a key store asks for. It implements controllers.OpenModule.
func (l libraries) open(ctx context.Context, req controllers.ModuleRequest) (hsm.Module, error) {
	spec := req.Spec.PKCS11
	if spec == nil {
		return software.Open(ctx, software.Config{Storage: req.Storage, AllowPKCS1v15Import: req.Spec.AllowPKCS1V15Import})
	}
	allowed, ok := l[spec.Module]
	if !ok {
		return nil, hsm.Errorf(hsm.Misconfigured,
			"The operator knows no PKCS#11 module %q; it knows: %s. The administrator allows one with --pkcs11-module NAME=PATH.", spec.Module, l.names())
	}
	custody := hsm.CustodyHost
	if req.Spec.Custody == v1alpha1.CustodyModuleOnly {
		custody = hsm.CustodyModule
	}
	return pkcs11.Open(ctx, pkcs11.Config{
		Library:             spec.Module,
		Path:                allowed.path,
		Parameters:          allowed.parameters,
		Token:               pkcs11.TokenSelector{Label: spec.Token.Label, Serial: spec.Token.Serial, Model: spec.Token.Model},
		PIN:                 req.PIN,
		MaxSessions:         int(spec.MaxSessions),
		Custody:             custody,
		AllowPKCS1v15Import: req.Spec.AllowPKCS1V15Import,
	})
}

func (l libraries) names() string {
	if len(l) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(l)), ", ")
}
