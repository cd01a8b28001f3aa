// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
)

// withKeyFile sets a key file.
func withKeyFile(t *testing.T, text string) setting {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(g *gate, _ *serverSettings) { g.h.APIKeysFile = path }
}

// trusting accepts users of other handlers.
func trusting(g *gate, _ *serverSettings) { g.h.TrustCaddyAuth = true }

// bearer is the header for a key.
func bearer(key string) []string { return []string{"Authorization", "Bearer " + key} }

// user returns the user that the request before left to later handlers.
func (g *gate) user() string {
	name, _ := (<-g.repl).GetString("http.auth.user.id")
	return name
}

func TestUserOfKey(t *testing.T) {
	g := serve(t, new(fakeMesh), withKeys(keyOne), withKeyFile(t, "ann the-key-of-ann-123\n"))
	for key, want := range map[string]string{"the-key-of-ann-123": "ann", keyOne: "key-" + auth.Hash(keyOne)[7:15], "a-wrong-key-of-length": ""} {
		g.do(t, "GET", "/v1/models", "", bearer(key)...)
		if got := g.user(); got != want {
			t.Errorf("%s: got %q", key, got)
		}
	}
}

func TestTrustCaddyAuth(t *testing.T) {
	get := func(want int, settings ...setting) {
		t.Helper()
		g := serve(t, new(fakeMesh), settings...)
		if a := g.do(t, "GET", "/v1/models", ""); a.status != want {
			t.Errorf("got %d %s", a.status, a.body)
		}
	}
	public := withLocal(&net.TCPAddr{IP: net.ParseIP("203.0.113.7")})
	get(401, withKeys(keyOne), withUser("bob"))
	get(200, withKeys(keyOne), withUser("bob"), trusting)
	get(200, withKeys(keyOne), withUser("bob"), trusting, public)
	get(401, withKeys(keyOne), trusting)
	get(200, withUser("bob"), trusting, public)
	get(403, trusting, public)

	// A key still does, and is a user of its own. What a client claims, or failed to
	// prove, does not.
	g := serve(t, new(fakeMesh), withKeys(keyOne), trusting)
	if a := g.do(t, "GET", "/v1/models", "", bearer(keyOne)...); a.status != 200 {
		t.Errorf("got %d", a.status)
	}
	for _, name := range []string{"X-User", "X-Token-User-Id", "X_User", "Remote-User", "Http.Auth.User.Id", "Http_auth_user_id", "X-Openwebui-User-Id"} {
		g.do(t, "GET", "/v1/models", "", name, "root").failed(t, 401, "unauthorized")
	}
	r, err := http.NewRequest(http.MethodGet, "/v1/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	repl := caddy.NewReplacer()
	repl.Set("http.auth.candidate.id", "root")
	w := httptest.NewRecorder()
	if err := g.h.ServeHTTP(w, caddyhttp.PrepareRequest(r, repl, w, nil), nil); err != nil || w.Code != 401 {
		t.Errorf("a candidate: got %d, %v", w.Code, err)
	}
}

func TestFailedLogins(t *testing.T) {
	g := serve(t, new(fakeMesh), withKeys(keyOne))
	for range 30 {
		g.do(t, "GET", "/v1/models", "", bearer("a-wrong-key-of-length")...).failed(t, 401, "invalid_api_key")
	}
	a := g.do(t, "GET", "/v1/models", "", append(bearer(keyOne), "X-Forwarded-For", "203.0.113.9")...)
	a.failed(t, 429, "rate_limited")
	if a.header.Get("Retry-After") != "60" || a.header.Get("WWW-Authenticate") != "" {
		t.Errorf("got %v", a.header)
	}
	if a := g.do(t, "GET", "/health", ""); a.status != 200 {
		t.Errorf("/health: got %d", a.status)
	}
}

func TestScopes(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"ok"}}), dir: t.TempDir()}
	g := serve(t, f, withKeyFile(t, "reader the-key-that-reads scope=read\nrunner the-key-that-runs scope=run\nboth the-key-of-all-rights\n"))
	for _, row := range []struct {
		key       string
		read, run bool
	}{{"the-key-that-reads", true, false}, {"the-key-that-runs", false, true}, {"the-key-of-all-rights", true, true}} {
		check := func(method, path, body string, may bool, status int) {
			t.Helper()
			a := g.do(t, method, path, body, bearer(row.key)...)
			if may {
				if a.status != status {
					t.Errorf("%s: %s %s: got %d %s", row.key, method, path, a.status, a.body)
				}
				return
			}
			if a.header.Get("WWW-Authenticate") != `Bearer realm="agentfm", error="insufficient_scope"` {
				t.Errorf("%s: %s %s: got %v", row.key, method, path, a.header)
			}
			if method != "HEAD" {
				a.failed(t, 403, "insufficient_scope")
			}
		}
		for _, path := range []string{"/v1/models", "/api/workers"} {
			check("GET", path, "", row.read, 200)
			check("HEAD", path, "", row.read, 200)
		}
		for route, body := range taskRoutes {
			check("POST", route, body, row.run, 200)
		}
		check("GET", "/api/tasks/task_0123456789abcdef01234567/artifacts", "", true, 404)
		check("OPTIONS", "/v1/models", "", true, 204)
	}
}

