// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// withOrigins lets web pages of these origins call.
func withOrigins(origins ...string) setting {
	return func(g *gate, _ *serverSettings) { g.h.AllowOrigins = origins }
}

// corsHeaders are all headers by which an answer can be opened to a web page.
var corsHeaders = []string{"Allow-Origin", "Allow-Methods", "Allow-Headers", "Allow-Credentials", "Max-Age", "Expose-Headers", "Allow-Private-Network"}

// closed asserts that no web page may read the answer.
func (a answer) closed(t *testing.T, what string) {
	t.Helper()
	for _, name := range corsHeaders {
		if v, ok := a.header["Access-Control-"+name]; ok {
			t.Errorf("%s: Access-Control-%s is %q", what, name, v)
		}
	}
}

func TestPreflight(t *testing.T) {
	g := serve(t, new(fakeMesh), withKeys(keyOne), withOrigins("https://App.example.com", "http://10.0.0.1:3000"))
	const get, post = "GET, HEAD, OPTIONS", "POST, OPTIONS"
	for path, methods := range map[string]string{"/v1/models": get, "/v1/chat/completions": post, "/api/execute": post, "/health": get} {
		for _, origin := range []string{
			"https://app.example.com", "HTTPS://APP.EXAMPLE.COM", "https://app.example.com:443", "http://10.0.0.1:3000",
			"http://localhost:5173", "http://127.0.0.1", "tauri://localhost",
		} {
			a := g.do(t, "OPTIONS", path, "", "Origin", origin, "Access-Control-Request-Method", "POST",
				"Access-Control-Request-Headers", "authorization,Content-Type, x-stainless-lang,cookie,x-forwarded-for,Last-Event-ID,Range,If-Range",
				"Access-Control-Request-Headers", "x-agentfm-worker")
			want := map[string]string{
				"Allow-Origin": origin, "Allow-Methods": methods, "Max-Age": "600",
				"Allow-Headers": "authorization, content-type, x-stainless-lang, last-event-id, range, if-range, x-agentfm-worker",
			}
			for _, name := range corsHeaders {
				if got := a.header.Get("Access-Control-" + name); got != want[name] {
					t.Errorf("%s from %s: %s is %q", path, origin, name, got)
				}
			}
			if a.status != 204 || a.body != "" || a.header.Get("Vary") != "Origin" || a.header.Get("Allow") != methods {
				t.Errorf("%s from %s: got %d, %v", path, origin, a.status, a.header)
			}
		}
		for _, origin := range []string{
			"https://evil.example", "http://app.example.com", "https://app.example.com:8443", "https://app.example.com.evil.example",
			"https://sub.app.example.com", "https://app.example.com/", "http://10.0.0.1", "http://10.0.0.1:30000", "null", "", "*",
		} {
			a := g.do(t, "OPTIONS", path, "", "Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization")
			a.closed(t, path+" from "+origin)
			if a.status != 204 {
				t.Errorf("%s from %q: got %d", path, origin, a.status)
			}
		}
	}
	two := g.do(t, "OPTIONS", "/v1/models", "", "Origin", "http://localhost", "Origin", "https://app.example.com")
	two.closed(t, "two origins")
	// A path that is none needs a key, and the answer can be read.
	a := g.do(t, "OPTIONS", "/v1/nothing", "", "Origin", "http://localhost")
	a.failed(t, 401, "unauthorized")
	if a.header.Get("Access-Control-Allow-Origin") != "http://localhost" {
		t.Error("the page cannot read the error")
	}
}

