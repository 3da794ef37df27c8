//go:build cgo

package pkcs11

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11/token"
)

// libraries are the libraries of this process.
var libraries = &token.Libraries{}

// Module implements hsm.Module on one token.
type Module struct {
	cfg       Config // without the PIN
	token     *token.Token
	can       capabilities
	permitted []hsm.Capability // what custody policy permits of can

	unfinished unfinishedKeys
}

var _ hsm.Module = (*Module)(nil)

// List returns what a library reports about itself and its tokens.
func List(ctx context.Context, cfg Config) (hsm.LibraryInfo, error) {
	return libraries.List(ctx, token.Config{Path: cfg.Path, Parameters: cfg.Parameters, Watch: cfg.Watch})
}

// Open finds the token, logs in and tests what the token can do. It leaves no objects in the token.
//
// Kinds of error: Misconfigured (the library does not load, no token or two match, no PIN), Locked, PINUntried, NotSupported
// (the token lacks what every master key requires) and Unavailable.
func Open(ctx context.Context, cfg Config) (*Module, error) { return open(ctx, libraries, cfg) }

func open(ctx context.Context, libraries *token.Libraries, cfg Config) (*Module, error) {
	m := &Module{cfg: cfg}
	m.cfg.PIN = nil
	var probes atomic.Pointer[[]hsm.Probe] // a self-test that hangs keeps running after Open returned
	var err error
	m.token, err = libraries.Open(ctx, token.Config{
		Path: cfg.Path, Parameters: cfg.Parameters, Selector: cfg.Token,
		PIN: cfg.PIN, PINOrigin: cfg.PINOrigin, PINs: cfg.PINs, MaxSessions: cfg.MaxSessions, ReadOnly: cfg.ReadOnly, Watch: cfg.Watch,
	}, func(s *token.Session) (err error) {
		m.can, err = runSelfTest(s, &m.cfg, func(done []hsm.Probe) { probes.Store(&done) })
		return err
	})
	if err != nil {
		return nil, withProbes(err, probes.Load())
	}
	m.permitted = m.can.permitted(&m.cfg)
	return m, nil
}

// Describe implements hsm.Module.
func (m *Module) Describe(ctx context.Context) (hsm.Description, error) {
	if err := m.token.Err(ctx); err != nil {
		return hsm.Description{}, err
	}
	info := m.token.Info()
	info.Library = m.cfg.Library
	return hsm.Description{
		Info:          info,
		Capabilities:  slices.Clone(m.permitted),
		KeyProtection: hsm.KeyProtection{State: m.can.protection.State, Methods: slices.Clone(m.can.protection.Methods)},
		Probes:        slices.Clone(m.can.probes),
	}, nil
}

// Check implements hsm.Module by the canary.
func (m *Module) Check(ctx context.Context) error {
	err := m.do(ctx, (*session).runCanary)
	if hsm.KindOf(err) == hsm.Unavailable && token.DeniesKey(err) {
		return hsm.Wrap(hsm.WrongResult, err, "the token creates keys and denies afterwards that it did: its results are not right any more")
	}
	return err
}

// Close implements hsm.Module.
func (m *Module) Close(ctx context.Context) error { return m.token.Close(ctx) }
