// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/http"
	"net/textproto"
	"strings"
)

// requestHeader returns the headers of a request that the server gets.
func requestHeader(h http.Header) http.Header {
	out := make(http.Header, len(h)+2) // Authorization and Idempotency-Key
	hops := hopTokens(h)
	for name, values := range h {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if !hops[name] && !hopByHop(name) && !private(name) {
			out[name] = values
		}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = []string{""} // none, not Go's
	}
	return out
}

// responseHeader adds to dst the headers of an answer that the client gets.
func responseHeader(dst, h http.Header) {
	hops := hopTokens(h)
	for name, values := range h {
		if !hops[name] && !hopByHop(name) && !ours(name) {
			dst[name] = values
		}
	}
}

// hopByHop reports whether a header is for one connection.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect":
		return true
	}
	return false
}

// private reports whether a header of a request is none of the server's business:
// credentials for us, where the request came from, and what only we and the gateway
// tell each other. Whether a web page may call has been decided, and by its origin
// some servers would decide otherwise.
func private(name string) bool {
	switch name {
	case "Authorization", "Api-Key", "X-Api-Key", "Cookie", "Content-Length", "Host", "Origin", "Referer",
		"Forwarded", "Via", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "Cf-Connecting-Ip":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-") || meshOwn(name)
}

// ours reports whether a header of an answer is not the server's to set: it would
// count for the gateway, or tell where the server is.
func ours(name string) bool {
	switch name {
	case "Set-Cookie", "Server", "Via", "Alt-Svc", "Location", "Www-Authenticate", "Strict-Transport-Security":
		return true
	}
	return strings.HasPrefix(name, "Access-Control-") || meshOwn(name)
}

// meshOwn reports whether a header is one of AgentFM's.
func meshOwn(name string) bool {
	return strings.HasPrefix(name, "X-Agentfm-") || strings.HasPrefix(name, "Agentfm-")
}

// hopTokens returns the headers that the header Connection names.
func hopTokens(h http.Header) map[string]bool {
	values := h["Connection"]
	if len(values) == 0 {
		return nil
	}
	hops := make(map[string]bool)
	for _, value := range values {
		for token := range strings.SplitSeq(value, ",") {
			hops[textproto.CanonicalMIMEHeaderKey(textproto.TrimString(token))] = true
		}
	}
	return hops
}
