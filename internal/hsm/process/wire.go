package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/fxamacker/cbor/v2"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// The services of net/rpc: the parent calls the child, and the child its parent.
const (
	childService  = "Child"
	parentService = "Parent"
)

// StartRequest is the first request to a child. (net/rpc requires exported types.)
type StartRequest struct{ Library Library }

// StartReply says how the child is protected.
type StartReply struct {
	// Missing are the protections that are not in effect, each with its reason.
	Missing []string
	Error   *wireError
}

// OpenRequest opens a module in the child.
type OpenRequest struct {
	Module  uint64 // chosen by the parent
	Timeout time.Duration
	Config  hsm.Config // its plain fields
}

// ListRequest lists the tokens of the library.
type ListRequest struct{ Timeout time.Duration }

// CallRequest calls a method of a module.
type CallRequest struct {
	ID      uint64 // for CancelRequest
	Module  uint64
	Method  string        // of hsm.Module
	Timeout time.Duration // the time until the deadline of the caller; 0 if it has none
	// Parameter is the method's parameter after the context. The child decodes it when it knows the method.
	Parameter cbor.RawMessage
}

// outgoingCall is a CallRequest that is not encoded yet.
type outgoingCall struct {
	ID        uint64
	Module    uint64
	Method    string
	Timeout   time.Duration
	Parameter any
}

// CancelRequest says that nothing waits for the reply to a CallRequest.
type CancelRequest struct{ ID uint64 }

// CallReply is the reply to a request whose result depends on its method.
type CallReply struct {
	Result any
	Error  *wireError
}

// incomingReply is a CallReply whose result is not decoded yet.
type incomingReply struct {
	Result cbor.RawMessage
	Error  *wireError
}

// decodeReply returns the result or the error of a call.
func decodeReply[T any](reply incomingReply) (T, error) {
	var none, result T
	if reply.Error != nil {
		return none, reply.Error.decode()
	}
	if err := decoding.Unmarshal(reply.Result, &result); err != nil {
		return none, hsm.Wrap(hsm.Internal, err, "")
	}
	return result, nil
}

// PINRequest asks the parent whether a PIN may be tried. The parent knows the origin of the module's PIN.
type PINRequest struct {
	Module uint64
	Token  pins.Token
	PIN    redact.WireBytes
	Asked  pins.Asked
}

// PINReply is the reply to a PINRequest.
type PINReply struct {
	Attempt uint64 // for PINOutcome
	Refusal string // the text of one of package pins' errors, or another; "" if the PIN may be tried
}

// PINOutcome tells the parent how an attempt ended.
type PINOutcome struct {
	Attempt uint64
	Outcome pins.Outcome
}

// HangReport tells the parent that a call into the library did not return.
type HangReport struct {
	Function string
	After    time.Duration
}

// Nothing is an empty request or reply.
type Nothing struct{}

// wireError is an *hsm.Error.
type wireError struct {
	Kind   hsm.Kind
	Detail string
	Probes []hsm.Probe
	Cause  string
	// Timeout: the cause is that the context's deadline has passed.
	Timeout bool
}

func encodeError(err error) *wireError {
	if err == nil {
		return nil
	}
	var e *hsm.Error
	if !errors.As(err, &e) {
		e = hsm.Wrap(hsm.Internal, err, "")
	}
	out := &wireError{Kind: e.Kind, Detail: e.Detail, Probes: e.Probes, Timeout: errors.Is(err, context.DeadlineExceeded)}
	if e.Err != nil {
		out.Cause = e.Err.Error()
	}
	return out
}

func (e *wireError) decode() *hsm.Error {
	if e == nil {
		return nil
	}
	out := &hsm.Error{Kind: e.Kind, Detail: harmless(e.Detail), Probes: e.Probes}
	if !slices.Contains(hsm.Kinds(), e.Kind) {
		out.Kind = hsm.Internal
	}
	switch {
	case e.Timeout:
		out.Err = fmt.Errorf("in the process of the library: %w", context.DeadlineExceeded)
	case e.Cause != "":
		out.Err = errors.New(harmless(e.Cause))
	}
	return out
}

// maxText bounds a text of the child in bytes. Texts become conditions, events and lines of the log.
const maxText = 1024

// harmless bounds a text and replaces what does not print.
func harmless(text string) string {
	if len(text) > maxText {
		text = text[:maxText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' {
			return r
		}
		return '?'
	}, text)
}

// The limits of a frame in bytes. The longest reply is the list of all keys of a token. A child sends its parent short requests.
const (
	maxReply   = 16 << 20
	maxRequest = enough
)