// The identity is what later steps ask for the client's rights.
func TestIdentity(t *testing.T) {
	identity := func(user, key string, settings ...setting) *auth.Identity {
		t.Helper()
		g := serve(t, new(fakeMesh), settings...)
		r := httptest.NewRequest(http.MethodGet, "/v1/models", nil)
		if key != "" {
			r.Header.Set("Authorization", "Bearer "+key)
		}
		repl := caddy.NewReplacer()
		if user != "" {
			repl.Set("http.auth.user.id", user)
		}
		w := httptest.NewRecorder()
		x := newExchange(g.h, w, caddyhttp.PrepareRequest(r, repl, w, nil))
		if err := x.authenticate(); err != nil {
			t.Fatal(err)
		}
		return x.identity
	}
	file := withKeyFile(t, "ann the-key-of-ann-123 models=a scope=run\n")
	if id := identity("", ""); id.ID != "" || !id.MayUse("b") || !id.MayRead() || !id.MayRun() {
		t.Errorf("anyone: got %+v", id)
	}
	if id := identity("bob", ""); id.ID != "bob" || !id.MayUse("b") || !id.MayRead() || !id.MayRun() {
		t.Errorf("a user: got %+v", id)
	}
	if id := identity("", "the-key-of-ann-123", file); id.ID != "ann" || id.MayUse("b") || !id.MayUse("A") || id.MayRead() || !id.MayRun() {
		t.Errorf("a key: got %+v", id)
	}
	if id := identity("bob", "the-key-of-ann-123", file, trusting); id.ID != "bob" || !id.MayUse("b") {
		t.Errorf("a user before a key: got %+v", id)
	}
}

// TestRightsBehindProvider has the provider before the handler: the key's rights
// hold there, too.
func TestRightsBehindProvider(t *testing.T) {
	const keys = "ann the-key-of-ann-123 models=a scope=read\n"
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	p := &auth.Provider{APIKeysFile: path}
	if err := p.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	for name, settings := range map[string][]setting{"no keys": nil, "keys": {withKeys(keyOne), trusting}} {
		g := serve(t, new(fakeMesh), settings...)
		repl := caddy.NewReplacer()
		w := httptest.NewRecorder()
		r := caddyhttp.PrepareRequest(httptest.NewRequest(http.MethodGet, "/v1/models", nil), repl, w, nil)
		r.Header.Set("Authorization", "Bearer the-key-of-ann-123")
		user, ok, err := p.Authenticate(w, r)
		if err != nil || !ok || user.ID != "ann" || user.Metadata["models"] != "a" {
			t.Fatalf("%s: got %+v, %t, %v", name, user, ok, err)
		}
		repl.Set("http.auth.user.id", user.ID) // as the authentication handler does
		x := newExchange(g.h, w, r)
		if err := x.authenticate(); err != nil {
			t.Fatal(err)
		}
		if x.identity.ID != "ann" || x.identity.MayUse("b") || !x.identity.MayUse("a") || x.identity.MayRun() || !x.identity.MayRead() {
			t.Errorf("%s: got %+v", name, x.identity)
		}
	}
}
