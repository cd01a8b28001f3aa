// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// The HTTP app may start before ours. A request that comes then is told to come
// again.
func TestRequestBeforeStart(t *testing.T) {
	s := newServer(t)
	var c caddy.Config
	if err := caddy.StrictUnmarshalJSON(oneAgent("hello").json(t, s.place), &c); err != nil {
		t.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(&c) // nothing is started
	if err != nil {
		t.Fatal(err)
	}
	app, err := ctx.App("http")
	if err != nil {
		t.Fatal(err)
	}
	site := app.(*caddyhttp.App).Servers["srv0"]
	for _, r := range []struct{ method, path, body string }{
		{http.MethodGet, "/health", ""},
		{http.MethodGet, "/api/workers", ""},
		{http.MethodGet, "/v1/models", ""},
		{http.MethodGet, "/v1/models/echo", ""},
		{http.MethodGet, "/api/tasks/task_1/artifacts", ""},
		{http.MethodPost, "/v1/chat/completions", `{"model":"echo","messages":[{"role":"user","content":"now"}]}`},
		{http.MethodPost, "/v1/completions", `{"model":"echo","prompt":"now","stream":true}`},
		{http.MethodPost, "/api/execute", `{"worker_id":"12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL","prompt":"now"}`},
	} {
		req := httptest.NewRequest(r.method, r.path, strings.NewReader(r.body))
		req.Host = "localhost"
		local := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.place.port}
		req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, local))
		w := httptest.NewRecorder()
		site.ServeHTTP(w, req)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s %s: status %d, Retry-After %q: %s", r.method, r.path, w.Code, w.Header().Get("Retry-After"), w.Body)
		}
	}
}
