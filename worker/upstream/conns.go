// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

// inlineBody is how large a body may be to be written before the answer is read. A
// larger one may not fit what the systems hold for a server that answers first.
const inlineBody = 64 << 10

// conns are the idle connections to a server. A request is written and its answer read
// by who asks: http.Transport has two goroutines for each connection, and to hand a
// request from one to the other costs more than to write it.
type conns struct {
	dial dialFunc
	addr string

	mu     sync.Mutex
	idle   []*serverConn // the one that was used last is the last
	sweep  *time.Timer   // closes those that nobody has used for long; nil while there are none
	closed bool          // none is kept until there is another request
}

// plainAddr returns where a server without TLS listens.
func plainAddr(base *url.URL) (string, bool) {
	addr, err := httpguts.PunycodeHostPort(net.JoinHostPort(base.Hostname(), cmp.Or(base.Port(), "80")))
	return addr, base.Scheme == "http" && err == nil
}

// serverConn is a connection to a server.
type serverConn struct {
	net.Conn
	of     *conns
	r      *bufio.Reader
	w      *bufio.Writer
	budget int // bytes that may still be read of the head of an answer; -1 for no limit
	quiet  func() bool
	reused bool
	since  time.Time // when it was used last
}

var errHeadTooLarge = errors.New("the head of the answer is too large")

// Read implements io.Reader.
func (c *serverConn) Read(p []byte) (int, error) {
	if c.budget < 0 {
		return c.Conn.Read(p)
	}
	if c.budget == 0 {
		return 0, errHeadTooLarge
	}
	n, err := c.Conn.Read(p[:min(len(p), c.budget)])
	c.budget -= n
	return n, err
}

// resendWithin is how soon after it was sent the failure of a request tells that the server had
// closed the connection before: later, it may have worked on it.
const resendWithin = time.Second

// roundTrip sends a request, whose body is no larger than inlineBody. The end of its
// context closes the connection. On a connection that was used before, a request that soon
// fails without an answer is sent again, once: the server had closed it, or does so now.
func (cs *conns) roundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	c, err := cs.get(ctx)
	if err != nil {
		return nil, err
	}
	sent := time.Now()
	resp, begun, err := c.ask(ctx, req)
	if err != nil && c.reused && !begun && ctx.Err() == nil && time.Since(sent) < resendWithin {
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		if c, err = cs.connect(ctx); err != nil {
			return nil, err
		}
		resp, _, err = c.ask(ctx, req)
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return resp, err
}

// earlyAnswer is how long an answer is waited for when the request could not be written to its
// end: a server that refuses it need not read it.
const earlyAnswer = 100 * time.Millisecond

// ask is roundTrip on one connection, which is closed when it fails. begun says that
// something was answered.
func (c *serverConn) ask(ctx context.Context, req *http.Request) (resp *http.Response, begun bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if err != nil {
			stop()
			_ = c.Close()
		}
	}()
	unsent := errors.Join(req.Write(c.w), c.w.Flush())
	if unsent != nil {
		_ = c.SetReadDeadline(time.Now().Add(earlyAnswer))
	}
	c.budget = maxHeader
	if _, err = c.r.Peek(1); err != nil {
		return nil, false, cmp.Or(unsent, err)
	}
	if unsent != nil {
		_ = c.SetReadDeadline(time.Time{})
	}
	for { // over answers of status 1xx, to which the budget belongs, too
		if resp, err = http.ReadResponse(c.r, req); err != nil {
			return nil, true, err
		}
		if resp.StatusCode < http.StatusContinue {
			return nil, true, fmt.Errorf("there is no status %d", resp.StatusCode)
		}
		if resp.StatusCode >= http.StatusOK || resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	c.budget = -1
	b := &serverBody{ReadCloser: resp.Body, c: c, stop: stop, last: unsent != nil || resp.Close || resp.StatusCode < http.StatusOK}
	if resp.Body == http.NoBody {
		b.end()
	} else {
		resp.Body = b
	}
	return resp, true, nil
}

// serverBody is the body of an answer. At its end the connection is free for the next
// request; closed before that, it is closed.
type serverBody struct {
	io.ReadCloser
	c    *serverConn // nil once that is over
	stop func() bool // ends the watch over the context
	last bool        // the connection is good for no other request
}

// Read implements io.Reader.
func (b *serverBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.end()
	}
	return n, err
}

// end gives the connection back.
func (b *serverBody) end() {
	c := b.c
	if b.c = nil; c == nil {
		return
	}
	if inTime := b.stop(); !inTime || b.last || c.r.Buffered() > 0 {
		_ = c.Close()
		return
	}
	c.of.put(c)
}

// Close implements io.Closer.
func (b *serverBody) Close() error {
	if b.c != nil {
		b.last = true
		b.end()
	}
	return nil
}

// get returns a connection: an idle one on which the server has sent nothing and which
// it has not closed, or else a new one.
func (cs *conns) get(ctx context.Context) (*serverConn, error) {
	for c := cs.pop(); c != nil; c = cs.pop() {
		if c.quiet() {
			c.reused = true
			return c, nil
		}
		_ = c.Close()
	}
	return cs.connect(ctx)
}

// connect returns a new connection.
func (cs *conns) connect(ctx context.Context) (*serverConn, error) {
	raw, err := cs.dial(ctx, "tcp", cs.addr)
	if err != nil {
		return nil, err
	}
	c := &serverConn{Conn: raw, of: cs, quiet: quietness(raw)}
	c.r, c.w = bufio.NewReaderSize(c, 4<<10), bufio.NewWriterSize(raw, 4<<10)
	return c, nil
}

// pop takes the connection that was used last; nil for none.
func (cs *conns) pop() *serverConn {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.closed = false
	n := len(cs.idle)
	if n == 0 {
		return nil
	}
	c := cs.idle[n-1]
	cs.idle[n-1] = nil
	cs.idle = cs.idle[:n-1]
	return c
}

// put keeps a connection for the next request.
func (cs *conns) put(c *serverConn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.closed || len(cs.idle) >= maxIdleConns {
		_ = c.Close()
		return
	}
	c.since = time.Now()
	cs.idle = append(cs.idle, c)
	if cs.sweep == nil {
		cs.sweep = time.AfterFunc(idleTimeout, cs.closeUnused)
	}
}

// closeUnused closes the idle connections that nobody has used for idleTimeout, and those that
// the server has closed.
func (cs *conns) closeUnused() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.closeIf(func(c *serverConn) bool { return time.Since(c.since) >= idleTimeout || !c.quiet() })
	if cs.sweep = nil; len(cs.idle) > 0 { // the one that was put first has waited the longest
		cs.sweep = time.AfterFunc(max(0, idleTimeout-time.Since(cs.idle[0].since)), cs.closeUnused)
	}
}

// closeIf closes the idle connections of which bad says so. The caller holds cs.mu.
func (cs *conns) closeIf(bad func(*serverConn) bool) {
	cs.idle = slices.DeleteFunc(cs.idle, func(c *serverConn) bool {
		if !bad(c) {
			return false
		}
		_ = c.Close()
		return true
	})
}

// closeIdle closes the idle connections, and those in use when that ends, until there is
// another request.
func (cs *conns) closeIdle() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.closed = true
	cs.closeIf(func(*serverConn) bool { return true })
	if cs.sweep != nil {
		cs.sweep.Stop()
		cs.sweep = nil
	}
}
