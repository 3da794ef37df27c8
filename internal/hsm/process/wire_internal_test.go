package process

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/rpc"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
	"github.com/keyconvoy/keyconvoy/internal/redact"
)

// stream is a connection that reads foreign bytes, and keeps what is written.
type stream struct {
	net.Conn

	in  io.Reader
	out bytes.Buffer
}

func (s *stream) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *stream) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s *stream) Close() error                { return nil }

// A child that an attacker controls sends its parent any bytes, as replies and as requests.
func FuzzCodec_foreignBytes(f *testing.F) {
	for _, body := range []any{
		&CallReply{Result: hsm.Description{Info: hsm.Info{Serial: "1"}}}, &CallReply{Error: &wireError{Kind: hsm.InvalidBlob, Detail: "no"}},
		&PINRequest{Module: 1, PIN: redact.WireBytes("1234"), Asked: pins.Asked{CountLow: true}}, &HangReport{Function: "C_Sign"}, &Nothing{},
	} {
		s := &stream{}
		if err := newCodec(s, maxReply).write(header{Sequence: 1, Method: "Parent.BeginPIN"}, body); err != nil {
			f.Fatal(err)
		}
		f.Add(s.out.Bytes())
	}
	f.Fuzz(func(_ *testing.T, in []byte) {
		for _, body := range []any{&incomingReply{}, &PINRequest{}, &PINOutcome{}, &HangReport{}, nil} {
			c := newCodec(&stream{in: bytes.NewReader(in)}, maxReply)
			if c.ReadRequestHeader(&rpc.Request{}) != nil || c.ReadRequestBody(body) != nil {
				continue
			}
			if reply, ok := body.(*incomingReply); ok {
				_, _ = decodeReply[hsm.Description](*reply)
				_, _ = decodeReply[[]hsm.Key](*reply)
			}
		}
	})
}

// Frames may carry a PIN.
func TestCodec_wipesFrames(t *testing.T) {
	t.Parallel()
	s := &stream{}
	c := newCodec(s, maxReply)
	const secret = "not-to-be-kept"
	if err := c.write(header{Sequence: 1}, &PINRequest{PIN: redact.WireBytes(secret)}); err != nil {
		t.Fatal(err)
	}
	if buffer := c.out.Bytes(); bytes.Contains(buffer[:cap(buffer)], []byte(secret)) {
		t.Error("the buffer of the sender has the PIN")
	}
	if !bytes.Contains(s.out.Bytes(), []byte(secret)) {
		t.Fatal("the PIN was not sent")
	}
	s.in = &s.out
	var request rpc.Request
	if err := c.ReadRequestHeader(&request); err != nil {
		t.Fatal(err)
	}
	body := c.body
	var got PINRequest
	if err := c.ReadRequestBody(&got); err != nil || string(got.PIN) != secret {
		t.Fatalf("received a PIN of %d bytes, %v", len(got.PIN), err)
	}
	if bytes.Contains(body, []byte(secret)) {
		t.Error("the frame of the receiver has the PIN")
	}
}

func TestCodec_frameThatIsTooLong_isRejected(t *testing.T) {
	t.Parallel()
	c := newCodec(&stream{in: bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})}, maxReply)
	if err := c.ReadRequestHeader(&rpc.Request{}); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the error is %v", err)
	}
}

