// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

// Limits of one attempt. All that a receiver sends counts, TLS and headers too.
const (
	postTimeout = 15 * time.Second
	maxAnswer   = 64 << 10
)

// poster sends webhooks.
type poster struct {
	client    *http.Client
	transport *http.Transport
	dialer    *net.Dialer
	timeout   time.Duration // of an attempt
}

// newPoster returns one that goes through no proxy and follows no redirect, and looks at
// each address that it dials. It speaks HTTP/1.1, in which no more comes than is asked for.
func newPoster(timeout time.Duration) *poster {
	d := &net.Dialer{Timeout: timeout, ControlContext: checkAddress}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &limitedConn{c, maxAnswer}, nil
		},
		TLSHandshakeTimeout: timeout, DisableKeepAlives: true, DisableCompression: true,
	}
	return &poster{timeout: timeout, transport: t, dialer: d, client: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// close closes what is open.
func (p *poster) close() { p.transport.CloseIdleConnections() }

// post makes one attempt. wait is what the receiver asks for.
func (p *poster) post(ctx context.Context, r *Record, s *webhook.Signer, now time.Time) (status int, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if err := CheckURL(r.Webhook.URL); err != nil {
		return 0, 0, err
	}
	body, err := r.body()
	if err != nil {
		return 0, 0, err
	}
	refused := new(atomic.Bool)
	ctx = context.WithValue(ctx, refusedKey{}, refused)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Webhook.URL, bytes.NewReader(body))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrURL, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "caddy-agentfm")
	s.Sign(req.Header, "msg_"+r.ID, now, body)
	resp, err := p.client.Do(req)
	if err != nil {
		if refused.Load() { // one of several addresses, perhaps not the one of the error
			err = fmt.Errorf("%w: %w", ErrURL, err)
		}
		return 0, 0, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // the status is the answer; this is polite
	return resp.StatusCode, retryAfterOf(resp.Header, now), nil
}

// limitedConn is a connection of which so much is read and no more.
type limitedConn struct {
	net.Conn
	left int
}

// Read implements net.Conn.
func (c *limitedConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errAnswer
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// errAnswer says that a receiver answers with too much.
var errAnswer = errors.New("the answer is too long")

// refusedKey is the key of what notes in a context that an address was refused.
type refusedKey struct{}

// checkAddress refuses to dial what is not on the public internet, whatever name led there.
func checkAddress(ctx context.Context, _, address string, _ syscall.RawConn) error {
	if privateAllowed() {
		return nil
	}
	ap, err := netip.ParseAddrPort(address)
	if err == nil && ipclass.Public(ap.Addr()) && (ap.Port() == 443 || !ownAddress(ap.Addr())) {
		return nil
	}
	if refused, ok := ctx.Value(refusedKey{}).(*atomic.Bool); ok {
		refused.Store(true)
	}
	return fmt.Errorf("%w: it leads to an address that is not on the public internet", ErrURL)
}

// ownAddresses returns the addresses of this machine. A variable for tests.
var ownAddresses = net.InterfaceAddrs

// ownAddress reports whether an address is one of this machine's: a firewall before the
// machine does not see what comes from itself. What it serves to everyone is at port 443.
func ownAddress(a netip.Addr) bool {
	own, err := ownAddresses()
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap() == a.Unmap() {
			return true
		}
	}
	return err != nil
}
