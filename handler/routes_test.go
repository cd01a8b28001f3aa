// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestRoutes(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"ok"}})}
	g := serve(t, f)
	const get, post = "GET, HEAD, OPTIONS", "POST, OPTIONS"
	for path, allow := range map[string]string{
		"/health":                get,
		"/api/workers":           get,
		"/api/execute":           post,
		"/api/tasks/x/artifacts": get,
		"/api/tasks/x/output":    get,
		"/api/tasks/x":           "GET, HEAD, DELETE, OPTIONS",
		"/api/tasks":             get,
		"/api/execute/async":     post,
		"/v1/models":             get,
		"/v1/models/a/b":         get,
		"/v1/chat/completions":   post,
		"/v1/completions":        post,
		"/v1/responses":          post,
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} {
			a := g.do(t, method, path, "")
			allowed := strings.Contains(allow, method)
			switch {
			case method == "OPTIONS":
				if a.status != 204 || a.header.Get("Allow") != allow || a.body != "" {
					t.Errorf("OPTIONS %s: got %d, Allow %q", path, a.status, a.header.Get("Allow"))
				}
				a.hasRequestID(t)
			case allowed:
				if a.status == 405 {
					t.Errorf("%s %s: got %d", method, path, a.status)
				}
			case method == "HEAD":
				if a.status != 405 || a.header.Get("Allow") != allow {
					t.Errorf("HEAD %s: got %d, Allow %q", path, a.status, a.header.Get("Allow"))
				}
			default:
				a.failed(t, 405, "method_not_allowed")
				if a.header.Get("Allow") != allow {
					t.Errorf("%s %s: Allow %q", method, path, a.header.Get("Allow"))
				}
			}
		}
	}
}

func TestPathsOfOthers(t *testing.T) {
	g := serve(t, &fakeMesh{}, withKeys(keyOne))
	paths := []string{"/", "/index.html", "/apis", "/api.html", "/apix/workers", "/v10/models", "/v2/models", "/v1beta", "/healthz", "/health/", "/healthx",
		"/HEALTH", "/API/workers", "/ui/", "/metrics", "/x/api/workers", "/api;x/workers", "/%00", "/favicon.ico"}
	for _, path := range paths {
		a := g.do(t, "GET", path, "")
		if a.status != 200 || a.body != "next" || a.header.Get("X-Request-Id") != "" {
			t.Errorf("%s: got %d %q", path, a.status, a.body)
		}
	}
	if g.next != len(paths) {
		t.Errorf("%d of %d were handed on", g.next, len(paths))
	}
}

func TestUnknownPaths(t *testing.T) {
	g := serve(t, &fakeMesh{})
	for _, path := range []string{"/api", "/api/", "/v1", "/v1/", "/api/workers/", "//api/workers", "/api//workers", "/x/../v1/models", "/v1/models/",
		"/v1/chat", "/v1/files", "/v1/embeddings/x", "/v1/chat/completions/x", "/api/tasks/", "/api/tasks/x/", "/api/tasks/x/outputs", "/api/tasks//artifacts", "/api/tasks/a/b/artifacts",
		"/api/tasks/a%2fb/artifacts", "/api/execute/async/", "/api/execute."} {
		for _, method := range []string{"GET", "POST", "DELETE", "OPTIONS"} {
			a := g.do(t, method, path, "{}")
			a.failed(t, 404, "not_found")
			if a.header.Get("Location") != "" {
				t.Errorf("%s: a redirect", path)
			}
		}
	}
}

// A request line can hold what no HTTP client sends.
func TestRawRequests(t *testing.T) {
	g := serve(t, &fakeMesh{}, withKeys(keyOne))
	for target, status := range map[string]int{
		"http://other.example/api/workers": 401,
		"/api/workers?%zz":                 401,
		"/api/../health":                   401,
		"/api/\\..\\health":                401,
	} {
		conn, err := net.Dial("tcp", g.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", target)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Errorf("%s: got %d", target, resp.StatusCode)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		_ = conn.Close()
	}
}

func FuzzOurs(f *testing.F) {
	f.Add("/api/workers")
	f.Add("//v1/../health")
	f.Add("x/../api")
	f.Fuzz(func(t *testing.T, path string) {
		if _, _, ok := find(path); ok && !ours(path) {
			t.Errorf("%q has a route and is not ours", path)
		}
	})
}