// The two sides take turns. A child that does not could have a reply taken for that to a later call.
func TestCodec_frameOutOfTurn_isRejected(t *testing.T) {
	t.Parallel()
	frame := func(sequence uint64) []byte {
		s := &stream{}
		if err := newCodec(s, maxReply).write(header{Sequence: sequence}, &CallReply{}); err != nil {
			t.Fatal(err)
		}
		return s.out.Bytes()
	}
	for name, replies := range map[string][]byte{
		"the reply to another call": frame(2),
		"two replies":               append(frame(1), frame(2)...),
		"half of a reply":           frame(1)[:6],
		"nothing":                   nil,
	} {
		c := newCodec(&stream{in: bytes.NewReader(replies)}, maxReply)
		if err := c.call("Child.Ping", &Nothing{}, &incomingReply{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := newCodec(&stream{in: bytes.NewReader(frame(1))}, maxReply).call("Child.Ping", &Nothing{}, &incomingReply{}); err != nil {
		t.Errorf("the reply to the call: %v", err)
	}
}

// What a module calls remains in the parent.
func TestOpenRequest_hasAllPlainFieldsOfTheConfig(t *testing.T) {
	t.Parallel()
	want := hsm.Config{}
	value := reflect.ValueOf(&want).Elem()
	for i := range value.NumField() {
		switch field := value.Field(i); field.Kind() {
		case reflect.String:
			field.SetString("x")
		case reflect.Bool:
			field.SetBool(true)
		case reflect.Int:
			field.SetInt(7)
		}
	}
	want.PIN, want.Token.Label, want.PINOrigin.Namespace = redact.WireBytes("1234"), "label", "team-a"
	sent := want
	sent.PINs, sent.Lost = pins.New(nil, time.Now), func(*hsm.Error) {}
	s := &stream{}
	c := newCodec(s, maxReply)
	if err := c.write(header{}, &OpenRequest{Config: sent}); err != nil {
		t.Fatal(err)
	}
	s.in = &s.out
	var got OpenRequest
	if err := errors.Join(c.ReadRequestHeader(&rpc.Request{}), c.ReadRequestBody(&got)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Config, want) {
		t.Error("the configuration is another one after it was sent")
	}
}

// A child speaks for the tokens of its library only.
func TestParentServer_otherLibrarysToken_isRefused(t *testing.T) {
	t.Parallel()
	guard := pins.New(nil, time.Now)
	c := &child{file: "/a.so", modules: map[uint64]*module{1: {pins: guard}}}
	s := newParentServer(c)
	for library, allowed := range map[string]bool{"/a.so": true, "/b.so": false} {
		var reply PINReply
		err := s.BeginPIN(PINRequest{Module: 1, Token: pins.Token{Library: library, Serial: "1"}, PIN: redact.WireBytes("1234")}, &reply)
		if (err == nil) != allowed || len(s.attempts) > 1 {
			t.Errorf("a PIN for a token of %s: %v, %+v", library, err, reply)
		}
	}
}

// Texts of a child become conditions and lines of the log, and kinds become labels of a metric.
func TestWireError_ofAHostileChild_isBoundedAndPrints(t *testing.T) {
	t.Parallel()
	e := (&wireError{Kind: "Invented", Detail: strings.Repeat("x", 1<<20), Cause: "a\x1b[31m\xff"}).decode()
	if e.Kind != hsm.Internal || len(e.Detail) > 2*maxText || strings.Contains(e.Err.Error(), "\x1b") || !utf8.ValidString(e.Err.Error()) {
		t.Errorf("the error is %q", e.Error()[:100])
	}
}

// A token may report text that is not UTF-8.
func TestCodec_textThatIsNotUTF8_arrives(t *testing.T) {
	t.Parallel()
	s := &stream{}
	c := newCodec(s, maxReply)
	if err := c.write(header{}, &CallReply{Result: hsm.Description{Info: hsm.Info{Manufacturer: "Soci\xe9t\xe9"}}}); err != nil {
		t.Fatal(err)
	}
	s.in = &s.out
	var reply incomingReply
	if err := errors.Join(c.ReadRequestHeader(&rpc.Request{}), c.ReadRequestBody(&reply)); err != nil {
		t.Fatal(err)
	}
	if got, err := decodeReply[hsm.Description](reply); err != nil || got.Info.Manufacturer != "Soci\xe9t\xe9" {
		t.Errorf("%q, %v", got.Info.Manufacturer, err)
	}
}

// A method that is added to hsm.Module must be served.
func TestServer_hasAllMethods(t *testing.T) {
	t.Parallel()
	module := reflect.TypeFor[hsm.Module]()
	for m := range module.Methods() {
		if (methods[m.Name] != nil) == (m.Name == "Describe") { // which the parent answers
			t.Errorf("Module.%s", m.Name)
		}
	}
}
