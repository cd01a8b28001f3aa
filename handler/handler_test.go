// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/go-json-experiment/json"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) {
	_ = os.Unsetenv("AGENTFM_ALLOW_UNAUTH_PUBLIC")
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) // packages that we import start some
}

// nopLogger logs nothing.
var nopLogger = zap.NewNop()

// gate is a running server with a handler.
type gate struct {
	*httptest.Server
	h    *Handler
	mesh *fakeMesh
	repl chan *caddy.Replacer // of each request that ended
	next int                  // requests that were handed on
}

// setting changes how a gate is set up.
type setting func(g *gate, s *serverSettings)

type serverSettings struct {
	logger *zap.Logger
	local  net.Addr // as the server reports its own address
	user   string   // as an authentication handler leaves it
	http2  bool
}

// clients counts the addresses of clients.
var clients atomic.Int32

// newClient returns an address that nobody has had: failed logins are counted in
// the whole process.
func newClient() string {
	n := clients.Add(1)
	return fmt.Sprintf("198.18.%d.%d:1234", n>>8, n&255)
}

// serve starts a server. The test fails when a lease stays out.
func serve(t *testing.T, f *fakeMesh, settings ...setting) *gate {
	t.Helper()
	g := &gate{h: new(Handler), mesh: f, repl: make(chan *caddy.Replacer, 1000)}
	s := serverSettings{logger: nopLogger}
	for _, set := range settings {
		set(g, &s)
	}
	if err := g.h.setUp(f, s.logger); err != nil {
		t.Fatal(err)
	}
	if err := g.h.Validate(); err != nil {
		t.Fatal(err)
	}
	client := newClient()
	var running sync.WaitGroup
	root := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		if s.local != nil {
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, s.local))
		}
		r.RemoteAddr = client
		repl := caddy.NewReplacer()
		r = caddyhttp.PrepareRequest(r, repl, w, nil)
		if s.user != "" {
			repl.Set("http.auth.user.id", s.user)
		}
		next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			g.next++
			_, err := io.WriteString(w, "next")
			return err
		})
		// As other handlers do, so that the tests see what such a wrapper hides.
		w = &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}
		if err := g.h.ServeHTTP(w, r, next); err != nil {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		g.repl <- repl
	})
	g.Server = httptest.NewUnstartedServer(root)
	if s.http2 {
		g.EnableHTTP2 = true
		g.StartTLS()
	} else {
		g.Start()
	}
	t.Cleanup(func() {
		g.Close()
		running.Wait() // an HTTP/2 server does not wait
		if f.leases != 0 {
			t.Errorf("%d leases were not given back", f.leases)
		}
	})
	return g
}

// answer is what a client got.
type answer struct {
	status  int
	header  http.Header
	trailer http.Header
	body    string
}

// do sends a request; headers come in pairs of name and value.
func (g *gate) do(t *testing.T, method, path, body string, headers ...string) answer {
	t.Helper()
	return g.send(t, method, path, strings.NewReader(body), headers...)
}

func (g *gate) send(t *testing.T, method, path string, body io.Reader, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, g.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	client := g.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, resp.Trailer, string(b)}
}

// failed asserts an error in its envelope.
func (a answer) failed(t *testing.T, status int, code string) {
	t.Helper()
	var v struct {
		Error struct {
			Message *string `json:"message"`
			Type    *string `json:"type"`
			Code    *string `json:"code"`
			Param   *string `json:"param"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(a.body), &v, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("status %d, no envelope: %.200q: %v", a.status, a.body, err)
	}
	e := v.Error
	if e.Message == nil || e.Type == nil || e.Code == nil || !strings.Contains(a.body, `"param":`) {
		t.Fatalf("an envelope without all its keys: %s", a.body)
	}
	wantType := "invalid_request_error"
	if status >= 500 {
		wantType = "server_error"
	}
	if a.status != status || *e.Code != code || *e.Type != wantType || *e.Message == "" {
		t.Errorf("got %d %s, want %d %s", a.status, a.body, status, code)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q", ct)
	}
	a.hasRequestID(t)
}

// hasRequestID asserts the header that every answer has.
func (a answer) hasRequestID(t *testing.T) {
	t.Helper()
	if id := a.header.Get("x-request-id"); len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		t.Errorf("x-request-id %q", id)
	}
}

// message returns the message of an error.
func (a answer) message() string {
	var v struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal([]byte(a.body), &v)
	return v.Error.Message
}

// quote returns s as JSON.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Bodies of the three routes that run a task.
const (
	chatBody    = `{"model":"llama3.2","messages":[{"role":"user","content":"hi"}]}`
	textBody    = `{"model":"llama3.2","prompt":"hi"}`
	executeBody = `{"worker_id":"` + peerA + `","prompt":"hi"}`
)

// taskRoutes are the routes that run a task, with a body each.
var taskRoutes = map[string]string{
	"/v1/chat/completions": chatBody,
	"/v1/completions":      textBody,
	"/api/execute":         executeBody,
}

// newErrorServer returns a server on which the handler is inside of
// handle_errors, after another handler has left a header Retry-After.
func newErrorServer(t *testing.T, h *Handler, failure error, retryAfter string) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
		r = r.WithContext(context.WithValue(r.Context(), caddyhttp.ErrorCtxKey, failure))
		w.Header().Set("Retry-After", retryAfter) // as a rate limit leaves it
		if err := h.ServeHTTP(w, r, nil); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}
