// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const (
	keyOne = "sixteen-chars-ab"
	keyTwo = "a-second-key-that-is-long"
)

// withKeys sets the keys.
func withKeys(keys ...string) setting { return func(g *gate, _ *serverSettings) { g.h.APIKeys = keys } }

// withLocal sets the address at which requests seem to arrive.
func withLocal(addr net.Addr) setting { return func(_ *gate, s *serverSettings) { s.local = addr } }

// withUser has an authentication handler accept everyone.
func withUser(name string) setting { return func(_ *gate, s *serverSettings) { s.user = name } }

func TestAuthentication(t *testing.T) {
	g := serve(t, &fakeMesh{}, withKeys(keyOne, keyTwo))
	for _, r := range []struct {
		name   string
		values []string
		status int
		code   string
	}{
		{"no header", nil, 401, "unauthorized"},
		{"empty", []string{""}, 401, "unauthorized"},
		{"scheme only", []string{"Bearer"}, 401, "unauthorized"},
		{"scheme and spaces", []string{"Bearer   "}, 401, "unauthorized"},
		{"key only", []string{keyOne}, 401, "unauthorized"},
		{"other scheme", []string{"Basic " + keyOne}, 401, "unauthorized"},
		{"scheme with more letters", []string{"Bearers " + keyOne}, 401, "unauthorized"},
		{"a tab", []string{"Bearer\t" + keyOne}, 401, "unauthorized"},
		{"a tab after a space", []string{"Bearer \t" + keyOne}, 401, "unauthorized"},
		{"two keys", []string{"Bearer " + keyOne + " " + keyTwo}, 401, "unauthorized"},
		{"two headers", []string{"Bearer " + keyOne, "Bearer " + keyOne}, 401, "unauthorized"},
		{"two headers, one wrong", []string{"Bearer " + keyOne, "Basic x"}, 401, "unauthorized"},
		{"wrong", []string{"Bearer sixteen-chars-xy"}, 401, "invalid_api_key"},
		{"cut", []string{"Bearer " + keyOne[:15]}, 401, "invalid_api_key"},
		{"longer", []string{"Bearer " + keyOne + "0"}, 401, "invalid_api_key"},
		{"other case", []string{"Bearer " + strings.ToUpper(keyOne)}, 401, "invalid_api_key"},
		{"quoted", []string{`Bearer "` + keyOne + `"`}, 401, "invalid_api_key"},
		{"both with a comma", []string{"Bearer " + keyOne + "," + keyTwo}, 401, "invalid_api_key"},
		{"not ASCII", []string{"Bearer \xc3\xa9\xff0123456789abcdef"}, 401, "invalid_api_key"},
		{"64 KiB", []string{"Bearer " + strings.Repeat("k", 64<<10)}, 401, "unauthorized"},
		{"a star", []string{"Bearer *"}, 401, "invalid_api_key"},
		{"right", []string{"Bearer " + keyOne}, 200, ""},
		{"right, the second", []string{"Bearer " + keyTwo}, 200, ""},
		{"lower case", []string{"bearer " + keyOne}, 200, ""},
		{"upper case", []string{"BEARER " + keyOne}, 200, ""},
		{"two spaces", []string{"Bearer  " + keyOne}, 200, ""},
	} {
		t.Run(r.name, func(t *testing.T) {
			var headers []string
			for _, v := range r.values {
				headers = append(headers, "Authorization", v)
			}
			a := g.do(t, "GET", "/v1/models", "", headers...)
			if r.status == 200 {
				if a.status != 200 {
					t.Errorf("got %d %s", a.status, a.body)
				}
				return
			}
			a.failed(t, r.status, r.code)
			want := `Bearer realm="agentfm"`
			if r.code == "invalid_api_key" {
				want += `, error="invalid_token"`
			}
			if got := a.header.Values("WWW-Authenticate"); len(got) != 1 || got[0] != want {
				t.Errorf("WWW-Authenticate %q", got)
			}
			if strings.Contains(a.body, keyOne[:8]) {
				t.Errorf("the answer has the key: %s", a.body)
			}
		})
	}
}

