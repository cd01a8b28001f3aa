// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// preflightAge is for how many seconds a browser may remember what a preflight
// said.
const preflightAge = "600"

// maxAskedHeaders is how many headers of one preflight are looked at.
const maxAskedHeaders = 100

// exposeHeaders are the headers of answers that a web page may read.
const exposeHeaders = "X-Request-Id, OpenAI-Processing-Ms, Retry-After, X-Should-Retry, Idempotent-Replayed, " +
	"X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests, " +
	"X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens, " +
	"X-AgentFM-Peer, X-AgentFM-Agent, X-AgentFM-Task, X-AgentFM-Attempts, X-AgentFM-Tier, X-AgentFM-Queue-Ms, " +
	headerTaskRun + ", " + headerTaskStatus + ", ETag, Repr-Digest, Content-Range, Content-Disposition"

// pageHeaders are the headers that a web page may send; a * stands for any end.
var pageHeaders = []string{
	"authorization", "content-type", "user-agent", "idempotency-key", "last-event-id", "range", "if-range", "x-api-key", "x-client-request-id",
	"openai-organization", "openai-project", "openai-beta", "x-stainless-*", "x-openwebui-*", "x-agentfm-*",
}

// parseOrigins reads the values of allow_origins.
func parseOrigins(values []string) (map[string]bool, error) {
	origins := make(map[string]bool)
	repl := caddy.NewReplacer()
	for _, value := range values {
		origin, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			return nil, err
		}
		if origin == "*" {
			return nil, errors.New("'*' would let every web page use what this machine or a user's browser may; name the origins")
		}
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || strings.ContainsAny(u.Host, "*, ") || u.Port() == "" && strings.HasSuffix(u.Host, ":") ||
			!strings.EqualFold(origin, u.Scheme+"://"+u.Host) {
			return nil, fmt.Errorf("'%s' is not an origin such as https://app.example.com:8443", origin)
		}
		if strings.ContainsFunc(origin, func(r rune) bool { return r > '~' }) {
			return nil, fmt.Errorf("'%s' is not in ASCII; browsers send xn--… for such a host", origin)
		}
		origins[foldOrigin(origin)] = true
	}
	return origins, nil
}

// foldOrigin returns an origin as it is compared: without the port that its
// scheme has anyway, as browsers send it.
func foldOrigin(origin string) string {
	origin = strings.ToLower(origin)
	for scheme, port := range map[string]string{"http://": ":80", "https://": ":443"} {
		if strings.HasPrefix(origin, scheme) {
			return strings.TrimSuffix(origin, port)
		}
	}
	return origin
}

// mayCall reports whether web pages of an origin may call: those of this machine
// and those that the configuration names.
func (h *Handler) mayCall(origin string) bool {
	return h.origins[foldOrigin(origin)] || loopbackOrigin(origin)
}

// shareAnswer lets the web page that sent the request read the answer, when it
// may call. The answer of any other stays hidden from it by its browser.
func (x *exchange) shareAnswer() {
	h := x.w.Header()
	h.Add("Vary", "Origin") // without one, too: a cache must not give its answer to a page
	origins := x.r.Header.Values("Origin")
	if len(origins) != 1 || !x.h.mayCall(origins[0]) {
		return
	}
	h.Set("Access-Control-Allow-Origin", origins[0])
	h.Set("Access-Control-Expose-Headers", exposeHeaders)
}

// preflight answers a question for what the route takes. To a web page that may
// not call it allows nothing.
func (x *exchange) preflight(rt route) error {
	h := x.w.Header()
	h.Set("Allow", rt.allow())
	if h.Get("Access-Control-Allow-Origin") != "" {
		h.Del("Access-Control-Expose-Headers") // is for answers
		h.Set("Access-Control-Allow-Methods", rt.allow())
		h.Set("Access-Control-Max-Age", preflightAge)
		if list := pageMaySend(x.r.Header.Values("Access-Control-Request-Headers")); list != "" {
			h.Set("Access-Control-Allow-Headers", list)
		}
	}
	x.w.WriteHeader(http.StatusNoContent)
	return nil
}

// pageMaySend returns those of the headers asked for that a web page may send.
func pageMaySend(asked []string) string {
	var out []string
	n := 0
	for name := range strings.SplitSeq(strings.Join(asked, ","), ",") {
		if n++; n > maxAskedHeaders {
			break
		}
		name = strings.ToLower(strings.TrimSpace(name))
		for _, allowed := range pageHeaders {
			begin, any := strings.CutSuffix(allowed, "*")
			if name == allowed && !any || any && strings.HasPrefix(name, begin) && isToken(name) {
				out = append(out, name)
				break
			}
		}
	}
	return strings.Join(out, ", ")
}

// isToken reports whether s is made of what names of our headers are made of.
func isToken(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
