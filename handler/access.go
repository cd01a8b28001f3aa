// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
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
	return x.checkOrigin()
}

// exposed reports whether anyone on a network could send this request and
// nothing authenticates it.
func (x *exchange) exposed() bool {
	if len(x.h.keys) > 0 || x.h.open {
		return false
	}
	if x.repl != nil {
		if user, _ := x.repl.GetString("http.auth.user.id"); user != "" {
			return false
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

// authenticate checks the key, where keys are set. A wrong key is told from none.
func (x *exchange) authenticate() error {
	if len(x.h.keys) == 0 {
		return nil
	}
	values := x.r.Header.Values("Authorization")
	if len(values) != 1 {
		return errNoKey
	}
	scheme, key, ok := strings.Cut(values[0], " ")
	key = strings.Trim(key, " ") // any number of spaces may follow the scheme
	if !ok || !strings.EqualFold(scheme, "Bearer") || key == "" || strings.ContainsAny(key, " \t") {
		return errNoKey
	}
	if !x.h.keys.has(key) {
		return errWrongKey
	}
	return nil
}

// checkOrigin refuses what a web page of another machine has a browser send, for
// the browser may hold what lets it in. The page's own host is no excuse: with a
// name that resolves to loopback, any page can have the gateway's.
func (x *exchange) checkOrigin() error {
	if x.r.Method == http.MethodGet || x.r.Method == http.MethodHead {
		return nil
	}
	for _, origin := range x.r.Header.Values("Origin") {
		if !loopbackOrigin(origin) {
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