// No spelling of a path may lead past the key, to us or to what comes after us.
func TestPathsWithoutKey(t *testing.T) {
	f := &fakeMesh{}
	g := serve(t, f, withKeys(keyOne))
	guarded := []string{
		"/api", "/api/", "/v1", "/v1/", "/api/workers", "/api/workers/", "/api//workers", "//api/workers", "///api/workers",
		"/./api/workers", "/x/../api/workers", "/../api/workers", "/api/./workers", "/api/x/../workers", "/api/../api/workers",
		"/api/../x", "/api/..", "/api%2fworkers", "/api%2Fworkers", "/%61pi/workers", "/api/%77orkers", "/%2fapi/workers",
		"/%2e/api/workers", "/x/%2e%2e/api/workers", "/x%2f..%2fapi/workers", "/api/%2e%2e/x", "/api/workers;x", "/api/workers.", "/api/workers%20", "/api/workers%00",
		"/api/workers%0a", "/api/workers?x=/health", "/api/workers#/health", "/api/health", "/api/execute", "/api/execute/async",
		"/api/tasks/x/artifacts", "/api/tasks/../../health", "/api/tasks/%2e%2e/artifacts", "/api/ui/", "/v1/models", "/v1/models/", "/v1/models/x",
		"/v1/models/x/y", "/v1/models/x%2fy", "/v1/models/../../health", "/v1/models/%2e%2e/%2e%2e/health", "/v1/chat/completions", "/v1/chat", "/v1//models", "/v1/metrics",
		"/v1/completions/", "/v1/unknown", "//v1/models", "/v1/./models",
	}
	for _, path := range guarded {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "BREW"} {
			g.do(t, method, path, "", "X-HTTP-Method-Override", "OPTIONS").failed(t, 401, "unauthorized")
		}
		if a := g.do(t, "HEAD", path, ""); a.status != 401 || a.body != "" {
			t.Errorf("HEAD %s: got %d %q", path, a.status, a.body)
		}
	}
	if len(guarded) < 50 || g.next != 0 || len(f.seen()) != 0 {
		t.Errorf("%d spellings, %d handed on, %d tasks", len(guarded), g.next, len(f.seen()))
	}
}

func TestExposure(t *testing.T) {
	tcp := func(s string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(s), Port: 443} }
	for _, r := range []struct {
		name     string
		settings []setting
		refused  bool
	}{
		{"loopback", nil, false},
		{"IPv6 loopback", []setting{withLocal(tcp("::1"))}, false},
		{"mapped loopback", []setting{withLocal(tcp("::ffff:127.0.0.1"))}, false},
		{"Unix socket", []setting{withLocal(&net.UnixAddr{Name: "/run/x", Net: "unix"})}, false},
		{"public", []setting{withLocal(tcp("203.0.113.7"))}, true},
		{"private", []setting{withLocal(tcp("192.168.0.1"))}, true},
		{"IPv6", []setting{withLocal(tcp("2001:db8::1"))}, true},
		{"unspecified", []setting{withLocal(tcp("0.0.0.0"))}, true},
		{"HTTP/3", []setting{withLocal(&net.UDPAddr{IP: net.ParseIP("203.0.113.7")})}, true},
		{"HTTP/3 on loopback", []setting{withLocal(&net.UDPAddr{IP: net.ParseIP("127.0.0.1")})}, false},
		{"unknown kind", []setting{withLocal(&net.IPAddr{IP: net.ParseIP("127.0.0.1")})}, true},
		{"public with a user", []setting{withLocal(tcp("203.0.113.7")), withUser("ann")}, false},
		{"public and allowed", []setting{withLocal(tcp("203.0.113.7")), func(g *gate, _ *serverSettings) { g.h.AllowUnauthenticated = true }}, false},
	} {
		t.Run(r.name, func(t *testing.T) {
			g := serve(t, &fakeMesh{}, r.settings...)
			for _, path := range []string{"/v1/models", "/api/workers", "/api/nothing"} {
				a := g.do(t, "GET", path, "")
				switch {
				case r.refused:
					a.failed(t, 403, "authentication_not_configured")
				case a.status == 403:
					t.Errorf("%s: got %s", path, a.body)
				}
			}
			if a := g.do(t, "GET", "/health", ""); a.status != 200 {
				t.Errorf("/health: got %d", a.status)
			}
			for _, proxy := range [][2]string{{"X-Forwarded-For", "127.0.0.1"}, {"Forwarded", "for=127.0.0.1"}, {"Via", "1.1 x"}, {"X-Real-IP", "::1"}} {
				a := g.do(t, "GET", "/v1/models", "", proxy[0], proxy[1])
				if allowed := strings.Contains(r.name, "public with") || strings.Contains(r.name, "public and"); allowed != (a.status == 200) {
					t.Errorf("%s: got %d", proxy[0], a.status)
				}
			}
			if !r.refused {
				return
			}
			message := g.do(t, "OPTIONS", "/v1/models", "").message()
			for _, way := range []string{"api_keys", "authentication handler", "allow_unauthenticated"} {
				if !strings.Contains(message, way) {
					t.Errorf("the message does not name %s: %s", way, message)
				}
			}
		})
	}
}

func TestExposureByEnvironment(t *testing.T) {
	public := withLocal(&net.TCPAddr{IP: net.ParseIP("203.0.113.7")})
	for value, status := range map[string]int{"1": 200, "0": 403, "": 403, "true": 403} {
		t.Setenv("AGENTFM_ALLOW_UNAUTH_PUBLIC", value)
		g := serve(t, &fakeMesh{}, public)
		if a := g.do(t, "GET", "/v1/models", ""); a.status != status {
			t.Errorf("%q: got %d", value, a.status)
		}
	}
	// A user of another handler is no key.
	g := serve(t, &fakeMesh{}, public, withKeys(keyOne), withUser("ann"))
	g.do(t, "GET", "/v1/models", "").failed(t, 401, "unauthorized")
}

