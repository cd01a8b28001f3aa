// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
)

// admit returns an error when the request must not be served: because nobody
// decided who may call, because it lacks a key, or because a foreign web page
// sent it. A question for the methods of a route needs no key.
func (x *exchange) admit(preflight bool) error {
	if x.exposed() {
		return errExposed
	}
	if preflight {
		return nil
	}
	if err := x.authenticate(); err != nil {
		return err
	}
	if err := x.checkOrigin(); err != nil {
		return err
	}
	return x.checkScope()
}

// exposed reports whether anyone on a network could send this request and
// nothing authenticates it.
func (x *exchange) exposed() bool {
	if x.h.keys != nil || x.h.open || x.user() != "" {
		return false
	}
	for _, name := range forwardHeaders { // a proxy on this machine speaks for another
		if len(x.r.Header.Values(name)) > 0 {
			return true
		}
	}
	switch addr := x.r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.UnixAddr:
		return false
	case *net.TCPAddr:
		return !addr.IP.IsLoopback() || !x.askedLocally()
	case *net.UDPAddr:
		return !addr.IP.IsLoopback() || !x.askedLocally()
	default: // unknown is no reason to trust
		return true
	}
}

// forwardHeaders are what proxies add to what they pass on.
var forwardHeaders = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"}

// askedLocally reports whether the client asked for this machine by a name that
// only this machine has. A browser does not when a page's own name was made to
// resolve to loopback, nor does one whose request a proxy on this machine passes on.
func (x *exchange) askedLocally() bool {
	host := x.r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return loopbackHost(strings.Trim(host, "[]"))
}

// user returns the user that an authentication handler before us established;
// empty for none. What it did not accept is in other placeholders, and what
// clients claim in headers is nobody's word.
func (x *exchange) user() string {
	if x.repl == nil {
		return ""
	}
	user, _ := x.repl.GetString("http.auth.user.id")
	return user
}

// authenticate finds out who sends the request: the user that Caddy established,
// where that counts, else the holder of a key, else anyone where no keys are set.
// A wrong key is told from none.
func (x *exchange) authenticate() error {
	if user := x.user(); x.h.keys == nil || x.h.TrustCaddyAuth && user != "" {
		x.identity = auth.Established(x.r, user)
		return nil
	}
	identity, err := x.h.keys.Check(x.r)
	if err != nil {
		return err
	}
	x.identity = identity
	if x.repl != nil { // for access logs and later handlers
		x.repl.Set("http.auth.user.id", identity.ID)
	}
	return nil
}

// checkScope refuses what the client's key does not cover: to read is its own
// right, but for what tasks say and leave, which belongs to running them, too.
func (x *exchange) checkScope() error {
	may := x.identity.MayRun()
	if x.r.Method == http.MethodGet || x.r.Method == http.MethodHead {
		may = x.identity.MayRead() || may && strings.HasPrefix(x.r.URL.Path+"/", "/api/tasks/")
	}
	if !may {
		return auth.ErrScope
	}
	return nil
}

// checkOrigin refuses what a web page of another machine has a browser send, for
// the browser may hold what lets it in, unless the configuration names the origin.
// The page's own host is no excuse: with a name that resolves to loopback, any
// page can have the gateway's.
func (x *exchange) checkOrigin() error {
	if x.r.Method == http.MethodGet || x.r.Method == http.MethodHead {
		return nil
	}
	for _, origin := range x.r.Header.Values("Origin") {
		if !x.h.mayCall(origin) {
			return errCrossOrigin
		}
	}
	return nil
}

// loopbackOrigin reports whether an origin is of this machine. Desktop shells
// have schemes of their own, and hosts such as tauri.localhost.
func loopbackOrigin(origin string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	return loopbackHost(u.Hostname())
}

// loopbackHost reports whether a host name is this machine's and no other's.
func loopbackHost(host string) bool {
	host = strings.ToLower(host)
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// replacer returns the request's replacer; nil outside of Caddy.
func replacer(r *http.Request) *caddy.Replacer {
	repl, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	return repl
}