// TestSharedAnswers wants web pages that may call to read every answer, errors
// too, and no other to read any.
func TestSharedAnswers(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"ok"}}), workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	g := serve(t, f, withOrigins("https://app.example.com"))
	read := func(method, path, body string, status int, origin string) {
		t.Helper()
		a := g.do(t, method, path, body, "Origin", origin)
		expose := strings.ToLower(a.header.Get("Access-Control-Expose-Headers"))
		for _, name := range []string{"x-request-id", "openai-processing-ms", "retry-after", "x-should-retry",
			"x-ratelimit-remaining-tokens", "x-agentfm-peer", "x-agentfm-agent", "x-agentfm-task",
			"x-agentfm-attempts", "x-agentfm-tier", "x-agentfm-queue-ms", "x-agentfm-task-run", "x-agentfm-task-status",
			"etag", "repr-digest", "content-range", "content-disposition"} {
			if !strings.Contains(", "+expose+",", ", "+name+",") {
				t.Errorf("%s %s: %s is not exposed", method, path, name)
			}
		}
		if a.status != status || a.header.Get("Access-Control-Allow-Origin") != origin || a.header.Get("Vary") != "Origin" ||
			a.header.Get("Access-Control-Allow-Credentials") != "" || strings.Contains(expose, "*") {
			t.Errorf("%s %s: got %d, %v", method, path, a.status, a.header)
		}
	}
	for _, origin := range []string{"https://app.example.com", "http://localhost:3000"} {
		read("GET", "/v1/models", "", 200, origin)
		read("GET", "/health", "", 200, origin)
		read("GET", "/v1/models/nothing", "", 404, origin)
		read("POST", "/v1/models", "", 405, origin)
		for route, body := range taskRoutes {
			read("POST", route, body, 200, origin)
			read("POST", route, "nonsense", 400, origin)
		}
	}
	for _, origin := range []string{"https://evil.example", "null"} {
		a := g.do(t, "GET", "/v1/models", "", "Origin", origin)
		a.closed(t, origin)
		if a.status != 200 {
			t.Errorf("got %d", a.status)
		}
		for route, body := range taskRoutes {
			a := g.do(t, "POST", route, body, "Origin", origin)
			a.failed(t, 403, "cross_origin_refused")
			a.closed(t, origin)
		}
	}
	a := g.do(t, "GET", "/v1/models", "")
	a.closed(t, "no origin")
	if a.header.Get("Vary") != "Origin" {
		t.Error("a cache may give a page the answer that it cannot read")
	}
}

// An origin that may call is no client that may.
func TestOriginsDoNotOpen(t *testing.T) {
	public := withLocal(&net.TCPAddr{IP: net.ParseIP("203.0.113.7")})
	g := serve(t, new(fakeMesh), public, withOrigins("https://app.example.com"))
	for _, method := range []string{"GET", "OPTIONS", "POST"} {
		g.do(t, method, "/v1/models", "", "Origin", "https://app.example.com").failed(t, 403, "authentication_not_configured")
	}
	g = serve(t, new(fakeMesh), public, withKeys(keyOne), withOrigins("https://app.example.com"))
	g.do(t, "GET", "/v1/models", "", "Origin", "https://app.example.com").failed(t, 401, "unauthorized")
}

func TestParseOrigins(t *testing.T) {
	t.Setenv("TEST_ORIGIN", "https://env.example")
	for value, want := range map[string]string{
		"https://app.example.com":      "https://app.example.com",
		"HTTPS://App.Example.com":      "https://app.example.com",
		"https://app.example.com:443":  "https://app.example.com",
		"http://app.example.com:80":    "http://app.example.com",
		"http://app.example.com:443":   "http://app.example.com:443",
		"https://app.example.com:8443": "https://app.example.com:8443",
		"http://[2001:db8::1]:3000":    "http://[2001:db8::1]:3000",
		"app://obsidian.md":            "app://obsidian.md",
		"{env.TEST_ORIGIN}":            "https://env.example",
	} {
		got, err := parseOrigins([]string{value})
		if err != nil || len(got) != 1 || !got[want] {
			t.Errorf("%s: got %v, %v", value, got, err)
		}
	}
	for _, value := range []string{
		"", "*", "null", "example.com", "example.com:80", "//example.com", "https://", "https://example.com/", "https://example.com/x",
		"https://example.com?x", "https://example.com?", "https://example.com#x", "https://u@example.com", "https://*.example.com", "https://*",
		"https://example.com:", "https://example.com:x", "https://a, https://b", "https://ex ample.com", "https://пример.example",
		"{env.TEST_UNSET}", "mailto:x@example.com",
	} {
		if got, err := parseOrigins([]string{value}); err == nil {
			t.Errorf("%q: got %v", value, got)
		}
	}
}

func FuzzPageMaySend(f *testing.F) {
	f.Add("authorization, X-Stainless-Lang")
	f.Add("x-agentfm-\r\nx: y,,,*")
	f.Fuzz(func(t *testing.T, asked string) {
		for name := range strings.SplitSeq(pageMaySend([]string{asked}), ", ") {
			if strings.ContainsAny(name, "*\r\n\x00 ,") || name != strings.ToLower(name) {
				t.Errorf("%q: got %q", asked, name)
			}
		}
	})
}
