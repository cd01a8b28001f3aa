// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// heartbeat sets the interval.
func heartbeat(d time.Duration) setting {
	return func(g *gate, _ *serverSettings) { g.h.Heartbeat = caddy.Duration(d) }
}

// heldTask returns a dispatch that waits until release is called.
func heldTask(sc script, err error) (dispatch func(context.Context, mesh.Call) (run, error), release func()) {
	c := make(chan struct{})
	return func(ctx context.Context, call mesh.Call) (run, error) {
		select {
		case <-c:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		return answers(sc)(ctx, call)
	}, func() { close(c) }
}

// open sends a request and returns the answer once its headers are there.
func open(t *testing.T, g *gate, body string) *http.Response {
	t.Helper()
	resp, err := http.Post(g.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// TestHeartbeat wants comments while nothing comes, each of one line, and events
// that are whole all the same.
func TestHeartbeat(t *testing.T) {
	f := new(fakeMesh)
	var release func()
	f.dispatch, release = heldTask(script{output: []string{"Hello"}}, nil)
	g := serve(t, f, heartbeat(5*time.Millisecond))
	resp := open(t, g, streaming(chatBody, false))
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
		t.Errorf("got %d, %v", resp.StatusCode, resp.Header)
	}
	r := bufio.NewReader(resp.Body)
	for range 3 {
		if line, err := r.ReadString('\n'); line != ": ping\n" {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	release()
	rest, _ := io.ReadAll(r)
	text := strings.ReplaceAll(string(rest), ": ping\n", "")
	if got := streamText(t, text); got != "Hello" || !strings.HasSuffix(text, "data: [DONE]\n\n") {
		t.Errorf("got %q", rest)
	}
}

// TestHeartbeatFailure wants a failure after a heartbeat to be an event, for the
// status is out.
func TestHeartbeatFailure(t *testing.T) {
	f := new(fakeMesh)
	var release func()
	f.dispatch, release = heldTask(script{}, wire.ErrTruncated)
	g := serve(t, f, heartbeat(5*time.Millisecond))
	resp := open(t, g, streaming(chatBody, false))
	release()
	b, _ := io.ReadAll(resp.Body)
	body := strings.ReplaceAll(string(b), ": ping\n", "")
	if resp.StatusCode != 200 || !strings.HasPrefix(body, `data: {"error":{"message":"the worker's output ended early"`) || strings.Contains(body, "DONE") {
		t.Errorf("got %d %q", resp.StatusCode, b)
	}
}

// TestNoHeartbeat wants the status to wait for the first output where heartbeats
// are off, and where the answer is not streamed.
func TestNoHeartbeat(t *testing.T) {
	for _, c := range []struct {
		interval time.Duration
		body     string
	}{
		{-1, streaming(chatBody, false)},
		{time.Millisecond, chatBody},
	} {
		f := new(fakeMesh)
		var release func()
		f.dispatch, release = heldTask(script{}, wire.ErrTruncated)
		g := serve(t, f, heartbeat(c.interval))
		time.AfterFunc(50*time.Millisecond, release) // time for a heartbeat to do harm
		g.do(t, "POST", "/v1/chat/completions", c.body).failed(t, 502, "worker_stream_failed")
	}
}

// TestHandleErrors wants errors of other handlers to have the form of the API.
func TestHandleErrors(t *testing.T) {
	h := new(Handler)
	if err := h.setUp(new(fakeMesh), nopLogger); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{caddyhttp.Error(429, nil), 429, "rate_limit_exceeded"},
		{caddyhttp.Error(401, io.EOF), 401, "unauthorized"},
		{caddyhttp.Error(403, io.EOF), 403, "forbidden"},
		{caddyhttp.Error(413, io.EOF), 413, "request_too_large"},
		{caddyhttp.Error(418, io.EOF), 418, "invalid_request_error"},
		{caddyhttp.Error(502, io.EOF), 502, "internal_error"},
		{io.EOF, 500, "internal_error"},
	} {
		srv := newErrorServer(t, h, c.err, "7")
		req, _ := http.NewRequest("POST", srv.URL+"/v1/chat/completions", strings.NewReader(chatBody))
		req.Header.Set("Origin", "http://localhost")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		a := answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
		a.failed(t, c.status, c.code)
		if resp.Header.Get("Retry-After") != "7" || strings.Contains(a.body, "EOF") {
			t.Errorf("got %v, %s", resp.Header, a.body)
		}
		if resp.Header.Get("Access-Control-Allow-Origin") != "http://localhost" {
			t.Errorf("a web page may not read it: %v", resp.Header)
		}
	}
}

// TestHandleRetryAfter wants no client to be asked to wait for longer than the official
// ones do.
func TestHandleRetryAfter(t *testing.T) {
	h := new(Handler)
	if err := h.setUp(new(fakeMesh), nopLogger); err != nil {
		t.Fatal(err)
	}
	const date = "Fri, 27 Nov 2026 05:00:00 GMT"
	for left, want := range map[string]string{"1": "1", "60": "60", "61": "60", "3600": "60", "": "", date: date} {
		g := &gate{Server: newErrorServer(t, h, caddyhttp.Error(429, nil), left)}
		a := g.do(t, "POST", "/v1/chat/completions", chatBody)
		a.failed(t, 429, "rate_limit_exceeded")
		if got := a.header.Get("Retry-After"); got != want {
			t.Errorf("%q became %q", left, got)
		}
	}
}

// TestHandleRefusals wants of whom the provider refuses what the handler would have
// answered, and a web page to be able to read it.
func TestHandleRefusals(t *testing.T) {
	client := newClient()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	provider := &auth.Provider{APIKeys: []string{"the-key-of-nobody-1"}}
	if err := provider.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	h := &Handler{AllowOrigins: []string{"https://app.example.com"}}
	if err := h.setUp(new(fakeMesh), nopLogger); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = client
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
		if _, ok, _ := provider.Authenticate(w, r); ok {
			t.Error("a wrong key is right")
		}
		r = r.WithContext(context.WithValue(r.Context(), caddyhttp.ErrorCtxKey, error(caddyhttp.Error(401, io.EOF))))
		if err := h.ServeHTTP(w, r, nil); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	g := &gate{Server: srv}
	const origin = "https://app.example.com"
	g.do(t, "GET", "/v1/models", "").failed(t, 401, "unauthorized")
	for range 30 {
		a := g.do(t, "GET", "/v1/models", "", "Authorization", "Bearer a-wrong-key-of-length", "Origin", origin)
		a.failed(t, 401, "invalid_api_key")
		if a.header.Get("Access-Control-Allow-Origin") != origin {
			t.Fatalf("got %v", a.header)
		}
	}
	a := g.do(t, "GET", "/v1/models", "", "Authorization", "Bearer the-key-of-nobody-1")
	a.failed(t, 429, "rate_limited")
	if a.header.Get("Retry-After") != "60" || a.header.Get("WWW-Authenticate") != "" {
		t.Errorf("got %v", a.header)
	}
}

// TestHeartbeatAtTheEnd has heartbeats come while an answer ends.
func TestHeartbeatAtTheEnd(t *testing.T) {
	f := natively("/v1/chat/completions", eventsType, 200, script{output: []string{"data: 1\n\n", "data: [DONE]\n\n"}, pause: 2 * time.Millisecond})
	g := serve(t, f, heartbeat(time.Millisecond))
	for range 100 {
		got := g.do(t, http.MethodPost, "/v1/chat/completions", streaming(chatBody, false))
		if text := strings.ReplaceAll(got.body, ": ping\n", ""); got.status != 200 || text != "data: 1\n\ndata: [DONE]\n\n" {
			t.Fatalf("got %d %q", got.status, got.body)
		}
	}
}
