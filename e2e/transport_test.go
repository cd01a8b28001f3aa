// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Caddy's reverse_proxy reaches what a worker exposes of its machine, and nothing
// else of it.
func TestReverseProxyTransport(t *testing.T) {
	held := make(chan struct{})
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("X-Forwarded-Proto")+r.Header.Get("Authorization")+r.Header.Get("Cookie"))
		switch r.URL.Path {
		case "/stream":
			_, _ = io.WriteString(w, "first\n")
			_ = http.NewResponseController(w).Flush()
			<-held
			_, _ = io.WriteString(w, "second\n")
		default:
			body, _ := io.ReadAll(r.Body)
			w.WriteHeader(http.StatusAccepted)
			_, _ = w.Write(body)
		}
	}))
	defer behind.Close()
	released := false
	defer func() {
		if !released {
			close(held)
		}
	}()
	worker := strings.Replace(agent("report", "Box", "text-report", command(reportScript)), "model text-report",
		fmt.Sprintf("model text-report\n\t\t\texpose %s /metrics /ui/* /stream", behind.URL), 1)
	text := strings.Replace(caddyfile(localMesh, "reverse_proxy Box {\n\t\ttransport agentfm\n\t}", worker), "agentfm\n}", "agentfm\n}", 1)
	p := start(t, home(t), text)
	p.await("the worker", func() bool {
		resp, err := p.send(t.Context(), http.MethodGet, "/metrics", nil)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusAccepted
	})

	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<19)
	for _, c := range []struct {
		method, path string
		body         []byte
		status       int
	}{
		{"GET", "/metrics?x=%20y", nil, 202},
		{"HEAD", "/metrics", nil, 202},
		{"POST", "/ui/a/b", []byte("hello"), 202},
		{"PUT", "/ui/", large, 202},
		{"DELETE", "/ui/x", nil, 202},
		{"GET", "/metrics/", nil, 404},
		{"GET", "/", nil, 404},
		{"GET", "/uix", nil, 404},
		{"GET", "/ui/../secret", nil, 404},
		{"GET", "/ui/%2e%2e/secret", nil, 404},
		{"GET", "/ui/..%2fsecret", nil, 404},
		{"GET", "/agentfm/v2/nothing", nil, 404},
	} {
		req, err := http.NewRequest(c.method, p.url+c.path, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "of=the site")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || err != nil || c.status == 202 && !bytes.Equal(got, c.body) {
			t.Errorf("%s %s: got %s, %d bytes, %v", c.method, c.path, resp.Status, len(got), err)
		}
		if want := c.method + " " + c.path + " http"; c.status == 202 && resp.Header.Get("X-Seen") != want {
			t.Errorf("%s %s: it saw %q", c.method, c.path, resp.Header.Get("X-Seen"))
		}
		if resp.Header.Get("AgentFM-Load") != "" || resp.Header.Get("AgentFM-Refusal") != "" {
			t.Errorf("%s %s: headers of the mesh: %v", c.method, c.path, resp.Header)
		}
	}

	resp, err := http.Get(p.url + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, len("first\n"))
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first\n" {
		t.Errorf("got %q, %v", first, err)
	}
	released = true
	close(held)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "second\n" {
		t.Errorf("then %q, %v", rest, err)
	}

	id := fmt.Sprint(p.awaitLog("agent is on the mesh")["peer"])
	p.reload(func(text string) string {
		return strings.Replace(text, "reverse_proxy Box {", "reverse_proxy "+id+" {\n\t\theader_up -Authorization", 1)
	})
	resp, err = p.send(t.Context(), http.MethodGet, "/metrics", nil) // with a key
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted || resp.Header.Get("X-Seen") != "GET /metrics http" {
		t.Errorf("by its peer id: %s, it saw %q", resp.Status, resp.Header.Get("X-Seen"))
	}
	p.reload(func(text string) string { return strings.Replace(text, "reverse_proxy Box", "reverse_proxy Nobody", 1) })
	if resp, err := p.send(t.Context(), http.MethodGet, "/metrics", nil); err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Errorf("of nobody: %v, %v", resp, err)
	}
}
