package process

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// pinTime bounds how long the parent reads and writes its record of PINs.
const pinTime = 20 * time.Second

// inMemory is the authority of modules that are opened without one.
var inMemory = sync.OnceValue(func() pins.Authority { return pins.New(nil, time.Now) })

// authority returns what decides about the module's PIN.
func (m *module) authority() pins.Authority {
	if m.pins == nil {
		return inMemory()
	}
	return m.pins
}

// remotePINs implements pins.Authority in the child: it asks the parent.
type remotePINs struct {
	parent *parent
	module uint64
}

// parent is the parent process, as its child knows it.
type parent struct {
	mu    sync.Mutex
	codec *codec
}

// call calls a method of the parent.
func (p *parent) call(method string, args, reply any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.codec.call(parentService+"."+method, args, reply)
}

// refusals are the errors of package pins, by their texts.
var refusals = map[string]error{}

func init() {
	for _, err := range []error{pins.ErrRefused, pins.ErrInterrupted, pins.ErrOther, pins.ErrUsedUp, pins.ErrCountLow} {
		refusals[err.Error()] = err
	}
}

// Begin implements pins.Authority.
func (r *remotePINs) Begin(_ context.Context, p pins.Presented, asked pins.Asked) (pins.Attempt, error) {
	var reply PINReply
	req := &PINRequest{Module: r.module, Token: p.Token, PIN: redact.WireBytes(p.PIN), Asked: asked}
	if err := r.parent.call("BeginPIN", req, &reply); err != nil {
		return nil, err
	}
	if err := refusals[reply.Refusal]; err != nil {
		return nil, err
	}
	if reply.Refusal != "" {
		return nil, errors.New(reply.Refusal)
	}
	return &remoteAttempt{parent: r.parent, id: reply.Attempt}, nil
}

// remoteAttempt implements pins.Attempt.
type remoteAttempt struct {
	parent *parent
	id     uint64
}

// End implements pins.Attempt.
func (a *remoteAttempt) End(_ context.Context, outcome pins.Outcome) {
	_ = a.parent.call("EndPIN", &PINOutcome{Attempt: a.id, Outcome: outcome}, &Nothing{})
}
