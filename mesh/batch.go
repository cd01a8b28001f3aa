// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
)

// muxer is libp2p's yamux over connections that write in one go what comes at one
// time. Yamux writes each frame by itself; with many requests under way that would be
// a TLS record and a system call for each.
type muxer struct{ *yamux.Transport }

// NewConn implements network.Multiplexer.
func (m muxer) NewConn(c net.Conn, server bool, scope network.PeerScope) (network.MuxedConn, error) {
	return m.Transport.NewConn(newBatchConn(c), server, scope)
}

const (
	// maxBatch is how much may wait to be written before who writes more waits too.
	maxBatch = 64 << 10
	// burst is how soon after the last write the next one comes when there are many.
	burst = 20 * time.Microsecond
	// batchCloseTimeout is how long the rest may take when the connection is closed.
	batchCloseTimeout = 100 * time.Millisecond
)

// batchConn is a connection on which, in a burst, Write returns before all is
// written: what is written meanwhile goes out together. A lone write is made at once,
// since to hand it to another goroutine costs. A write that fails closes the
// connection.
type batchConn struct {
	net.Conn

	mu      sync.Mutex
	changed sync.Cond // of what follows
	waiting *batch    // to be written; nil for nothing
	writing bool      // somebody writes
	last    time.Time // when the last write ended
	closed  bool
	err     error // of a write
}

// batch is what is written in one go.
type batch struct{ b []byte }

var batches = sync.Pool{New: func() any { return new(batch) }}

func newBatchConn(c net.Conn) *batchConn {
	b := &batchConn{Conn: c}
	b.changed.L = &b.mu
	return b
}

// Write implements io.Writer. The error may be that of an earlier write.
func (c *batchConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.waiting != nil && len(c.waiting.b) >= maxBatch && c.err == nil && !c.closed {
		c.changed.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closed:
		return 0, net.ErrClosed
	}
	if !c.writing && time.Since(c.last) > burst {
		return c.writeOne(p)
	}
	if c.waiting == nil {
		c.waiting = batches.Get().(*batch)
	}
	c.waiting.b = append(c.waiting.b, p...)
	if !c.writing {
		c.writing = true
		go c.writeAll()
	}
	return len(p), nil
}

// writeOne writes p. The caller holds the mutex.
func (c *batchConn) writeOne(p []byte) (int, error) {
	c.writing = true
	c.mu.Unlock()
	n, err := c.Conn.Write(p)
	c.mu.Lock()
	c.last, c.err = time.Now(), err
	if c.writing = c.waiting != nil && err == nil; c.writing {
		go c.writeAll()
	}
	c.changed.Broadcast()
	return n, err
}

// writeAll writes until nothing waits.
func (c *batchConn) writeAll() {
	for {
		runtime.Gosched() // let those write who are about to
		next := c.next()
		if next == nil {
			return
		}
		if _, err := c.Conn.Write(next.b); err != nil {
			c.fail(err)
			return
		}
		next.b = next.b[:0]
		batches.Put(next)
	}
}

// next returns what waits; nil when nothing does, and then nobody writes.
func (c *batchConn) next() *batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.waiting
	c.waiting = nil
	if next == nil {
		c.writing, c.last = false, time.Now()
	}
	c.changed.Broadcast()
	return next
}

// fail ends the connection, so that its reader hears of it too.
func (c *batchConn) fail(err error) {
	c.mu.Lock()
	c.writing, c.err, c.waiting = false, err, nil
	c.changed.Broadcast()
	c.mu.Unlock()
	_ = c.Conn.Close()
}

// SetWriteDeadline implements net.Conn. After Close, its own deadline stays: yamux may
// set one for a frame that comes too late, and Close would wait for that.
func (c *batchConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.Conn.SetWriteDeadline(t)
}

// Close writes what waits, if that takes but a moment, and closes the connection.
func (c *batchConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	if c.writing {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(batchCloseTimeout))
	}
	for c.writing {
		c.changed.Wait()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}
