package process

import (
	"context"
	"net"
	"net/rpc"
	"sync"
	"time"
)

// connections are those from the parent to a child. A call has a connection of its own while it runs, so that the goroutine that
// waits for a reply reads it, and the goroutine that reads a request runs it: to hand a call to another goroutine may wake a thread,
// which takes longer than many calls into libraries.
type connections struct {
	control *net.UnixConn // over which the child gets its end of each new connection

	mu     sync.Mutex
	idle   []*codec
	closed bool
}

// maxIdle bounds the connections that are kept for the next calls.
const maxIdle = 16

// call calls a method of the child, until ctx is done. Errors: rpc.ServerError, *noConnectionError, and others, after which the child
// cannot be called again.
func (c *connections) call(ctx context.Context, method string, args, reply any) error {
	conn, err := c.get()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.conn.SetDeadline(time.Unix(0, 1)) }) // ends reads and writes in progress
	err = conn.call(method, args, reply)
	if interrupted := !stop(); interrupted || err != nil {
		_ = conn.Close()
		return err
	}
	c.put(conn)
	return nil
}

// get returns a connection that no call uses.
func (c *connections) get() (*codec, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, net.ErrClosed
	}
	if last := len(c.idle) - 1; last >= 0 {
		conn := c.idle[last]
		c.idle = c.idle[:last]
		c.mu.Unlock()
		return conn, nil
	}
	c.mu.Unlock()
	return c.connect()
}

// connect makes a new connection and sends its other end to the child.
func (c *connections) connect() (*codec, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, &noConnectionError{err}
	}
	_ = c.control.SetWriteDeadline(time.Now().Add(silentTime)) // a suspended child receives nothing
	err = sendFile(c.control, theirs)
	_ = theirs.Close()
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return newCodec(ours, maxReply), nil
}

// put keeps a connection for another call.
func (c *connections) put(conn *codec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= maxIdle {
		_ = conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// close closes the connections, each when its call has ended. The child takes that as the request to end.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	_ = c.control.Close()
	for _, conn := range c.idle {
		_ = conn.Close()
	}
	c.idle = nil
}

// noConnectionError is the error of a call that could not be made, because this process lacks files, for example.
type noConnectionError struct{ error }

func (e *noConnectionError) Unwrap() error { return e.error }

// serveConnections serves each connection that arrives over control, until the other side closes them all.
func serveConnections(server *rpc.Server, control *net.UnixConn) {
	var serving sync.WaitGroup
	for {
		conn, err := receiveConnection(control)
		if err != nil {
			break
		}
		serving.Go(func() { serve(server, newCodec(conn, maxReply)) })
	}
	serving.Wait()
}

// serve runs the requests of a connection, one after the other, until it is closed.
func serve(server *rpc.Server, requests *codec) {
	defer requests.Close()
	for server.ServeRequest(requests) == nil {
	}
}
