// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"net"
	"net/http"
	"sync"
)

// conns are the streams of mesh protocol 2. An agent that leaves closes its host,
// and with it goes what a gateway has not read yet. HTTP does not tell when an
// answer was read; the next request does, or the end of the stream, which gateways
// close when they see that the worker has closed its side.
type conns struct {
	mu      sync.Mutex
	leaving bool
	hasty   bool // answers that were written count as read
	open    map[net.Conn]*conn
}

// conn is one of them.
type conn struct {
	idle bool
	read []func() // to be called when the answers so far were read
}

func newConns() *conns { return &conns{open: make(map[net.Conn]*conn)} }

// state is the server's ConnState.
func (cs *conns) state(c net.Conn, s http.ConnState) {
	var read []func()
	cs.mu.Lock()
	e, ok := cs.open[c]
	switch {
	case s == http.StateNew:
		cs.open[c] = new(conn)
	case !ok:
	case s == http.StateActive:
		e.idle = false
		read, e.read = e.read, nil
	case s == http.StateIdle:
		if e.idle = true; cs.leaving {
			closeWrite(c)
		}
		if cs.hasty {
			read, e.read = e.read, nil
		}
	default:
		read = e.read
		delete(cs.open, c)
	}
	cs.mu.Unlock()
	callAll(read)
}

// callAll calls functions, for which nobody here waits: with the last task an agent may
// close, this stream included.
func callAll(read []func()) {
	for _, f := range read {
		go f()
	}
}

// whenRead has f called when the answer under way on a stream was read, or cannot
// be any more.
func (cs *conns) whenRead(c net.Conn, f func()) {
	cs.mu.Lock()
	e, ok := cs.open[c]
	if ok {
		e.read = append(e.read, f)
	}
	cs.mu.Unlock()
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
	for c, e := range cs.open {
		if leaving && e.idle {
			closeWrite(c)
		}
	}
}

// giveUp waits for no gateway any more to read what it has got.
func (cs *conns) giveUp() {
	var read []func()
	cs.mu.Lock()
	cs.hasty = true
	for _, e := range cs.open {
		if e.idle {
			read = append(read, e.read...)
			e.read = nil
		}
	}
	cs.mu.Unlock()
	callAll(read)
}

// closeWrite closes our side of a stream.
func closeWrite(c net.Conn) {
	if s, ok := c.(interface{ CloseWrite() error }); ok {
		_ = s.CloseWrite()
	}
}
