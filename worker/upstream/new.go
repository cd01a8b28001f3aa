// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// Settings are those of a server that another runtime looks after, and that no
// address of this machine leads to.
type Settings struct {
	// Port is where the server listens; it is not dialled, but the server may read it.
	Port int
	// Dial connects to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Models, Rename and Routes are as those of [Runtime].
	Models []string
	Rename map[string]string
	Routes []string
	// Logger is that of the runtime that looks after the server.
	Logger *zap.Logger
}

// New returns a runtime for a server that is reached through s.Dial alone. It has
// been provisioned, and no key, and is yet to be validated and prepared.
func New(s Settings) *Runtime {
	r := &Runtime{
		Models: s.Models, Rename: s.Rename, Routes: s.Routes,
		HealthInterval: caddy.Duration(defaultHealthInterval),
		logger:         s.Logger,
		base:           &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)), Path: apiPrefix},
		key:            &apiKey{logger: s.Logger},
	}
	r.open(func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Dial(ctx) })
	return r
}

// Look has the server looked after now, and not at the next interval: there is
// reason to think that it is another one than it was.
func (r *Runtime) Look() {
	r.replaced.Store(true)
	r.wake()
}

// Refuse answers a request as one that found no server: another worker may serve it.
func Refuse(w http.ResponseWriter) { refuse(w, textUnreachable) }

// open makes what requests need, and returns how they reach the server. It connects to
// nothing.
func (r *Runtime) open(dial dialFunc) dialFunc {
	r.ear.began = time.Now()
	dial = r.ear.dialing(dial)
	r.doubt = make(chan struct{}, 1)
	r.askTimeout, r.probeInterval, r.maxSilence = askTimeout, probeInterval, maxSilence
	r.transport = &http.Transport{
		DialContext:            dial,
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConnsPerHost:    maxIdleConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // what the client did not ask for, it may not read
	}
	return dial
}
