// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	workerPoll, taskPoll = time.Millisecond, time.Millisecond
	goleak.VerifyTestMain(m)
}

// routes are what a gateway answers, by the patterns of http.ServeMux.
type routes map[string]http.HandlerFunc

// fake is a gateway that answers like that, and a client of it that waits for little before
// it tries again.
func fake(t *testing.T, r routes, opts ...Option) *Client {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range r {
		mux.HandleFunc(pattern, h)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	opts = append([]Option{WithBaseURL(s.URL), WithoutAPIKey(), func(c *config) error { c.backoff = time.Millisecond; return nil }}, opts...)
	c, err := New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// answer answers with JSON.
func answer(status int, v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Request-Id", "req-1")
		w.WriteHeader(status)
		if s, ok := v.(string); ok {
			_, _ = w.Write([]byte(s))
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	}
}

// problem answers with an error.
func problem(status int, code Code) http.HandlerFunc {
	return answer(status, map[string]any{"error": map[string]any{"message": "it is " + string(code), "type": "x", "code": code, "param": nil}})
}

// flush sends what was written.
func flush(t *testing.T, w http.ResponseWriter) {
	t.Helper()
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Error(err)
	}
}

// TestDependencies wants nothing heavy in the build of a program that uses this package.
func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/Agent-FM/caddy-agentfm/"
	for path := range strings.FieldsSeq(string(out)) {
		ours, isOurs := strings.CutPrefix(path, module)
		if isOurs && ours != "openai" && ours != "client" && !strings.HasPrefix(ours, "client/") {
			t.Errorf("it imports %s", path)
		}
		if isOurs {
			continue
		}
		for _, heavy := range []string{"caddy", "libp2p", "docker", "moby", "nats", "sqlite", "prometheus", "opentelemetry", "zap", "multiformats", "quic"} {
			if strings.Contains(path, heavy) {
				t.Errorf("it needs %s", path)
			}
		}
	}
}
