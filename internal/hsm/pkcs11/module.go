//go:build cgo

package pkcs11

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// closeWait bounds how long Close waits for operations under way.
const closeWait = 5 * time.Second

// Module implements hsm.Module on one token.
type Module struct {
	cfg  Config // without the PIN
	lib  *library
	info hsm.Info
	can  abilities        // what the self-test found
	caps []hsm.Capability // what custody leaves of it

	slots     chan struct{} // one is taken by each operation, also by one that hangs
	ladder    patientMutex  // one recovers, others wait for it
	attaching patientMutex  // one finds the token and logs in

	mu      sync.Mutex // guards what follows; held over no call
	pin     redact.Bytes
	closed  bool
	at      *attachment // nil before the token is found
	epoch   uint64      // counts attachments and renewals of their sessions
	backoff backoff
}

var _ hsm.Module = (*Module)(nil)

// Open finds the token, logs in and tests what the token can do; it leaves nothing behind in it.
//
// Kinds of error: Misconfigured (the library does not load, no token or two match, no PIN), Locked,
// NotSupported (a token that lacks what everything rests on) and Unavailable.
func Open(ctx context.Context, cfg Config) (*Module, error) { return open(ctx, libraries, cfg) }

func open(ctx context.Context, libs *registry, cfg Config) (*Module, error) {
	if err := ctx.Err(); err != nil {
		return nil, errWaiting(err)
	}
	if trim(cfg.Token.Label) == "" {
		return nil, hsm.Errorf(hsm.Misconfigured, "a token label is needed")
	}
	if cfg.MaxSessions < 1 {
		cfg.MaxSessions = defaultMaxSessions
	}
	m := &Module{
		slots:     make(chan struct{}, cfg.MaxSessions),
		ladder:    newPatientMutex(),
		attaching: newPatientMutex(),
		pin:       bytes.Clone(cfg.PIN),
	}
	cfg.PIN = nil
	m.cfg = cfg
	// Whatever hangs in C does so in a goroutine of its own, which cleans up if it ever ends.
	opened := make(chan error, 1)
	go func() {
		err := m.open(ctx, libs)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = m.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			return nil, final(err)
		}
		return m, nil
	case <-ctx.Done():
		return nil, errWaiting(ctx.Err())
	}
}

func (m *Module) open(ctx context.Context, libs *registry) error {
	lib, fresh, err := libs.use(ctx, m.cfg.Path, m.cfg.Parameters)
	if err != nil {
		return err
	}
	m.lib = lib
	if err := m.findToken(ctx, fresh); err != nil {
		return err
	}
	return m.attempt(ctx, func(s *session) error {
		can, err := s.selfTest()
		m.can, m.caps = can, can.capabilities(m.cfg)
		return err
	})
}

// findToken attaches to the token. Where it is not there, and the library was initialised some time
// ago, the library has another look.
func (m *Module) findToken(ctx context.Context, fresh bool) error {
	generation, _ := m.lib.current()
	err := m.attempt(ctx, func(s *session) error {
		m.info = infoOf(m.cfg.Library, s.at.info)
		return nil
	})
	if fresh || !isNoToken(err) {
		return err
	}
	if looked, lookErr := m.lib.look(ctx, generation); lookErr != nil || !looked {
		return err
	}
	return m.attempt(ctx, func(s *session) error {
		m.info = infoOf(m.cfg.Library, s.at.info)
		return nil
	})
}

func infoOf(library string, info p11.TokenInfo) hsm.Info {
	return hsm.Info{
		Library:      library,
		Manufacturer: trim(info.ManufacturerID),
		Model:        trim(info.Model),
		Serial:       trim(info.SerialNumber),
		Firmware:     fmt.Sprintf("%d.%d", info.FirmwareVersion.Major, info.FirmwareVersion.Minor),
	}
}

// Info implements hsm.Module.
func (m *Module) Info() hsm.Info { return m.info }

// Capabilities implements hsm.Module.
func (m *Module) Capabilities() []hsm.Capability { return slices.Clone(m.caps) }

// Check implements hsm.Module: it makes a key in the token and derives from it. What C_GetSessionInfo
// and its like say is no proof; some libraries say it long after the device is gone.
func (m *Module) Check(ctx context.Context) error {
	return m.operate(ctx, func(s *session) error { return s.health() })
}

// Close implements hsm.Module. An operation that hangs keeps the library initialised; everything else
// is released.
func (m *Module) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	m.awaitOperations(ctx)
	if m.lib != nil {
		m.detach(ctx)
		m.lib.release(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pin.Wipe()
	return nil
}

// awaitOperations takes every place for good, or as many as there are until ctx is done.
func (m *Module) awaitOperations(ctx context.Context) {
	for range cap(m.slots) {
		select {
		case m.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// pinCopy returns a copy that the caller wipes.
func (m *Module) pinCopy() redact.Bytes {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.pin)
}

func (m *Module) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}
