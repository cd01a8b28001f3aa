// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// secret is the server's key. It must not be in anything that anybody sees.
const secret = "sk-the-servers-own-key"

// fake is a server with OpenAI's API.
type fake struct {
	*httptest.Server
	mu     sync.Mutex
	models []string
	routes map[string]http.HandlerFunc
	list   http.HandlerFunc // in place of the list of models
	listed atomic.Int64     // how often it was asked for
	probed atomic.Int64
}

// newFake starts a server that has two models and chats.
func newFake(t testing.TB) *fake {
	f := &fake{models: []string{"first", "second"}, routes: map[string]http.HandlerFunc{
		"/v1/chat/completions": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"ok":true}`) },
	}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// set changes the fake.
func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// ServeHTTP implements http.Handler.
func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	models, list, route := slices.Clone(f.models), f.list, f.routes[r.URL.Path]
	f.mu.Unlock()
	if r.URL.Path == "/v1/models" {
		f.listed.Add(1)
		if list != nil {
			list(w, r)
			return
		}
		type model struct {
			ID string `json:"id"`
		}
		answer := struct {
			Data []model `json:"data"`
		}{}
		for _, name := range models {
			answer.Data = append(answer.Data, model{name})
		}
		_ = json.NewEncoder(w).Encode(answer)
		return
	}
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	switch {
	case route == nil:
		http.NotFound(w, r)
	case string(body) == "{}":
		f.probed.Add(1)
		http.Error(w, `{"error":{"message":"what is wanted?"}}`, http.StatusBadRequest)
	default:
		route(w, r)
	}
}

// on sets what a route does.
func (f *fake) on(route string, do http.HandlerFunc) { f.set(func(f *fake) { f.routes[route] = do }) }

// told is how often an agent was told that its offer has changed.
type told struct{ atomic.Int64 }

func (c *told) changed() { c.Add(1) }

// provision returns a runtime for the fake, and its log.
func provision(t testing.TB, base string, change func(*Runtime)) (*Runtime, *observer.ObservedLogs) {
	t.Helper()
	r := &Runtime{BaseURL: base}
	if change != nil {
		change(r)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	if err := r.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	r.logger = zap.New(core)
	r.key.logger = r.logger
	t.Cleanup(func() { noSecrets(t, logs) })
	return r, logs
}

// agentPeer is the peer id of the agents of tests.
const agentPeer = "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"

// prepare makes a runtime ready. Its watcher ends with the test.
func prepare(t testing.TB, r *Runtime, model string) *told {
	t.Helper()
	c := new(told)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	if _, err := r.Prepare(ctx, worker.Agent{Key: "a", Name: "The agent", PeerID: agentPeer, Model: model, Changed: c.changed, Context: ctx, Go: func(f func()) { go f() }}); err != nil {
		t.Fatal(err)
	}
	return c
}

// ready returns a runtime that is ready.
func ready(t testing.TB, f *fake, change func(*Runtime)) (*Runtime, *observer.ObservedLogs) {
	t.Helper()
	r, logs := provision(t, f.URL, change)
	prepare(t, r, "")
	return r, logs
}

// often has the server looked after all the time.
func often(r *Runtime) { r.HealthInterval = caddy.Duration(5 * time.Millisecond) }

// noSecrets wants no key in the log.
func noSecrets(t testing.TB, logs *observer.ObservedLogs) {
	t.Helper()
	for _, entry := range logs.All() {
		b, _ := json.Marshal(entry.ContextMap())
		if text := entry.Message + string(b); strings.Contains(text, "sk-") {
			t.Errorf("a key is in the log: %s", text)
		}
	}
}

// gateway serves a runtime over HTTP, as a gateway would be served.
func gateway(t testing.TB, r *Runtime) *httptest.Server {
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	t.Cleanup(r.transport.CloseIdleConnections)
	return s
}

// post sends a body, and returns the answer and its body.
func post(t testing.TB, s *httptest.Server, path, body string) (*http.Response, string) {
	t.Helper()
	resp, err := s.Client().Post(s.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}
