package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyconvoy/keyconvoy/internal/hsm"
	"github.com/keyconvoy/keyconvoy/internal/hsm/pins"
)

const (
	// startTime bounds the start of a child, without the initialization of the library.
	startTime = 30 * time.Second
	// stopTime is how long a child may take to finalize the library.
	stopTime = 5 * time.Second
	// A child that does not answer a ping for silentTime is killed: it may have been suspended.
	pingInterval = 10 * time.Second
	silentTime   = 30 * time.Second
)

// child is a child process, as its parent knows it.
type child struct {
	library *library
	process *os.Process
	calls   *connections
	parent  *parentServer
	calling atomic.Uint64 // the last call of a module's method
	hang    atomic.Pointer[HangReport]
	silent  atomic.Bool
	stops   atomic.Bool // the operator stops the child
	file    string      // of the library, without symbolic links

	done    chan struct{} // closed when the process has ended
	cause   string        // of the end, for the metric; set before done is closed
	failure *hsm.Error    // of calls after the end; set before done is closed

	mu      sync.Mutex
	modules map[uint64]*module
	last    uint64
}

// startChild starts a child and waits until it has restricted itself.
func startChild(ctx context.Context, l *library, allowed Library) (*child, *hsm.Error) {
	c := &child{library: l, done: make(chan struct{}), modules: map[uint64]*module{}, file: allowed.Path}
	if file, err := filepath.EvalSymlinks(allowed.Path); err == nil {
		c.file = file
	}
	c.parent = newParentServer(c)
	control, requests, err := c.spawn(allowed)
	if err != nil {
		return nil, hsm.Wrap(hsm.Unavailable, err, fmt.Sprintf("the process of PKCS#11 library %q cannot be started; see the operator's log", l.name))
	}
	c.calls = &connections{control: control}
	go c.serveParent(requests)
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	var reply StartReply
	startErr := c.call(ctx, "Start", &StartRequest{Library: allowed}, &reply)
	if startErr == nil {
		startErr = reply.Error.decode()
	}
	if startErr != nil {
		c.kill()
		<-c.done
		c.calls.close()
		return nil, startErr
	}
	l.log.Info("Started the process of a PKCS#11 library", "pid", c.process.Pid, "notInEffect", reply.Missing)
	go c.watch() //nolint:gosec // until the child ends
	return c, nil
}

// spawn starts the process. It returns the connection over which the process gets others for calls to it, and the one for requests
// from it.
func (c *child) spawn(allowed Library) (control, requests *net.UnixConn, err error) {
	options := &c.library.provider.options
	control, childControl, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	requests, childRequests, err := socketPair()
	if err != nil {
		return nil, nil, errors.Join(err, control.Close(), childControl.Close())
	}
	cmd := exec.Command(options.Command[0], append(options.Command[1:len(options.Command):len(options.Command)], c.library.name)...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = environment(os.Environ(), allowed.Environment)
	// A library may write to its standard output, which is the audit log of the operator.
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{childControl, childRequests}
	started := make(chan error, 1)
	go c.run(cmd, started)
	err = <-started
	err = errors.Join(err, childControl.Close(), childRequests.Close())
	if err != nil {
		return nil, nil, errors.Join(err, control.Close(), requests.Close())
	}
	return control, requests, nil
}

// serveParent answers the requests of the child, one after the other, so that a child cannot make its parent do much at a time.
func (c *child) serveParent(conn net.Conn) {
	server := rpc.NewServer()
	if err := server.RegisterName(parentService, c.parent); err != nil {
		panic(err) // a method that net/rpc does not accept: a mistake in this package
	}
	serve(server, newCodec(conn, maxRequest))
}

// end records why the process ended.
func (c *child) end(state *os.ProcessState, err error) {
	how := "ended"
	switch hang := c.hang.Load(); {
	case hang != nil:
		how, c.cause = fmt.Sprintf("was ended, because %s did not return within %s", hang.Function, hang.After), "hang"
	case c.stops.Load():
		how, c.cause = fmt.Sprintf("was ended, because it did not finalize the library within %s", stopTime), "hang"
	case c.silent.Load():
		how, c.cause = fmt.Sprintf("was ended, because it did not respond for %s", silentTime), "silent"
	case state != nil:
		how, c.cause = describeEnd(state)
	}
	c.failure = hsm.Wrap(hsm.Unavailable, err, fmt.Sprintf("the process of PKCS#11 library %q %s", c.library.name, how))
	close(c.done)
}

// call calls a method of the child. Its errors are that ctx is done, and those of the connection: the child has ended, or it ends now.
func (c *child) call(ctx context.Context, method string, args, reply any) *hsm.Error {
	err := c.calls.call(ctx, childService+"."+method, args, reply)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return timeoutError(ctx.Err())
	}
	var refused rpc.ServerError
	if errors.As(err, &refused) {
		return hsm.Wrap(hsm.Internal, errors.New(harmless(refused.Error())), "")
	}
	var noConnection *noConnectionError
	if errors.As(err, &noConnection) {
		return hsm.Wrap(hsm.Unavailable, err, fmt.Sprintf("the operator cannot connect to the process of PKCS#11 library %q; see its log", c.library.name))
	}
	// The connection ends with the process, or before it.
	if !c.stops.Load() {
		c.kill()
	}
	<-c.done
	return c.failure
}

