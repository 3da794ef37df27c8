package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"

	"github.com/keyconvoy/keyconvoy/internal/coredump"
	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pkcs11"
)

const (
	// The sockets are the first descriptors after the standard ones.
	controlDescriptor = 3
	parentDescriptor  = 4
)

// Serve is the child process. It serves the modules of one library to the parent, and returns when the parent closes the
// connection.
func Serve() error {
	if err := coredump.Disable(); err != nil {
		return err
	}
	// The parent decides when the child ends. A terminal sends its signals to both.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	dieOfFaults()
	if err := closeInherited(); err != nil {
		return err
	}
	control, err := inherited(controlDescriptor)
	if err != nil {
		return err
	}
	toParent, err := inherited(parentDescriptor)
	if err != nil {
		return err
	}
	s := &server{parent: &parent{codec: newCodec(toParent, maxReply)}, modules: map[uint64]hsm.Module{}, cancels: map[uint64]context.CancelFunc{}}
	rpcServer := rpc.NewServer()
	if err := rpcServer.RegisterName(childService, s); err != nil {
		return err
	}
	serveConnections(rpcServer, control)
	s.closeAll()
	return nil
}

// inherited returns an inherited socket.
func inherited(descriptor uintptr) (*net.UnixConn, error) {
	file := os.NewFile(descriptor, "socket")
	if file == nil {
		return nil, errNotInherited
	}
	conn, err := connectionOf(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotInherited, err)
	}
	return conn, nil
}

var errNotInherited = errors.New("this command is for the operator, which starts it with two sockets")

// server is the service of the child.
type server struct {
	parent  *parent
	library Library
	calls   *watchdog

	mu      sync.Mutex
	modules map[uint64]hsm.Module
	cancels map[uint64]context.CancelFunc // of the calls in progress
}

// Start restricts the process to what the library needs.
func (s *server) Start(req StartRequest, reply *StartReply) error {
	s.library = req.Library
	s.calls = newWatchdog(req.Library.Timeout, s.hang)
	missing, err := restrict(req.Library)
	reply.Missing, reply.Error = missing, encodeError(err)
	return nil
}

// Ping returns at once.
func (s *server) Ping(Nothing, *Nothing) error { return nil }

// List lists the tokens of the library.
func (s *server) List(req ListRequest, reply *CallReply) error {
	ctx, cancel := withTimeout(req.Timeout)
	defer cancel()
	info, err := pkcs11.List(ctx, pkcs11.Config{Path: s.library.Path, Parameters: s.library.Parameters, Watch: s.calls.watch})
	reply.Result, reply.Error = info, encodeError(err)
	return nil
}

// Open opens a module.
func (s *server) Open(req OpenRequest, reply *CallReply) error {
	defer req.Config.PIN.Wipe()
	ctx, cancel := withTimeout(req.Timeout)
	defer cancel()
	s.set(req.Module, nil) // it is opening
	req.Config.PINs = &remotePINs{parent: s.parent, module: req.Module}
	m, err := pkcs11.Open(ctx, pkcs11.Config{
		Config: req.Config, Path: s.library.Path, Parameters: s.library.Parameters, Watch: s.calls.watch,
	})
	if err == nil {
		reply.Result, err = m.Describe(ctx)
	}
	if err != nil {
		s.remove(req.Module)
		reply.Error = encodeError(err)
		return nil
	}
	if !s.set(req.Module, m) { // the parent gave up
		_ = m.Close(context.Background())
	}
	return nil
}

// set records the state of a module: nil means that it is opening. It returns false for a module that was closed meanwhile.
func (s *server) set(id uint64, m hsm.Module) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, opening := s.modules[id]; m != nil && !opening {
		return false
	}
	s.modules[id] = m
	return true
}

// remove forgets a module and returns it. It returns nil for one that is opening, which Open then closes.
func (s *server) remove(id uint64) hsm.Module {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.modules[id]
	delete(s.modules, id)
	return m
}

// module returns an open module, or nil.
func (s *server) module(id uint64) hsm.Module {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.modules[id]
}

