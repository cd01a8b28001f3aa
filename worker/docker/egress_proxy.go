// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// proxy is the HTTP proxy of one container: CONNECT for TLS, and requests for http
// URLs.
type proxy struct {
	egress    *egress
	forward   *httputil.ReverseProxy
	transport *http.Transport
	log       func() *zap.Logger

	lines, denials                fewLines // in the log
	conns, denied, sent, received atomic.Int64
}

func newProxy(e *egress, logger func() *zap.Logger) *proxy {
	p := &proxy{egress: e, log: logger}
	p.transport = linkTransport(func(ctx context.Context, _, address string) (net.Conn, error) {
		t, err := e.find(address)
		if err != nil {
			return nil, err
		}
		return p.dial(ctx, t)
	})
	p.forward = &httputil.ReverseProxy{
		Rewrite:       func(*httputil.ProxyRequest) {}, // to its own URL, without the headers that are for a proxy
		Transport:     p.transport,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.refuse(w, r, r.Host, err)
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return p
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.pass(w, r)
	default:
		http.Error(w, "this is a proxy: it takes CONNECT, and requests for http URLs", http.StatusBadRequest)
	}
}

// pass passes on a request for an http URL. Its host is that of the URL, as Go reads
// it; a header Host does not count.
func (p *proxy) pass(w http.ResponseWriter, r *http.Request) {
	address := r.URL.Host
	if r.URL.Port() == "" {
		address = net.JoinHostPort(r.URL.Hostname(), "80")
	}
	t, err := p.egress.find(address)
	if err != nil {
		p.refuse(w, r, address, err)
		return
	}
	r.URL.Host = strings.TrimSuffix(t.String(), ":80")
	r.Host = r.URL.Host
	r.Header.Del("Upgrade") // requests only
	p.forward.ServeHTTP(w, r)
}

// dial connects to a target, and has the log tell of it in the end.
func (p *proxy) dial(ctx context.Context, t target) (*egressConn, error) {
	c, err := p.egress.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	p.conns.Add(1)
	c.onClose = func() {
		sent, received := c.sent.Load(), c.received.Load()
		p.sent.Add(sent)
		p.received.Add(received)
		p.lines.write(p.log(), zap.DebugLevel, "the agent had a connection", zap.Stringer("to", t), zap.Stringer("address", c.RemoteAddr()),
			zap.Int64("sent", sent), zap.Int64("received", received), zap.Duration("duration", time.Since(began)))
	}
	return c, nil
}

// refuse answers a request that leads nowhere. Why, is not the agent's business.
func (p *proxy) refuse(w http.ResponseWriter, r *http.Request, to string, err error) {
	if errors.Is(err, errDenied) {
		p.deny(to, err)
		http.Error(w, "proxy: "+errDenied.Error(), http.StatusForbidden)
		return
	}
	if r.Context().Err() == nil {
		p.lines.write(p.log(), zap.DebugLevel, "the agent got no connection", zap.String("to", clip(to)), zap.Error(err))
	}
	http.Error(w, "proxy: the server does not answer", http.StatusBadGateway)
}

// deny counts and logs what an agent may not do.
func (p *proxy) deny(to string, err error) {
	p.denied.Add(1)
	p.denials.write(p.log(), zap.InfoLevel, "the agent wanted to go where it may not", zap.String("to", clip(to)), zap.Error(err))
}

// clip shortens what an agent has made up.
func clip(s string) string {
	const most = 256
	return s[:min(len(s), most)]
}

// Close implements io.Closer.
func (p *proxy) Close() error {
	p.transport.CloseIdleConnections()
	level := zap.DebugLevel
	if p.denied.Load() > logLines { // the log has not told of all
		level = zap.InfoLevel
	}
	p.log().Log(level, "the agent's connections", zap.Int64("count", p.conns.Load()), zap.Int64("denied", p.denied.Load()),
		zap.Int64("sent", p.sent.Load()), zap.Int64("received", p.received.Load()))
	return nil
}

// tunnel connects an agent to a server. To a name it lets TLS pass alone, and only for
// that name: a server may have others that are not on the list.
func (p *proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	t, err := p.egress.find(r.RequestURI) // to the letter
	if err != nil {
		p.refuse(w, r, r.RequestURI, err)
		return
	}
	server, err := p.dial(r.Context(), t)
	if err != nil {
		p.refuse(w, r, r.RequestURI, err)
		return
	}
	defer server.Close()
	agent, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer agent.Close()
	both := func() {
		_ = agent.Close()
		_ = server.Close()
	}
	server.whenIdle(both)
	defer context.AfterFunc(r.Context(), both)()
	if _, err := io.WriteString(agent, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	if t.name != "" {
		_ = agent.SetReadDeadline(time.Now().Add(helloTimeout))
		hello, err := readHello(buffered.Reader, t.name)
		if errors.Is(err, errDenied) {
			p.deny(t.String(), err)
		}
		if err != nil {
			return
		}
		_ = agent.SetReadDeadline(time.Time{})
		if _, err := server.Write(hello); err != nil {
			return
		}
	}
	join(agent, buffered, server)
}

// closeWriter is a connection that can end one of its directions.
type closeWriter interface{ CloseWrite() error }

// join copies both ways until both have ended.
func join(agent net.Conn, fromAgent io.Reader, server *egressConn) {
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(onlyWriter{server}, fromAgent)
		_ = server.CloseWrite()
	})
	_, _ = io.Copy(agent, onlyReader{server})
	if c, ok := agent.(closeWriter); ok {
		_ = c.CloseWrite()
	}
	server.idle.Reset(egressLinger)
	up.Wait()
}

// The two hide the ways around counting that a TCP connection has.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