// watch kills a child that does not respond at all.
func (c *child) watch() {
	for {
		select {
		case <-time.After(pingInterval):
		case <-c.done:
			return
		}
		if c.stops.Load() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), silentTime)
		_ = c.call(ctx, "Ping", &Nothing{}, &Nothing{})
		if ctx.Err() != nil && !c.stops.Load() {
			c.silent.Store(true)
			c.kill()
		}
		cancel()
	}
}

func (c *child) kill() { _ = c.process.Kill() }

// stop has the child finalize the library and end, and waits for the end. It returns whether it had to kill the child.
func (c *child) stop() (killed bool) {
	c.stops.Store(true)
	c.calls.close()
	select {
	case <-c.done:
		return false
	case <-time.After(stopTime):
		c.kill()
		<-c.done
		return true
	}
}

// ended returns whether the process has ended.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// newModule adds a module to those of the child.
func (c *child) newModule(cfg hsm.Config) *module {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	m := &module{child: c, id: c.last, origin: cfg.PINOrigin, pins: cfg.PINs, lost: cfg.Lost}
	c.modules[m.id] = m
	return m
}

func (c *child) module(id uint64) *module {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.modules[id]
}

// remove removes a module, which is then not reported as lost.
func (c *child) remove(m *module) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.modules, m.id)
}

// loseModules tells the callers of all open modules that they are lost.
func (c *child) loseModules() {
	c.mu.Lock()
	lost := c.modules
	c.modules = map[uint64]*module{}
	c.mu.Unlock()
	for _, m := range lost {
		if m.lost != nil && m.opened.Load() {
			m.lost(c.failure)
		}
	}
}

// parentServer answers the requests of a child.
type parentServer struct {
	child *child

	mu       sync.Mutex
	attempts map[uint64]pins.Attempt
	last     uint64
}

func newParentServer(c *child) *parentServer {
	return &parentServer{child: c, attempts: map[uint64]pins.Attempt{}}
}

var errNoModule = errors.New("the module is closed")

// maxAttempts is more than the key stores of a library that log in at a time.
const maxAttempts = 1024

// BeginPIN asks the authority of the module whether a PIN may be tried. A child speaks for the tokens of its library only: otherwise
// one that an attacker controls could record wrong PINs of others' tokens.
func (s *parentServer) BeginPIN(req PINRequest, reply *PINReply) error {
	defer req.PIN.Wipe()
	m := s.child.module(req.Module)
	if m == nil || req.Token.Library != s.child.file {
		return errNoModule
	}
	ctx, cancel := context.WithTimeout(context.Background(), pinTime)
	defer cancel()
	attempt, err := m.authority().Begin(ctx, pins.Presented{Token: req.Token, Origin: m.origin, PIN: []byte(req.PIN)}, req.Asked)
	if err != nil {
		reply.Refusal = err.Error()
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.attempts) >= maxAttempts {
		return errNoModule
	}
	s.last++
	s.attempts[s.last] = attempt
	reply.Attempt = s.last
	return nil
}

// EndPIN records the outcome of an attempt. If the child ends without a call, the guess counts.
func (s *parentServer) EndPIN(req PINOutcome, _ *Nothing) error {
	s.mu.Lock()
	attempt := s.attempts[req.Attempt]
	delete(s.attempts, req.Attempt)
	s.mu.Unlock()
	if attempt != nil {
		ctx, cancel := context.WithTimeout(context.Background(), pinTime)
		defer cancel()
		attempt.End(ctx, req.Outcome)
	}
	return nil
}

// functionName matches what the watchdog reports. A child that an attacker controls could report any text, for a condition.
var functionName = regexp.MustCompile(`^(C_[A-Za-z]{1,32}|dlopen)$`)

// Hang ends a child in which a call hangs.
func (s *parentServer) Hang(report HangReport, _ *Nothing) error {
	if functionName.MatchString(report.Function) {
		s.child.hang.CompareAndSwap(nil, &report)
	}
	s.child.kill()
	return nil
}
