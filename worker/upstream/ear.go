// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// maxSilence is how long a server that works may send nothing at all, on no connection, and
// not answer whether it is there: longer, and it hangs.
const maxSilence = time.Minute

// ear notes when something came from the server.
type ear struct {
	began time.Time
	last  atomic.Int64 // since began
}

// silence returns for how long nothing has come.
func (e *ear) silence() time.Duration {
	return time.Since(e.began) - time.Duration(e.last.Load())
}

// dialing returns dial with connections to which e listens.
func (e *ear) dialing(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &heardConn{c, e}, nil
	}
}

// dialFunc is that of http.Transport.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// heardConn is a connection to which an ear listens.
type heardConn struct {
	net.Conn
	ear *ear
}

// Read implements io.Reader.
func (c *heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.ear.last.Store(int64(time.Since(c.ear.began)))
	}
	return n, err
}

// SyscallConn implements syscall.Conn; see quietness.
func (c *heardConn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Interface guard
var _ syscall.Conn = (*heardConn)(nil)
