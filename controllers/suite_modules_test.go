package controllers_test

import (
	"context"
	"slices"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/hsm/inprocess"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// Open implements hsm.Provider: it opens modules as the command line does, and records the calls.
func (o *operator) Open(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
	if err := o.onOpen(ctx, cfg); err != nil {
		return nil, err
	}
	module, err := inprocess.Provider(o.library).Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r := hsmtest.Wrap(sharedModule{module, o.test})
	o.onModule(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opened = append(o.opened, r)
	return r, nil
}

// sharedModule is a module on a token that tests share. It lists no import pair of another test: tests have clocks of their
// own, and the sweep of one that is days ahead would destroy the others' pairs.
type sharedModule struct {
	hsm.Module
	test string
}

// ListWrappingKeys implements hsm.Module.
func (m sharedModule) ListWrappingKeys(ctx context.Context) ([]hsm.WrappingKey, error) {
	pairs, err := m.Module.ListWrappingKeys(ctx)
	return slices.DeleteFunc(pairs, func(pair hsm.WrappingKey) bool { return testenv.MadeByAnother(pair.Namespace, m.test) }), err
}

func (o *operator) library(name string) (inprocess.Library, error) {
	if name != onSoftHSM && name != onNSS {
		return inprocess.Library{}, hsm.Errorf(hsm.Misconfigured, "PKCS#11 module %q is not allowed.", name)
	}
	token := o.tokenOf(name)
	return inprocess.Library{Path: token.Path, Parameters: token.Parameters}, nil
}

// modules are all that the operator ever opened, in order, closed ones too.
func (o *operator) modules() []*hsmtest.Recorder {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.opened)
}

// module is the one that was opened last. After a start it waits until one is opened: those before are
// closed.
func (o *operator) module(t testing.TB) *hsmtest.Recorder {
	t.Helper()
	var all []*hsmtest.Recorder
	eventually(t, func() string {
		if all = o.modules(); len(all) <= o.former {
			return "the operator has opened no module"
		}
		return ""
	})
	return all[len(all)-1]
}

// calls are the calls to all modules, without those that only look: whether a module works, and what is in it, which a
// sweep asks for after an opening, at a time of its own.
func (o *operator) calls() map[string]int {
	sum := map[string]int{}
	for _, m := range o.modules() {
		for method, n := range m.Calls() {
			switch method {
			case "Check", "Close", "ListKeys", "ListWrappingKeys":
			default:
				sum[method] += n
			}
		}
	}
	return sum
}

// writes are what the operator wrote, by verb and resource.
func (o *operator) writes() map[string]int { return o.requests.All().Writes }