// The encoding. A child that has been taken over must not be able to make its parent use much memory or time.
var (
	encoding = must(cbor.EncOptions{Time: cbor.TimeRFC3339Nano}.UserBufferEncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, MaxNestedLevels: 16, MaxArrayElements: 1 << 17,
		UTF8: cbor.UTF8DecodeInvalid, // a token reports any bytes
	}.DecMode())
)

func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// codec implements rpc.ClientCodec and rpc.ServerCodec. A frame is its length in four bytes, a header and a body.
type codec struct {
	conn net.Conn // without a buffer, which could not be wiped
	max  uint32   // the limit of a frame that is received
	body []byte   // of the frame that was read last
	once sync.Once

	mu  sync.Mutex // net/rpc writes replies one after the other, but not necessarily in one goroutine
	out bytes.Buffer
}

// header is the header of a frame.
type header struct {
	Sequence uint64
	Method   string `cbor:",omitempty"`
	Error    string `cbor:",omitempty"`
}

func newCodec(conn net.Conn, maxReceived uint32) *codec {
	c := &codec{conn: conn, max: maxReceived}
	c.out.Grow(enough)
	return c
}

// enough is the length of a buffer that holds every frame with a PIN: a buffer that grows leaves its former bytes in memory.
const enough = 8 << 10

// write sends a frame and wipes it.
func (c *codec) write(h header, body any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		clear(c.out.Bytes())
		c.out.Reset()
	}()
	c.out.Write(make([]byte, 4))
	if err := encoding.MarshalToBuffer(h, &c.out); err != nil {
		return err
	}
	if err := encoding.MarshalToBuffer(body, &c.out); err != nil {
		return err
	}
	frame := c.out.Bytes()
	if len(frame)-4 > maxReply {
		return fmt.Errorf("a frame of %d bytes is longer than the limit", len(frame))
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4)) //nolint:gosec // it is less than maxReply
	_, err := c.conn.Write(frame)
	return err
}

// read receives a frame and decodes its header.
func (c *codec) read() (h header, err error) {
	var size [4]byte
	if _, err := io.ReadFull(c.conn, size[:]); err != nil {
		return h, err
	}
	length := binary.BigEndian.Uint32(size[:])
	if length > c.max {
		return h, fmt.Errorf("a frame of %d bytes is longer than the limit", length)
	}
	frame, err := c.receive(int(length))
	if err != nil {
		return h, err
	}
	c.body, err = decoding.UnmarshalFirst(frame, &h)
	return h, err
}

// receive reads n bytes. The buffer of many bytes grows as they arrive: the sender may send fewer.
func (c *codec) receive(n int) ([]byte, error) {
	if n > enough {
		frame, err := io.ReadAll(io.LimitReader(c.conn, int64(n)))
		if err == nil && len(frame) < n {
			err = io.ErrUnexpectedEOF
		}
		return frame, err
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(c.conn, frame)
	return frame, err
}

// readBody decodes the body and wipes it. out is nil for a body that is not needed.
func (c *codec) readBody(out any) error {
	defer clear(c.body)
	if out == nil {
		return nil
	}
	return decoding.Unmarshal(c.body, out)
}

// WriteRequest implements rpc.ClientCodec.
func (c *codec) WriteRequest(r *rpc.Request, body any) error {
	return c.write(header{Sequence: r.Seq, Method: r.ServiceMethod}, body)
}

// ReadResponseHeader implements rpc.ClientCodec.
func (c *codec) ReadResponseHeader(r *rpc.Response) error {
	h, err := c.read()
	r.Seq, r.Error = h.Sequence, h.Error
	return err
}

// ReadResponseBody implements rpc.ClientCodec.
func (c *codec) ReadResponseBody(out any) error { return c.readBody(out) }

// ReadRequestHeader implements rpc.ServerCodec.
func (c *codec) ReadRequestHeader(r *rpc.Request) error {
	h, err := c.read()
	r.Seq, r.ServiceMethod = h.Sequence, h.Method
	return err
}

// ReadRequestBody implements rpc.ServerCodec.
func (c *codec) ReadRequestBody(out any) error { return c.readBody(out) }

// WriteResponse implements rpc.ServerCodec.
func (c *codec) WriteResponse(r *rpc.Response, body any) error {
	if r.Error != "" {
		body = Nothing{}
	}
	return c.write(header{Sequence: r.Seq, Error: r.Error}, body)
}

// Close implements rpc.ClientCodec and rpc.ServerCodec.
func (c *codec) Close() (err error) {
	c.once.Do(func() { err = c.conn.Close() })
	return err
}
