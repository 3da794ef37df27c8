package process

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
)

// module implements hsm.Module by calls to a module in a child.
type module struct {
	child  *child
	id     uint64
	origin pins.Origin
	pins   pins.Authority
	lost   func(*hsm.Error)
	opened atomic.Bool
	closed atomic.Bool
	is     hsm.Description // set by open
}

// openAgainAfter is when an opening that took too long makes sense again: a call that hangs in the library ends the child.
const openAgainAfter = 10 * time.Second

var errClosed = hsm.Errorf(hsm.Unavailable, "the key store's module is closed")

// open opens the module in the child. If ctx is done first, the opening continues in the child, and the module is closed
// afterwards. If open fails, the module needs no Close.
func (m *module) open(ctx context.Context, cfg hsm.Config) error {
	req := &OpenRequest{Module: m.id, Timeout: remaining(ctx), Config: cfg}
	var reply incomingReply
	err := m.child.call(ctx, "Open", req, &reply)
	if err == nil {
		opened, err := decodeReply[hsm.Description](reply)
		if err != nil {
			m.abandon()
			return err
		}
		m.is = opened
		m.opened.Store(true)
		return nil
	}
	go m.close(context.WithoutCancel(ctx)) // which the child does when the opening has ended
	if ctx.Err() != nil {
		waiting := *err
		waiting.After = openAgainAfter
		return &waiting
	}
	return err
}

// abandon forgets a module that the child does not have.
func (m *module) abandon() {
	m.closed.Store(true)
	m.child.remove(m)
	m.child.library.release(m.child)
}

// Close implements hsm.Module.
func (m *module) Close(ctx context.Context) error {
	m.close(ctx)
	return nil
}

// close closes the module in the child, and ends the child if it has no other.
func (m *module) close(ctx context.Context) {
	if m.closed.Swap(true) {
		return
	}
	_ = m.child.call(ctx, "Call", &outgoingCall{Module: m.id, Method: "Close"}, &incomingReply{})
	m.child.remove(m)
	m.child.library.release(m.child)
}

// remaining returns the time until the deadline of ctx, or 0 if it has none.
func remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(deadline), 1)
}

// invoke calls a method with a result.
func invoke[T any](ctx context.Context, m *module, method string, parameter any) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, timeoutError(err)
	}
	if m.closed.Load() {
		return none, errClosed
	}
	var reply incomingReply
	call := &outgoingCall{ID: m.child.calling.Add(1), Module: m.id, Method: method, Parameter: parameter}
	if err := m.child.call(ctx, "Call", call, &reply); err != nil {
		if ctx.Err() != nil { // the call may still wait for a session
			go func() {
				_ = m.child.call(context.WithoutCancel(ctx), "Cancel", &CancelRequest{ID: call.ID}, &Nothing{})
			}()
		}
		return none, err
	}
	return decodeReply[T](reply)
}

// do calls a method without a result.
func (m *module) do(ctx context.Context, method string, parameter any) error {
	_, err := invoke[Nothing](ctx, m, method, parameter)
	return err
}

// Describe implements hsm.Module. What a module is does not change while it is open, so this makes no call.
func (m *module) Describe(ctx context.Context) (hsm.Description, error) {
	if err := ctx.Err(); err != nil {
		return hsm.Description{}, timeoutError(err)
	}
	if m.closed.Load() {
		return hsm.Description{}, errClosed
	}
	select {
	case <-m.child.done:
		return hsm.Description{}, m.child.failure
	default:
	}
	is := m.is
	is.Capabilities, is.Probes = slices.Clone(is.Capabilities), slices.Clone(is.Probes)
	is.KeyProtection.Methods = slices.Clone(is.KeyProtection.Methods)
	return is, nil
}

// Check implements hsm.Module.
func (m *module) Check(ctx context.Context) error { return m.do(ctx, "Check", nil) }

// Authenticate implements hsm.Module.
func (m *module) Authenticate(ctx context.Context, message []byte) ([]byte, error) {
	return invoke[[]byte](ctx, m, "Authenticate", message)
}

// CreateWrappingKey implements hsm.Module.
func (m *module) CreateWrappingKey(ctx context.Context, req hsm.WrappingKeyRequest) (hsm.WrappingKey, error) {
	return invoke[hsm.WrappingKey](ctx, m, "CreateWrappingKey", req)
}

// ListWrappingKeys implements hsm.Module.
func (m *module) ListWrappingKeys(ctx context.Context) ([]hsm.WrappingKey, error) {
	return invoke[[]hsm.WrappingKey](ctx, m, "ListWrappingKeys", nil)
}

// DestroyWrappingKey implements hsm.Module.
func (m *module) DestroyWrappingKey(ctx context.Context, id uuid.UUID) error {
	return m.do(ctx, "DestroyWrappingKey", id)
}

// ImportKey implements hsm.Module.
func (m *module) ImportKey(ctx context.Context, req hsm.ImportRequest) (hsm.Key, error) {
	return invoke[hsm.Key](ctx, m, "ImportKey", req)
}

// GenerateKey implements hsm.Module.
func (m *module) GenerateKey(ctx context.Context, req hsm.GenerateKeyRequest) (hsm.Key, error) {
	return invoke[hsm.Key](ctx, m, "GenerateKey", req)
}

// FindKey implements hsm.Module.
func (m *module) FindKey(ctx context.Context, id uuid.UUID) (hsm.Key, error) {
	return invoke[hsm.Key](ctx, m, "FindKey", id)
}

// ListKeys implements hsm.Module.
func (m *module) ListKeys(ctx context.Context) ([]hsm.Key, error) {
	return invoke[[]hsm.Key](ctx, m, "ListKeys", nil)
}

// DestroyKey implements hsm.Module.
func (m *module) DestroyKey(ctx context.Context, id uuid.UUID) error {
	return m.do(ctx, "DestroyKey", id)
}

// GenerateDataKey implements hsm.Module.
func (m *module) GenerateDataKey(ctx context.Context, req hsm.GenerateRequest) (hsm.DataKey, error) {
	return invoke[hsm.DataKey](ctx, m, "GenerateDataKey", req)
}

// VerifyDataKey implements hsm.Module.
func (m *module) VerifyDataKey(ctx context.Context, req hsm.OpenRequest) error {
	return m.do(ctx, "VerifyDataKey", req)
}

// ReencryptDataKey implements hsm.Module.
func (m *module) ReencryptDataKey(ctx context.Context, req hsm.ReencryptRequest) (hsm.DataKey, error) {
	return invoke[hsm.DataKey](ctx, m, "ReencryptDataKey", req)
}

// ExportDataKey implements hsm.Module.
func (m *module) ExportDataKey(ctx context.Context, req hsm.ExportRequest) (hsm.ExportedDataKey, error) {
	return invoke[hsm.ExportedDataKey](ctx, m, "ExportDataKey", req)
}
