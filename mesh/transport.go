// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

func init() {
	caddy.RegisterModule(&Transport{})
}

// Transport lets Caddy's `reverse_proxy` reach HTTP that a worker of the mesh
// chooses to serve: what its agent has under `expose`, to the gateways that it
// allows. The upstream is a peer id, or the name of an agent; of several agents of
// that name it is the one with the least to do. Any worker may take any name, and sees
// what clients send: where that is a password of the site or a cookie, take it out with
// `header_up`, and name a peer id.
//
//	reverse_proxy <peer id or agent name> {
//		transport agentfm
//	}
//
// An answer must begin within ten minutes, and go on within as long. Protocols that
// a connection is upgraded to, such as WebSocket, are not carried.
type Transport struct {
	app *App
}

// CaddyModule returns the Caddy module information.
func (*Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.agentfm",
		New: func() caddy.Module { return new(Transport) },
	}
}

// Provision says that the node is needed.
func (t *Transport) Provision(ctx caddy.Context) error {
	app, err := ctx.App("agentfm")
	if err != nil {
		return fmt.Errorf("loading app agentfm: %w", err)
	}
	t.app = app.(*App)
	t.app.Use()
	return nil
}

// UnmarshalCaddyfile reads the transport, which has no options.
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{}.Unmarshal(d)
}

// Errors of the transport.
var (
	errNoSuchWorker = errors.New("no worker of that peer id or agent name is online that speaks HTTP over the mesh")
	errUpgrade      = errors.New("the worker wants to change the protocol")
)

// transportPatience is how long an answer may be silent.
const transportPatience = 10 * time.Minute

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	lease, err := t.app.Lease()
	if err != nil {
		closeBody(r)
		return nil, err
	}
	resp, err := lease.roundTrip(r)
	if err != nil {
		lease.Release()
		return nil, err
	}
	return resp, nil
}

// roundTrip sends the request, and gives the lease up with the body of the answer.
func (l *Lease) roundTrip(r *http.Request) (*http.Response, error) {
	name := r.URL.Hostname()
	if name == "" {
		name = r.URL.Host
	}
	slot, err := l.node.directory.router.Visit(&router.Request{Model: name})
	if err != nil || !slot.Worker.HTTP || slot.Tier == router.TierModel {
		closeBody(r)
		return nil, fmt.Errorf("%q: %w", name, errNoSuchWorker)
	}
	id, err := l.node.directory.id(slot.Worker.Peer)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	x, err := l.node.streams.exchange(r.Context(), id, streamed(r), time.Now().Add(transportPatience))
	if err != nil {
		closeBody(r)
		return nil, err
	}
	if x.resp.StatusCode == http.StatusSwitchingProtocols {
		x.end(false)
		return nil, errUpgrade
	}
	if refused := wire.Refusal(x.resp.Header.Get(wire.HeaderRefusal)); refused == wire.RefusalUnavailable || refused == wire.RefusalForbidden {
		defer x.end(false)
		return nil, x.refusal()
	}
	x.resp.Header.Del(wire.HeaderLoad)
	x.resp.Header.Del(wire.HeaderRefusal)
	x.resp.Body = &transportBody{x: x, body: x.resp.Body, lease: l}
	x.resp.Request = r
	return x.resp, nil
}

// streamed returns a request whose body is sent as it comes.
func streamed(r *http.Request) *httpRequest {
	q := &httpRequest{method: r.Method, idempotent: r.Body == nil && (r.Method == http.MethodGet || r.Method == http.MethodHead)}
	out := r.Clone(r.Context())
	out.Header.Del("Connection")
	out.Header.Del("Upgrade")
	q.stream = func(w *bufio.Writer) error {
		defer closeBody(r)
		return out.Write(w)
	}
	q.hasBody = r.Body != nil && r.Body != http.NoBody
	return q
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// transportBody is the body of an answer.
type transportBody struct {
	x     *exchange
	body  io.ReadCloser
	lease *Lease
	whole bool
	once  sync.Once
}

// Read implements io.Reader.
func (b *transportBody) Read(p []byte) (int, error) {
	b.x.limit(time.Now().Add(transportPatience))
	n, err := b.body.Read(p)
	if err == io.EOF {
		b.whole = true
	}
	return n, err
}

// Close implements io.Closer.
func (b *transportBody) Close() error {
	b.once.Do(func() {
		b.x.end(b.whole)
		b.lease.Release()
	})
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Transport)(nil)
	_ http.RoundTripper     = (*Transport)(nil)
	_ caddyfile.Unmarshaler = (*Transport)(nil)
)
