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
	ID     uint64 // for CancelRequest
	Module uint64
	Method string // of hsm.Module
	// Parameter is the method's parameter after the context. The child decodes it when it knows the method.
	Parameter cbor.RawMessage
}

// outgoingCall is a CallRequest that is not encoded yet.
type outgoingCall struct {
	ID        uint64
	Module    uint64
	Method    string
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

// codec implements rpc.ServerCodec, and makes calls to one. A frame is its length in four bytes, a header and a body. The two sides
// take turns, so a frame is the only thing to read.
type codec struct {
	conn net.Conn
	max  uint32       // the limit of a frame that is received
	in   []byte       // holds every frame with a PIN
	body []byte       // of the frame that was read last
	out  bytes.Buffer // of the frame that is written
	last uint64       // the sequence number of the last call
}

// header is the header of a frame.
type header struct {
	Sequence uint64
	Method   string `cbor:",omitempty"`
	Error    string `cbor:",omitempty"`
}

func newCodec(conn net.Conn, maxReceived uint32) *codec {
	c := &codec{conn: conn, max: maxReceived, in: make([]byte, enough)}
	c.out.Grow(enough)
	return c
}

// enough is the length of a buffer that holds every frame with a PIN: a buffer that grows leaves its former bytes in memory.
const enough = 8 << 10

// call sends a request and receives the reply to it. An error of the other side is an rpc.ServerError. After any other error,
// the connection cannot be used again.
func (c *codec) call(method string, args, reply any) error {
	c.last++
	if err := c.write(header{Sequence: c.last, Method: method}, args); err != nil {
		return err
	}
	h, err := c.read()
	switch {
	case err != nil:
		return err
	case h.Sequence != c.last:
		return errOtherReply
	case h.Error != "":
		return rpc.ServerError(h.Error)
	}
	return c.ReadRequestBody(reply)
}

var errOtherReply = errors.New("the reply is to another request")

// write sends a frame and wipes it.
func (c *codec) write(h header, body any) error {
	defer func() {
		clear(c.out.Bytes())
		c.out.Reset()
	}()
	c.out.Write(make([]byte, lengthSize))
	if err := encoding.MarshalToBuffer(h, &c.out); err != nil {
		return err
	}
	if err := encoding.MarshalToBuffer(body, &c.out); err != nil {
		return err
	}
	frame := c.out.Bytes()
	if len(frame)-lengthSize > maxReply {
		return fmt.Errorf("a frame of %d bytes is longer than the limit", len(frame))
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-lengthSize)) //nolint:gosec // it is less than maxReply
	_, err := c.conn.Write(frame)
	return err
}

// lengthSize is the size of the length of a frame.
const lengthSize = 4

// read receives a frame and decodes its header.
func (c *codec) read() (h header, err error) {
	n, err := io.ReadAtLeast(c.conn, c.in, lengthSize)
	if err != nil {
		return h, err
	}
	length := binary.BigEndian.Uint32(c.in)
	if length > c.max {
		return h, fmt.Errorf("a frame of %d bytes is longer than the limit", length)
	}
	frame, err := c.receive(int(length), c.in[lengthSize:n])
	if err != nil {
		return h, err
	}
	c.body, err = decoding.UnmarshalFirst(frame, &h)
	return h, err
}

// receive receives the rest of a frame of n bytes that begins with some. The buffer of many bytes grows as they arrive: the sender
// may send fewer.
func (c *codec) receive(n int, some []byte) ([]byte, error) {
	if len(some) > n {
		return nil, errTwoFrames
	}
	if rest := c.in[lengthSize:]; n <= len(rest) {
		_, err := io.ReadFull(c.conn, rest[len(some):n])
		return rest[:n], err
	}
	frame, err := io.ReadAll(io.MultiReader(bytes.NewReader(some), io.LimitReader(c.conn, int64(n-len(some)))))
	if err == nil && len(frame) < n {
		err = io.ErrUnexpectedEOF
	}
	return frame, err
}

var errTwoFrames = errors.New("a second frame follows before the reply to the first one")

// ReadRequestHeader implements rpc.ServerCodec.
func (c *codec) ReadRequestHeader(r *rpc.Request) error {
	h, err := c.read()
	r.Seq, r.ServiceMethod = h.Sequence, h.Method
	return err
}

// ReadRequestBody implements rpc.ServerCodec. It decodes the body and wipes it. out is nil for a body that is not needed.
func (c *codec) ReadRequestBody(out any) error {
	defer clear(c.body)
	if out == nil {
		return nil
	}
	return decoding.Unmarshal(c.body, out)
}

// WriteResponse implements rpc.ServerCodec.
func (c *codec) WriteResponse(r *rpc.Response, body any) error {
	if r.Error != "" {
		body = Nothing{}
	}
	return c.write(header{Sequence: r.Seq, Error: r.Error}, body)
}

// Close implements rpc.ServerCodec.
func (c *codec) Close() error { return c.conn.Close() }
