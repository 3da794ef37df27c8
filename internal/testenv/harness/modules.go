package harness

import (
	"context"
	"slices"
	"testing"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/hsmtest"
	"github.com/keyconvoy/keyconvoy/internal/testenv"
)

// Open implements hsm.Provider: it opens modules as the command line does, and records the calls.
func (o *Operator) Open(ctx context.Context, cfg hsm.Config) (hsm.Module, error) {
	if err := o.onOpen(ctx, cfg); err != nil {
		return nil, err
	}
	module, err := o.Libraries.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r := hsmtest.Wrap(sharedModule{module, o.test})
	o.onModule(r)
	o.Opened(r)
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

// Opened records a module that the operator opened elsewhere, in another process.
func (o *Operator) Opened(m *hsmtest.Recorder) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.opened = append(o.opened, m)
}

// Modules returns all modules that the operator has opened, in order, including closed ones.
func (o *Operator) Modules() []*hsmtest.Recorder {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.opened)
}

// Module returns the module that was opened last. After a start it waits until one is opened, because the former ones are
// closed.
func (o *Operator) Module(t testing.TB) *hsmtest.Recorder {
	t.Helper()
	var all []*hsmtest.Recorder
	Eventually(t, func() string {
		if all = o.Modules(); len(all) <= o.former {
			return "the operator has opened no module"
		}
		return ""
	})
	return all[len(all)-1]
}

// Calls returns the number of calls to all modules by method, without those that only look: whether a module works, and
// what is in it. A sweep makes these after an opening, at a time of its own.
func (o *Operator) Calls() map[string]int {
	sum := map[string]int{}
	for _, m := range o.Modules() {
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

// Writes returns the number of the operator's writes by verb and resource.
func (o *Operator) Writes() map[string]int { return o.Requests.All().Writes }
