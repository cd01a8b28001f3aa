// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Expose is HTTP of this machine that gateways may reach, such as the metrics of a
// model server. What is not listed here cannot be reached.
type Expose struct {
	// URL is where the requests go, such as `http://127.0.0.1:9090`. Their paths are
	// added to its own. May hold placeholders. Required.
	URL string `json:"url,omitempty"`

	// Paths are those that may be reached, such as `/metrics`. One that ends with an
	// asterisk stands for all that begin so: `/ui/*`. `/v1`, `/agentfm` and
	// `/.well-known` are the worker's own. Required.
	Paths []string `json:"paths,omitempty"`
}

// exposed is an Expose that is in use.
type exposed struct {
	paths []string
	proxy *httputil.ReverseProxy
}

// exposeDial bounds the opening of a connection to what is exposed.
const exposeDial = 10 * time.Second

// provision makes a proxy of the settings. It opens nothing.
func (e *Expose) provision(repl *caddy.Replacer, log *zap.Logger) (*exposed, error) {
	text, err := repl.ReplaceOrErr(e.URL, true, true)
	if err != nil {
		return nil, err
	}
	to, err := url.Parse(text)
	if err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Host == "" {
		return nil, errors.New("want a URL such as http://127.0.0.1:9090")
	}
	if len(e.Paths) == 0 {
		return nil, errors.New("want the paths that may be reached")
	}
	for _, p := range e.Paths {
		plain, _ := strings.CutSuffix(p, "*")
		if !strings.HasPrefix(plain, "/") || strings.Contains(plain, "*") || plain != "/" && strings.TrimSuffix(plain, "/") != path.Clean(plain) {
			return nil, fmt.Errorf("%q is not a path such as /metrics or /ui/*", p)
		}
		for _, own := range []string{"/v1", "/agentfm", "/.well-known"} {
			if plain == own || strings.HasPrefix(plain, own+"/") {
				return nil, fmt.Errorf("%q is the worker's own", p)
			}
		}
	}
	return &exposed{paths: e.Paths, proxy: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				r.Out.Header[name] = r.In.Header[name] // as the gateway has it
			}
			r.Out.Header.Del("Cookie") // of the gateway's site
		},
		FlushInterval: -1,
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: exposeDial}).DialContext,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true,
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				log.Warn("what is exposed does not answer", zap.String("path", r.URL.Path), zap.Error(err))
			}
			w.WriteHeader(http.StatusBadGateway)
		},
		ErrorLog: errorLog(log),
	}}, nil
}

// allows reports whether a path may be reached. One that servers may read in two
// ways may not.
func (e *exposed) allows(u *url.URL) bool {
	p := u.Path
	if u.RawPath != "" || strings.Contains(p, "\\") || p != "/" && strings.TrimSuffix(p, "/") != path.Clean(p) {
		return false
	}
	for _, allowed := range e.paths {
		if begin, any := strings.CutSuffix(allowed, "*"); any && strings.HasPrefix(p, begin) || p == allowed {
			return true
		}
	}
	return false
}

// exposed serves what is none of the worker's own paths.
func (c *call) exposed() {
	g := c.a.active.Load()
	if g == nil || g.exposed == nil || !g.exposed.allows(c.r.URL) {
		c.refuse(&refusal{wire.RefusalRoute, fmt.Sprintf("This worker has nothing for %s at %.100s.", c.r.Method, c.r.URL.Path)})
		return
	}
	_ = c.rc.SetReadDeadline(time.Now().Add(mesh.TaskTimeout)) // of its body
	_ = c.rc.SetWriteDeadline(time.Time{})
	w := c.paced(nil)
	g.exposed.proxy.ServeHTTP(w, c.r)
	w.limit() // for the end of the answer
}
