// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// maxKey is the length of the longest key, in bytes.
const maxKey = 512

// bearer returns the key that a request presents. Other headers, such as
// X-Api-Key, decide nothing: a request cannot present two keys. The error is
// errMissing where there is no attempt at all, else errMalformed.
func bearer(h http.Header) (string, *Error) {
	values := h.Values("Authorization")
	if len(values) == 0 || len(values) == 1 && values[0] == "" {
		return "", errMissing
	}
	if len(values) > 1 {
		return "", errMalformed
	}
	scheme, key, ok := strings.Cut(values[0], " ")
	key = strings.Trim(key, " ") // any number of spaces may follow the scheme
	if !ok || !strings.EqualFold(scheme, "Bearer") || key == "" || len(key) > maxKey || strings.ContainsAny(key, " \t") {
		return "", errMalformed
	}
	return key, nil
}

// Source returns the address that stands for a client, and its failures: as
// Caddy knows it, which heeds forwarding headers of trusted proxies only. One
// IPv6 host has a whole /64 of addresses, so that is one source.
//
// The zero value says that there is none, as on a Unix socket: who comes by that
// is a proxy before us, and all of its clients must not share one budget.
func Source(r *http.Request) netip.Addr {
	text, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	addr, err := netip.ParseAddr(text)
	if err != nil {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return netip.Addr{}
		}
		addr = peer.Addr()
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		return addr
	}
	prefix, err := addr.Prefix(64)
	if err != nil {
		return netip.Addr{}
	}
	return prefix.Addr()
}
