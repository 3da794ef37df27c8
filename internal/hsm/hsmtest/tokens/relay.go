//go:build cgo

package tokens

import (
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// Relay forwards the connections of a Unix socket to another one, and injects faults of the connection.
type Relay struct {
	path, to string

	mu       sync.Mutex
	changed  *sync.Cond
	listener net.Listener
	conns    map[net.Conn]struct{}
	silent   bool
	waiting  int // connections that have data which the relay holds back
	cutAt    int // the number of responses after which the connections are cut; 0 for never
	closed   bool
}

func newRelay(t testing.TB, path, to string) *Relay {
	t.Helper()
	r := &Relay{path: path, to: to, conns: map[net.Conn]struct{}{}}
	r.changed = sync.NewCond(&r.mu)
	r.Listen(t)
	t.Cleanup(r.close)
	return r
}

// Listen makes the socket, if it does not exist.
func (r *Relay) Listen(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return
	}
	listener, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.listener = listener
	go r.accept(listener)
}

// RemoveSocket removes the socket, so that nothing can connect. Connections remain.
func (r *Relay) RemoveSocket() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		_ = r.listener.Close()
		r.listener = nil
	}
	_ = os.Remove(r.path)
}

// Cut closes all connections.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut()
}

func (r *Relay) cut() {
	for conn := range r.conns {
		_ = conn.Close()
	}
	clear(r.conns)
}

// CutInCall closes all connections instead of forwarding the nth piece of a response from now on: the server has run the call, and
// the client does not know.
func (r *Relay) CutInCall(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutAt = n
}

// CutPending returns whether the connections have not been cut since CutInCall.
func (r *Relay) CutPending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cutAt > 0
}

// Silence holds back all data until Resume. The connections remain.
func (r *Relay) Silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent = true
}

// Resume ends Silence.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent = false
	r.changed.Broadcast()
}

// AwaitHeldData waits until the relay holds back data of a connection.
func (r *Relay) AwaitHeldData(t testing.TB) {
	t.Helper()
	waitFor(t, time.Minute, "the relay holds back data", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.waiting > 0
	})
}

func (r *Relay) close() {
	r.RemoveSocket()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed, r.silent = true, false
	r.cut()
	r.changed.Broadcast()
}

func (r *Relay) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", r.to)
		if err != nil {
			_ = client.Close()
			continue
		}
		r.mu.Lock()
		r.conns[client], r.conns[server] = struct{}{}, struct{}{}
		r.mu.Unlock()
		go r.forward(client, server, false)
		go r.forward(server, client, true)
	}
}

// forward copies data until one side closes, and then closes both.
func (r *Relay) forward(from, to net.Conn, responses bool) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if n > 0 && r.pass(responses) {
			_, err = to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// pass waits while the relay is silent. It returns false if the connection was cut instead.
func (r *Relay) pass(response bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent {
		r.waiting++
		for r.silent {
			r.changed.Wait()
		}
		r.waiting--
	}
	if response && r.cutAt > 0 {
		if r.cutAt--; r.cutAt == 0 {
			r.cut()
			return false
		}
	}
	return !r.closed
}
