// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
)

const (
	// egressIdle is how long a connection to a server may be silent.
	egressIdle = 10 * time.Minute
	// egressLinger is the same when the server has ended it.
	egressLinger = 30 * time.Second
)

// errDenied says that an agent may not go somewhere.
var errDenied = errors.New("this agent may not go there")

// egress is what an agent may reach by a proxy.
type egress struct {
	rules []rule
	// Tests have others.
	resolver *net.Resolver
	public   func(netip.Addr) bool
}

// find reads where an agent wants to go, and checks that it may.
func (e *egress) find(s string) (target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return t, fmt.Errorf("%w: %w", errDenied, err)
	}
	if !slices.ContainsFunc(e.rules, func(r rule) bool { return r.covers(t) }) {
		return t, fmt.Errorf("%w: not on its list", errDenied)
	}
	return t, nil
}

// dial connects to a target that the list covers. What a name leads to is looked at
// for each address that is dialled, so that no answer of a name server counts that is
// not the one that is used.
func (e *egress) dial(ctx context.Context, t target) (*egressConn, error) {
	d := net.Dialer{Timeout: dialTimeout, Resolver: e.resolver}
	address := t.String()
	if t.name != "" {
		own, err := net.InterfaceAddrs()
		if err != nil {
			return nil, err
		}
		d.Control = func(_, address string, _ syscall.RawConn) error { return e.check(address, own) }
		// with a dot: not a name within this machine's own domain
		address = net.JoinHostPort(t.name+".", strconv.Itoa(int(t.port)))
	}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn := &egressConn{TCPConn: c.(*net.TCPConn)}
	conn.whenIdle(func() { _ = conn.TCPConn.Close() })
	return conn, nil
}

// check refuses an address that a name must not lead to: one that is not of the public
// internet, or is this machine's.
func (e *egress) check(address string, own []net.Addr) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", errDenied, err)
	}
	a, public := ap.Addr(), e.public
	if public == nil {
		public = ipclass.Public
	}
	if !public(a) {
		return fmt.Errorf("%w: its name leads to %s, which is not an address of the public internet", errDenied, a)
	}
	for _, o := range own {
		if n, ok := o.(*net.IPNet); ok && n.IP.Equal(net.IP(a.AsSlice())) {
			return fmt.Errorf("%w: its name leads to %s, which is the worker's own address", errDenied, a)
		}
	}
	return nil
}

// egressConn is a connection to a server, which counts.
type egressConn struct {
	*net.TCPConn
	idle           *time.Timer
	sent, received atomic.Int64
	closed         sync.Once
	onClose        func()
}

// whenIdle says what to do when the connection has been silent for too long, before
// it is used.
func (c *egressConn) whenIdle(f func()) {
	if c.idle != nil {
		c.idle.Stop()
	}
	c.idle = time.AfterFunc(egressIdle, f)
}

func (c *egressConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.count(&c.received, n)
	return n, err
}

func (c *egressConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.count(&c.sent, n)
	return n, err
}

func (c *egressConn) count(total *atomic.Int64, n int) {
	if n > 0 {
		total.Add(int64(n))
		c.idle.Reset(egressIdle)
	}
}

// Close implements net.Conn.
func (c *egressConn) Close() error {
	err := c.TCPConn.Close()
	c.idle.Stop()
	c.closed.Do(func() {
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}