// Call calls a method of a module.
func (s *server) Call(req CallRequest, reply *CallReply) error {
	find := s.module
	if req.Method == "Close" {
		find = s.remove
	}
	m, call := find(req.Module), methods[req.Method]
	if m == nil {
		reply.Error = encodeError(errClosed)
		return nil
	}
	if call == nil {
		return fmt.Errorf("hsm.Module has no method %q", req.Method)
	}
	ctx, cancel := context.WithCancel(context.Background()) // the parent knows the deadline: a timer per call would wake threads
	defer s.cancelable(req.ID, cancel)()
	result, err := call(ctx, m, req.Parameter)
	reply.Result, reply.Error = result, encodeError(err)
	return nil
}

// cancelable lets Cancel end a call, until end is called.
func (s *server) cancelable(id uint64, cancel context.CancelFunc) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancels[id] = cancel
	return func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.cancels, id)
	}
}

// Cancel ends the wait of a call for a session. A call into the library goes on.
func (s *server) Cancel(req CancelRequest, _ *Nothing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.cancels[req.ID]; cancel != nil {
		cancel()
	}
	return nil
}

// closeAll closes the modules that are open when the parent hangs up.
func (s *server) closeAll() {
	ctx, cancel := withTimeout(stopTime)
	defer cancel()
	var closing sync.WaitGroup
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.modules {
		if m != nil {
			closing.Go(func() { _ = m.Close(ctx) })
		}
	}
	closing.Wait()
}

// hang ends the process, because no thread can end a call that hangs. The parent kills it when it has noted why.
func (s *server) hang(function string, after time.Duration) {
	_ = s.parent.call("Hang", &HangReport{Function: function, After: after}, &Nothing{})
	os.Exit(1)
}

// withTimeout returns a context with that deadline, or without one if timeout is 0.
func withTimeout(timeout time.Duration) (context.Context, context.CancelFunc) {
	if timeout == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), timeout)
}

// method calls a method of hsm.Module with an encoded parameter.
type method func(ctx context.Context, m hsm.Module, parameter cbor.RawMessage) (any, error)

// methods are the methods of hsm.Module, by name.
var methods = map[string]method{
	"Check":              act(hsm.Module.Check),
	"Close":              act(hsm.Module.Close),
	"Authenticate":       function(hsm.Module.Authenticate),
	"CreateWrappingKey":  function(hsm.Module.CreateWrappingKey),
	"ListWrappingKeys":   get(hsm.Module.ListWrappingKeys),
	"DestroyWrappingKey": procedure[uuid.UUID](hsm.Module.DestroyWrappingKey),
	"ImportKey":          function(hsm.Module.ImportKey),
	"GenerateKey":        function(hsm.Module.GenerateKey),
	"FindKey":            function(hsm.Module.FindKey),
	"ListKeys":           get(hsm.Module.ListKeys),
	"DestroyKey":         procedure[uuid.UUID](hsm.Module.DestroyKey),
	"GenerateDataKey":    function(hsm.Module.GenerateDataKey),
	"VerifyDataKey":      procedure[hsm.OpenRequest](hsm.Module.VerifyDataKey),
	"ReencryptDataKey":   function(hsm.Module.ReencryptDataKey),
	"ExportDataKey":      function(hsm.Module.ExportDataKey),
}

// function is a method with a parameter and a result.
func function[P, R any](call func(hsm.Module, context.Context, P) (R, error)) method {
	return func(ctx context.Context, m hsm.Module, parameter cbor.RawMessage) (any, error) {
		var p P
		if err := decoding.Unmarshal(parameter, &p); err != nil {
			return nil, err
		}
		return call(m, ctx, p)
	}
}

// procedure is a method with a parameter and without a result.
func procedure[P any](call func(hsm.Module, context.Context, P) error) method {
	return function(func(m hsm.Module, ctx context.Context, p P) (Nothing, error) { return Nothing{}, call(m, ctx, p) })
}

// get is a method with a result and without a parameter.
func get[R any](call func(hsm.Module, context.Context) (R, error)) method {
	return func(ctx context.Context, m hsm.Module, _ cbor.RawMessage) (any, error) { return call(m, ctx) }
}

// act is a method without a parameter and without a result.
func act(call func(hsm.Module, context.Context) error) method {
	return get(func(m hsm.Module, ctx context.Context) (Nothing, error) { return Nothing{}, call(m, ctx) })
}
