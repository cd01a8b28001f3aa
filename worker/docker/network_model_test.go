// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/worker/upstream"
)

// serveModel serves an agent a model server that is at a path, and returns where.
func serveModel(t *testing.T, path, key string, answer http.HandlerFunc) (string, *observer.ObservedLogs) {
	t.Helper()
	outside := httptest.NewServer(answer)
	base, err := upstream.ParseBase(outside.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	core, seen := observer.New(zapcore.DebugLevel)
	h := newModelHandler(base, key, func() *zap.Logger { return zap.New(core) })
	inside := httptest.NewServer(h)
	t.Cleanup(func() {
		inside.Close()
		h.Close()
		outside.Close()
	})
	return inside.Listener.Addr().String(), seen
}

func TestModelRequests(t *testing.T) {
	var outside string
	address, _ := serveModel(t, "/base/v1", "Bearer s3cret", func(w http.ResponseWriter, r *http.Request) {
		outside = r.Host
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Authorization"), b)
		for _, name := range []string{"Upgrade", "X-Hop", "X-Forwarded-For", "Forwarded", "Te"} {
			if v := r.Header.Get(name); v != "" {
				_, _ = fmt.Fprintf(w, ", %s: %s", name, v)
			}
		}
	})
	for _, tc := range []struct{ request, status, body string }{
		{"GET /v1/models HTTP/1.1", "200", "GET /base/v1/models Bearer s3cret "},
		{"GET /v1 HTTP/1.1", "200", "GET /base/v1 Bearer s3cret "},
		{"GET /v1/models?a=b&c HTTP/1.1\r\nAuthorization: Bearer none", "200", "GET /base/v1/models?a=b&c Bearer s3cret "},
		{"GET /v1/models/a%2Fb HTTP/1.1", "200", "GET /base/v1/models/a%2Fb Bearer s3cret "},
		{"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", "200", "POST /base/v1/chat/completions Bearer s3cret {}"},
		{
			"GET /v1/models HTTP/1.1\r\nConnection: X-Hop, Upgrade\r\nX-Hop: 1\r\nUpgrade: h2c\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=x",
			"200", "GET /base/v1/models Bearer s3cret ",
		},
		{"GET http://evil.test/v1/models HTTP/1.1\r\nHost: evil.test", "200", "GET /base/v1/models Bearer s3cret "}, // at its own server
		{"GET /api/tags HTTP/1.1", "403", ""},
		{"GET / HTTP/1.1", "403", ""},
		{"GET /v1x HTTP/1.1", "403", ""},
		{"GET //v1/models HTTP/1.1", "403", ""},
		{"GET /v1/../api/tags HTTP/1.1", "403", ""},
		{"GET /v1/%2e%2e/api/tags HTTP/1.1", "403", ""},
		{"GET /v1/x/..%2f..%2fapi/tags HTTP/1.1", "403", ""},
		{"GET /v1/..\\api/tags HTTP/1.1", "403", ""},
		{"GET /%76%31/models HTTP/1.1", "403", ""},
		{"CONNECT evil.test:443 HTTP/1.1", "403", ""},
		{"CONNECT /v1/models HTTP/1.1", "403", ""},
		{"TRACE /v1/models HTTP/1.1", "403", ""},
		{"OPTIONS * HTTP/1.1", "200", ""},
	} {
		text, body := tc.request, ""
		if head, rest, found := strings.Cut(tc.request, "\r\n\r\n"); found {
			text, body = head, rest
		}
		if !strings.Contains(text, "\r\nHost:") {
			text += "\r\nHost: x"
		}
		status, got := exchange(t, address, text+"\r\n\r\n"+body)
		if !strings.HasPrefix(status, tc.status) || (tc.status == "200" || tc.body != "") && got != tc.body {
			t.Errorf("%.60s: %s %q, want %s %q", tc.request, status, got, tc.status, tc.body)
		}
	}
	if !strings.HasPrefix(outside, "127.0.0.1:") {
		t.Errorf("the server was asked for the host %q", outside)
	}
}

// An answer comes as the server writes it.
func TestModelStreams(t *testing.T) {
	next := make(chan struct{})
	address, _ := serveModel(t, "", "", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d %s\n\n", i, r.Header.Get("Authorization"))
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	})
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer mine\r\nContent-Length: 0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		lines.Scan()
		if want := "data: " + strconv.Itoa(i) + " Bearer mine"; lines.Text() != want {
			t.Errorf("%q, want %q", lines.Text(), want)
		}
		lines.Scan()
		next <- struct{}{}
	}
}

// The agent does not see the key in what the server says of it, nor where the server is.
func TestModelFailures(t *testing.T) {
	address, seen := serveModel(t, "", "Bearer s3cret", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "unknown key "+r.Header.Get("Authorization"), http.StatusUnauthorized)
	})
	status, body := exchange(t, address, "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
	if !strings.HasPrefix(status, "502") || strings.Contains(body, "s3cret") || seen.FilterLevelExact(zapcore.WarnLevel).Len() != 1 {
		t.Errorf("%s %q, log %v", status, body, seen.All())
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	base, _ := upstream.ParseBase("http://" + l.Addr().String())
	core, seen := observer.New(zapcore.DebugLevel)
	h := newModelHandler(base, "", func() *zap.Logger { return zap.New(core) })
	for range 2 * logLines {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/models", nil))
		if w.Code != http.StatusBadGateway || strings.Contains(w.Body.String(), l.Addr().String()) {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if n := seen.Len(); n != logLines {
		t.Errorf("%d lines in the log, want %d", n, logLines)
	}
}
