// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"net"
	"net/http"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
)

// conns are the streams of mesh protocol 2. An agent that leaves closes its host,
// and with it goes what a gateway has not read yet. HTTP does not tell when an
// answer was read; the next request does, or the end of the stream, which gateways
// close when they see that the worker has closed its side.
//
// A request can be on its way to a stream whose side we close. Nothing of it is
// begun, and the gateway may send it again: so a stream on which work was begun and
// broken off is reset, and not closed.
type conns struct {
	mu      sync.Mutex
	leaving bool
	hasty   bool // answers that were written count as read
	open    map[*conn]struct{}
}

// stream is what a connection of the server is.
type stream interface {
	net.Conn
	Conn() network.Conn
	Scope() network.StreamScope
	CloseWrite() error
	Reset() error
}

// conn is a connection of the server.
type conn struct {
	stream
	of *conns

	idle    bool
	ended   bool     // our side is closed
	working bool     // on a request that has not been answered
	read    []func() // to be called when the answers so far were read
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.mu.Lock()
	working := c.working
	c.of.mu.Unlock()
	if working {
		return c.Reset()
	}
	return c.stream.Close()
}

func newConns() *conns { return &conns{open: make(map[*conn]struct{})} }

// listener has the streams of a listener watched.
type listener struct {
	net.Listener
	conns *conns
}

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{stream: c.(stream), of: l.conns}, nil
}

// state is the server's ConnState.
func (cs *conns) state(nc net.Conn, s http.ConnState) {
	c := nc.(*conn)
	var read []func()
	cs.mu.Lock()
	switch s {
	case http.StateNew:
		cs.open[c] = struct{}{}
	case http.StateActive:
		c.idle = false
		read, c.read = c.read, nil
	case http.StateIdle:
		if c.idle = true; cs.leaving {
			c.end()
		}
		if cs.hasty {
			read, c.read = c.read, nil
		}
	default:
		read, c.read = c.read, nil
		delete(cs.open, c)
	}
	cs.mu.Unlock()
	callAll(read)
}

// begin notes that a request is worked on; false when it came too late.
func (c *conn) begin() bool {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.working = !c.ended
	return c.working
}

// answered notes that the answer to the request was written.
func (c *conn) answered() {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.working = false
}

// end closes our side.
func (c *conn) end() {
	c.ended = true
	_ = c.CloseWrite()
}

// callAll calls functions, for which nobody here waits: with the last task an agent
// may close, and the stream with it.
func callAll(read []func()) {
	for _, f := range read {
		go f()
	}
}

// whenRead has f called when the answer under way was read, or cannot be any more.
func (c *conn) whenRead(f func()) {
	c.of.mu.Lock()
	_, ok := c.of.open[c]
	if ok {
		c.read = append(c.read, f)
	}
	c.of.mu.Unlock()
	if !ok {
		go f()
	}
}

// leave has gateways close the streams that they do not use, or lets them keep
// these again.
func (cs *conns) leave(leaving bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.leaving = leaving
	for c := range cs.open {
		if leaving && c.idle && !c.ended {
			c.end()
		}
	}
}

// giveUp waits for no gateway any more to read what it has got.
func (cs *conns) giveUp() {
	var read []func()
	cs.mu.Lock()
	cs.hasty = true
	for c := range cs.open {
		if c.idle {
			read = append(read, c.read...)
			c.read = nil
		}
	}
	cs.mu.Unlock()
	callAll(read)
}