func TestOrigin(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"ok"}})}
	g := serve(t, f)
	host, err := url.Parse(g.URL)
	if err != nil {
		t.Fatal(err)
	}
	for origin, refused := range map[string]bool{
		"http://localhost":           false,
		"https://LOCALHOST:3000":     false,
		"http://127.0.0.1:8080":      false,
		"http://127.9.9.9":           false,
		"http://[::1]:5173":          false,
		"http://[::ffff:127.0.0.1]":  false,
		"tauri://localhost":          false,
		"http://wails.localhost":     false,
		"http://" + host.Host:        false,
		"https://example.com":        true,
		"http://localhost.evil.com":  true,
		"http://127.0.0.1.evil.com":  true,
		"http://evil.com/localhost":  true,
		"http://localhost@evil.com":  true,
		"http://evil.com@localhost":  true,
		"http://evillocalhost":       true,
		"http://192.168.1.1":         true,
		"http://0.0.0.0":             true,
		"http://2130706433":          true,
		"http://0x7f.1":              true,
		"null":                       true,
		"":                           true,
		"localhost":                  true,
		"file://":                    true,
		"http://localhost, http://x": true,
		"http://localhost/x":         true,
		"http://localhost?x":         true,
		"\xff":                       true,
	} {
		for route, body := range taskRoutes {
			a := g.do(t, "POST", route, body, "Origin", origin)
			switch {
			case refused:
				a.failed(t, 403, "cross_origin_refused")
			case a.status != 200:
				t.Errorf("%s from %q: got %d %s", route, origin, a.status, a.body)
			}
		}
		if a := g.do(t, "GET", "/v1/models", "", "Origin", origin); a.status != 200 {
			t.Errorf("GET from %q: got %d", origin, a.status)
		}
	}
	g.do(t, "POST", "/v1/completions", textBody, "Origin", "http://localhost", "Origin", "http://x").failed(t, 403, "cross_origin_refused")
}

// What is checked first decides what a stranger learns.
func TestOrderOfChecks(t *testing.T) {
	public := withLocal(&net.TCPAddr{IP: net.ParseIP("203.0.113.7")})
	key := []string{"Authorization", "Bearer " + keyOne}
	foreign := []string{"Origin", "https://example.com"}
	g := serve(t, &fakeMesh{}, public)
	g.do(t, "POST", "/api/nothing", "x", foreign...).failed(t, 403, "authentication_not_configured")
	g = serve(t, &fakeMesh{}, public, withKeys(keyOne))
	g.do(t, "PUT", "/api/nothing", "x", foreign...).failed(t, 401, "unauthorized")
	g.do(t, "PUT", "/api/nothing", "x", append(foreign, key...)...).failed(t, 403, "cross_origin_refused")
	g.do(t, "PUT", "/api/nothing", "x", key...).failed(t, 404, "not_found")
	g.do(t, "PUT", "/api/execute", "x", key...).failed(t, 405, "method_not_allowed")
	g.do(t, "POST", "/api/execute", "x", key...).failed(t, 400, invalidRequest)
}

// Neither keys nor prompts nor answers may get into the log, whatever happens.
func TestLogKeepsSecrets(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	const prompt, output = "the-secret-prompt", "the-secret-answer"
	f := &fakeMesh{}
	g := serve(t, f, withKeys(keyOne), func(_ *gate, s *serverSettings) { s.logger = zap.New(core) })
	for _, err := range dispatchErrors {
		f.dispatch = fails(err.err)
		for route, body := range taskRoutes {
			g.do(t, "POST", route, strings.Replace(body, "hi", prompt, 1), "Authorization", "Bearer "+keyOne)
			g.do(t, "POST", route, strings.Replace(body, "hi", prompt, 1)+"x", "Authorization", "Bearer "+keyOne)
			g.do(t, "POST", route, body, "Authorization", "Bearer "+keyTwo)
		}
		f.dispatch = answers(script{output: []string{output}, end: err.err})
		for route, body := range taskRoutes {
			g.do(t, "POST", route, strings.Replace(body, "hi", prompt, 1), "Authorization", "Bearer "+keyOne)
		}
	}
	if logs.Len() == 0 {
		t.Fatal("nothing was logged")
	}
	for _, e := range logs.All() {
		text, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}).EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{keyOne, keyTwo, prompt, output} {
			if strings.Contains(text.String(), secret) {
				t.Errorf("the log has %q: %s", secret, text)
			}
		}
	}
}

// The replacer is not always there: other software calls handlers, too.
func TestReplacerIsOptional(t *testing.T) {
	r, err := http.NewRequest("GET", "/v1/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	if replacer(r) != nil {
		t.Error("a replacer out of nothing")
	}
}

// TestAskedLocally wants a gateway without authentication to serve this machine
// only by the names that no other has: a page whose name resolves to loopback, and
// a proxy that passes strangers on, come in over loopback too.
func TestAskedLocally(t *testing.T) {
	g := serve(t, new(fakeMesh))
	for host, status := range map[string]int{
		"localhost": 200, "LOCALHOST:80": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "a.localhost": 200,
		"rebound.example": 403, "gateway.example.com:8080": 403, "10.0.0.1": 403, "localhost.example.com": 403,
	} {
		req, err := http.NewRequest(http.MethodGet, g.URL+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("Host %s: got %d, want %d", host, resp.StatusCode, status)
		}
	}
}
